"""Checks of prompt audio, cheapest first."""

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
    if not limits.MIN_PROMPT_RATE <= rate <= limits.MAX_PROMPT_RATE:
        bounds = f"{limits.MIN_PROMPT_RATE} to {limits.MAX_PROMPT_RATE} Hz"
        raise InvalidInput("prompt_sample_rate", f"must be {bounds}, not {rate}")
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise InvalidInput("prompt_audio", "must be one channel of floating-point samples in -1..1")
    seconds = len(samples) / rate
    if not limits.MIN_PROMPT_SECONDS <= seconds <= limits.MAX_PROMPT_SECONDS:
        bounds = f"{limits.MIN_PROMPT_SECONDS:g} to {limits.MAX_PROMPT_SECONDS:g} seconds"
        raise InvalidInput("prompt_audio", f"must last {bounds}, not {seconds:.2f}")
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        raise InvalidInput("prompt_audio", "holds NaN or infinite samples")
    if peak > limits.MAX_PROMPT_PEAK:
        raise InvalidInput("prompt_audio", f"must be scaled to -1..1, its peak is {peak:.4g}")
    if peak < limits.SILENCE_PEAK:
        raise InvalidInput("prompt_audio", "is silent")
