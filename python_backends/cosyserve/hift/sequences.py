"""Vocoder sequences for the server."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cosyserve.audio.output_format import check_output_format
from cosyserve.audio.pcm import to_pcm16
from cosyserve.audio.resampler import Resampler
from cosyserve.contracts import Tensors
from cosyserve.finite import check_finite
from cosyserve.hift.stream import HiftNetworks, HiftStream
from cosyserve.hift.time_stretch import TimeStretch
from cosyserve.scheduler import Computation
from cosyserve.sequences import seed_of


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """What an utterance wants of its audio: speaking rate, Hz, and whether its segments come whole."""

    speed: float
    sample_rate: int
    whole: bool

    @classmethod
    def of(cls, inputs: Tensors, native_rate: int) -> AudioFormat:
        """From the inputs of a sequence's first step; `InvalidInput` when one is out of bounds.

        A resampler of an odd rate would take minutes to make, in the thread that serves everyone.
        """
        # The decimal that was meant: float32 0.8 is a little more than 0.8, and 100 frames would become 124.
        speed = float(str(inputs["speed"][0])) if "speed" in inputs else 1.0
        sample_rate = int(inputs["sample_rate"][0]) if "sample_rate" in inputs else native_rate
        check_output_format(speed, sample_rate, native_rate)
        return cls(speed, sample_rate, whole="stream" in inputs and not inputs["stream"][0])


class _Segment:
    """Mel to PCM: stretched if its speed is not 1, vocoded, resampled if its rate is not the model's."""

    def __init__(self, networks: HiftNetworks, shape: AudioFormat, seed: int) -> None:
        config = networks.config
        self._stretch = TimeStretch(config.mels, shape.speed, shape.whole) if shape.speed != 1 else None
        self._stream = HiftStream(networks, seed)
        own = shape.sample_rate == config.sample_rate
        self._resampler = None if own else Resampler(config.sample_rate, shape.sample_rate)

    def begin_step(self, inputs: Tensors, final: bool) -> Computation[Tensors]:
        mel = inputs["mel"].astype(np.float32)
        if self._stretch:
            mel = self._stretch.step(mel, final)
        audio = yield from self._stream.begin_step(mel, final)
        check_finite("audio", audio)
        if self._resampler:
            audio = self._resampler.step(audio, final)
        return {"audio": to_pcm16(audio)}


class HiftSequence:
    """One utterance: contract `HIFT`, a `HiftStream` for each of its segments."""

    def __init__(self, networks: HiftNetworks, shape: AudioFormat) -> None:
        self._networks = networks
        self._shape = shape
        self._segment: _Segment | None = None

    def begin_step(self, inputs: Tensors) -> Computation[Tensors]:
        """PCM that these mel frames settle. A segment's first step may bring its seed; else it is 0."""
        if self._segment is None:
            self._segment = _Segment(self._networks, self._shape, seed_of(inputs))
        final = bool(inputs["mel_final"][0])
        outputs = yield from self._segment.begin_step(inputs, final)
        if final:
            self._segment = None
        return outputs

    def release(self) -> None:
        """See `TritonSequence.release`."""
        self._segment = None


class HiftFactory:
    """Opens sequences on shared networks."""

    def __init__(self, networks: HiftNetworks) -> None:
        self._networks = networks

    def open(self, inputs: Tensors) -> HiftSequence:
        """A sequence for the speed, rate and mode in the first step's inputs."""
        return HiftSequence(self._networks, AudioFormat.of(inputs, self._networks.config.sample_rate))

    def empty_outputs(self, inputs: Tensors) -> Tensors:
        """No sample."""
        return {"audio": np.zeros(0, np.int16)}
