"""Vocoder sessions for the server."""

from __future__ import annotations

import numpy as np

from cosyserve.audio.pcm import to_pcm16
from cosyserve.contracts import Tensors
from cosyserve.hift.stream import HiftNetworks, HiftStream
from cosyserve.jobs import Steps


class HiftSession:
    """One utterance: contract `HIFT` around a `HiftStream` for each of its segments."""

    def __init__(self, networks: HiftNetworks) -> None:
        self._networks = networks
        self._stream: HiftStream | None = None

    def steps(self, inputs: Tensors) -> Steps[Tensors]:
        """PCM that these mel frames settle. A segment's first step may bring its seed; else it is 0."""
        if self._stream is None:
            self._stream = HiftStream(self._networks, int(inputs["seed"][0]) if "seed" in inputs else 0)
        final = bool(inputs["mel_final"][0])
        audio = yield from self._stream.steps(inputs["mel"].astype(np.float32), final)
        if final:
            self._stream = None
        return {"audio": to_pcm16(audio)}

    def close(self) -> None:
        """See `Session.close`."""
        self._stream = None


class HiftSessions:
    """Opens sessions on shared networks."""

    def __init__(self, networks: HiftNetworks) -> None:
        self._networks = networks

    def open(self, inputs: Tensors) -> HiftSession:
        """A session; it needs nothing."""
        return HiftSession(self._networks)

    def nothing(self, inputs: Tensors) -> Tensors:
        """No sample."""
        return {"audio": np.zeros(0, np.int16)}
