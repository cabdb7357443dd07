"""Vocoder sessions for the server."""

from __future__ import annotations

import numpy as np

from cosyserve.audio.pcm import to_pcm16
from cosyserve.contracts import Tensors
from cosyserve.hift.stream import HiftNetworks, HiftStream


class HiftSession:
    """One sequence: contract `HIFT` around a `HiftStream`."""

    def __init__(self, stream: HiftStream) -> None:
        self._stream = stream

    def step(self, inputs: Tensors) -> Tensors:
        """PCM that these mel frames settle."""
        return {"audio": to_pcm16(self._stream.step(inputs["mel"].astype(np.float32), bool(inputs["mel_final"][0])))}


class HiftSessions:
    """Opens sessions on shared networks."""

    def __init__(self, networks: HiftNetworks) -> None:
        self._networks = networks

    def open(self, inputs: Tensors) -> HiftSession:
        """A session with the seed in the first step's inputs (0 when there is none)."""
        seed = int(inputs["seed"][0]) if "seed" in inputs else 0
        return HiftSession(HiftStream(self._networks, seed))

    def nothing(self, inputs: Tensors) -> Tensors:
        """No sample."""
        return {"audio": np.zeros(0, np.int16)}
