"""One stream as a player hears it. Plain arithmetic on arrival times; Locust uses it too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AUDIBLE = 328
"""Smallest int16 sample value that counts as heard: -40 dBFS, above hiss, below speech at usual levels."""


class Playback:
    """A player that starts with the first sample it gets and plays every sample as early as it can.

    `cosyserve.pipeline.delivery.Delivery` judges what is sent, on the server: by chunk, without looking at the samples.

    A chunk starts playing when it has arrived and all audio before it has been played. A chunk that arrives after the
    audio before it has run out leaves a gap of silence, after which playback goes on, shifted by the gap. A stream
    without such a chunk is gapless.

    All times are seconds since the utterance was due: in a closed loop the moment it was sent, in an open loop the
    moment the schedule says, whether or not the client kept to it.

    Args:
        sample_rate: in Hz.

    Attributes:
        chunks: arrival time and number of samples of each response that carried audio.
        first_audio: when the first response that carries audio arrived; None before.
        first_audible: when the player reaches the first sample of at least `AUDIBLE`, so leading silence counts as
            waiting; None before.
        worst_gap: longest silence between two chunks in seconds, 0 when gapless.
    """

    def __init__(self, sample_rate: int) -> None:
        self.chunks: list[tuple[float, int]] = []
        self.first_audio: float | None = None
        self.first_audible: float | None = None
        self.worst_gap = 0.0
        self._sample_rate = sample_rate
        self._runs_out = 0.0

    @property
    def seconds(self) -> float:
        """Length of the audio that has arrived."""
        return sum(samples for _, samples in self.chunks) / self._sample_rate

    def add(self, pcm: NDArray[np.int16], arrival: float) -> None:
        """Takes `pcm`, int16 [samples], that arrived at `arrival`; a response without samples changes nothing."""
        if not len(pcm):
            return
        if self.first_audio is None:
            self.first_audio = self._runs_out = arrival
        self.chunks.append((arrival, len(pcm)))
        starts = max(arrival, self._runs_out)
        self.worst_gap = max(self.worst_gap, starts - self._runs_out)
        if self.first_audible is None:
            audible = (pcm >= AUDIBLE) | (pcm <= -AUDIBLE)
            if audible.any():
                self.first_audible = starts + int(audible.argmax()) / self._sample_rate
        self._runs_out = starts + len(pcm) / self._sample_rate
