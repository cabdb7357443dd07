"""Audio that a request brings: its checks, cheapest first, and where a long one can be cut."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve import limits
from cosyserve.errors import InvalidInput


def check_prompt(samples: NDArray[Any], rate: int) -> None:
    """Accepts mono float samples that the prompt networks can use.

    Args:
        samples: [n], floating point, -1..1.
        rate: Hz.

    Raises:
        InvalidInput: names ``prompt_audio`` or ``prompt_sample_rate``; the length is judged before any sample is read.
    """
    _check("prompt", samples, rate, limits.MAX_PROMPT_SECONDS)


def check_source(samples: NDArray[Any], rate: int) -> None:
    """As `check_prompt`, for ``source_audio`` and ``source_sample_rate``: speech to convert, which may be longer."""
    _check("source", samples, rate, limits.MAX_SOURCE_SECONDS)


def _check(of: str, samples: NDArray[Any], rate: int, most: float) -> None:
    if not limits.MIN_AUDIO_RATE <= rate <= limits.MAX_AUDIO_RATE:
        bounds = f"{limits.MIN_AUDIO_RATE} to {limits.MAX_AUDIO_RATE} Hz"
        raise InvalidInput(f"{of}_sample_rate", f"must be {bounds}, not {rate}")
    audio = f"{of}_audio"
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise InvalidInput(audio, "must be one channel of floating-point samples in -1..1")
    seconds = len(samples) / rate
    if not limits.MIN_PROMPT_SECONDS <= seconds <= most:
        raise InvalidInput(audio, f"must last {limits.MIN_PROMPT_SECONDS:g} to {most:g} seconds, not {seconds:.2f}")
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        raise InvalidInput(audio, "holds NaN or infinite samples")
    if peak > limits.MAX_AUDIO_PEAK:
        raise InvalidInput(audio, f"must be scaled to -1..1, its peak is {peak:.4g}")
    if peak < limits.SILENCE_PEAK:
        raise InvalidInput(audio, "is silent")


def cut_at_pauses(wave: NDArray[np.float32], step: int, longest: int) -> list[NDArray[np.float32]]:
    """Pieces of a wave that together are the wave, each cut from the next at the quietest step of its second half.

    Args:
        wave: [n].
        step: samples; every cut lies on a multiple.
        longest: samples of the longest piece.
    """
    pieces = []
    steps = longest // step
    while len(wave) > longest:
        energies = np.square(wave[: steps * step].reshape(steps, step)).sum(axis=1)
        # A cut lies at the start of its step.
        cut = (steps // 2 + int(np.argmin(energies[steps // 2 :]))) * step
        pieces.append(wave[:cut])
        wave = wave[cut:]
    return [*pieces, wave]
