"""What is random in the vocoder's source signal."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from cosyserve.config import HiftConfig
from cosyserve.weights import Weights

Float = NDArray[np.float32]

NOISE_THREADS = 2
"""Of a process: one draws the noise of some 200 streams in time."""


class Noise(Protocol):
    """The noise of one segment, from its first sample on."""

    def __call__(self, samples: int, sines: int) -> Float:
        """The next samples ``[samples, sines]``."""
        ...


class GaussianNoise:
    """Standard normal, by seed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(seed))

    def __call__(self, samples: int, sines: int) -> Float:
        """See `Noise`."""
        return self._generator.standard_normal((samples, sines), dtype=np.float32)


class FixedNoise:
    """Uniform in [0, 1), the same for every segment.

    Upstream draws 300 s of it when the vocoder is built (hifigan/generator.py :: SineGen2). Here the same numbers are
    drawn as they are needed, as torch draws them on a CPU: the low 24 bits of each output of a Mersenne Twister.

    Args:
        twister: its state just before that draw, uint32 [625]: 624 words and the position.
    """

    def __init__(self, twister: NDArray[np.uint32]) -> None:
        self._twister = np.random.MT19937()
        self._twister.state = {
            "bit_generator": "MT19937",
            "state": {"key": twister[:-1].copy(), "pos": int(twister[-1])},
        }

    def __call__(self, samples: int, sines: int) -> Float:
        """See `Noise`."""
        bits = self._twister.random_raw(samples * sines) & np.uint64(2**24 - 1)
        return (bits.astype(np.float32) * np.float32(2**-24)).reshape(samples, sines)


class DrawnAhead:
    """Another noise, a block of which is drawn in another thread before it is asked for.

    On a GPU, drawing takes longer than all else that the serving thread does for a stream.

    Args:
        noise: draws from one stream of numbers, however they are asked for.
        sines: numbers for each sample.
        block: samples to draw at once.
    """

    def __init__(self, noise: Noise, sines: int, block: int) -> None:
        self._noise, self._sines, self._block = noise, sines, block
        self._drawn = np.zeros((0, sines), np.float32)
        self._next = self._draw()

    def __call__(self, samples: int, sines: int) -> Float:
        """See `Noise`."""
        parts = [self._drawn]
        while sum(map(len, parts)) < samples:
            parts.append(self._next.result())
            self._next = self._draw()
        drawn = np.concatenate(parts)
        self._drawn = drawn[samples:]
        return drawn[:samples]

    def _draw(self) -> Future[Float]:
        return _threads().submit(self._noise, self._block, self._sines)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(NOISE_THREADS, thread_name_prefix="noise")


def noise_of(weights: Weights) -> Callable[[int], Noise]:
    """What makes the noise of a segment from its seed, for the vocoder of these weights."""
    if not weights.config.hift.fixed_noise:
        return GaussianNoise
    twister = load_file(weights.file("hift_noise.safetensors"))["twister"]
    return lambda seed: FixedNoise(twister)


def first_phases(config: HiftConfig, seed: int) -> NDArray[np.float64]:
    """Phases of the sines before the first frame, in cycles ``[sines]``.

    CosyVoice 1 draws those of the overtones (upstream hifigan/generator.py :: SineGen); the others start at zero.
    """
    phases = np.zeros(config.harmonics + 1)
    if config.phase == "by sample":
        # Not the stream that the noise is drawn from.
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, 2])))
        phases[1:] = random.uniform(-0.5, 0.5, config.harmonics)
    return phases
