"""What a request wants of its audio."""

from __future__ import annotations

from cosyserve import limits
from cosyserve.errors import InvalidInput


def check_output_format(speed: float | None, sample_rate: int | None, native_rate: int) -> None:
    """Refuse a speed or a sample rate out of bounds; None stands for the default.

    Raises:
        InvalidInput: names ``speed`` or ``sample_rate``.
    """
    if speed is not None and not limits.MIN_SPEED <= speed <= limits.MAX_SPEED:
        raise InvalidInput("speed", f"must be {limits.MIN_SPEED} to {limits.MAX_SPEED}, not {speed:g}")
    rates = sorted({*limits.SAMPLE_RATES, native_rate})
    if sample_rate is not None and sample_rate not in rates:
        raise InvalidInput("sample_rate", f"must be one of {', '.join(map(str, rates))}, not {sample_rate}")
