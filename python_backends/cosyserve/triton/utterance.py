"""What is counted of each utterance, from its request to its end."""

from __future__ import annotations

import time

from cosyserve.contracts import Model
from cosyserve.errors import CosyServeError
from cosyserve.metrics import (
    AUDIO_SAMPLES,
    CANCELLED,
    CHUNK_GAP,
    FIRST_AUDIO,
    REAL_TIME_FACTOR,
    REFUSED,
    UNDERRUNS,
    UTTERANCES,
    outcome,
)
from cosyserve.pipeline.playback import Playback
from cosyserve.pipeline.session import Session
from cosyserve.triton.adapter import Instrument


class Instruments:
    """The metrics of one entry model that tell of utterances."""

    def __init__(self, model: Model) -> None:
        name = model.name
        self.utterances = Instrument(UTTERANCES, model=name)
        self.refused = Instrument(REFUSED, model=name)
        self.cancelled = Instrument(CANCELLED, model=name)
        self.first_audio = Instrument(FIRST_AUDIO, model=name)
        self.chunk_gap = Instrument(CHUNK_GAP, model=name)
        self.underruns = Instrument(UNDERRUNS, model=name)
        self.real_time_factor = Instrument(REAL_TIME_FACTOR, model=name)
        self.samples = Instrument(AUDIO_SAMPLES, model=name)


class Utterance:
    """One utterance as it is told of.

    Attributes:
        session: where its text comes from, if it comes in pieces; set before the first audio.
    """

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._playback = Playback(time.monotonic())
        self.session: Session | None = None

    def heard(self, samples: int, sample_rate: int) -> None:
        """So much audio is being sent."""
        counts, playback, session = self._instruments, self._playback, self.session
        counts.samples.add(samples)
        if not samples:
            return
        if session is not None and session.began is not None:
            playback.began = session.began
        late = playback.hear(samples / sample_rate, time.monotonic(), written=session.written if session else None)
        if playback.chunks == 1 and playback.first_audio is not None:
            counts.first_audio.observe(playback.first_audio)
        if playback.gap is not None:
            counts.chunk_gap.observe(playback.gap)
        if late:
            counts.underruns.add(1)

    def ended(self, error: CosyServeError | None = None) -> None:
        """It is over, with all its audio or with an error."""
        counts, how = self._instruments, outcome(error)
        counts.utterances.add(1, how)
        if error is not None and how == "refused":
            counts.refused.add(1, error.reason)
        if error is not None and how == "cancelled":
            counts.cancelled.add(1, error.reason)
        factor = self._playback.real_time_factor
        if error is None and factor is not None and self.session is None:
            counts.real_time_factor.observe(factor)
