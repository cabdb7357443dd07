"""Samples at another rate, as they come."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

Float = NDArray[np.float32]

EDGES_PER_SECOND = 50
"""An edge lasts 20 ms: beyond the filter's reach (9 ms at 8 kHz), and whole samples at every rate."""


class Resampler:
    """Band-limited resampling of one segment by soxr at quality HQ, the same however the samples are cut.

    Outside the segment its first and last values are taken to last, so that it joins its neighbours as it did before:
    taken as silence they would leave a dip.

    Args:
        rate: Hz of the samples.
        target: Hz wanted. Both are multiples of `EDGES_PER_SECOND`.
    """

    def __init__(self, rate: int, target: int) -> None:
        self._rate, self._target = rate, target
        self._stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
        self._ahead = target // EDGES_PER_SECOND  # resampled samples before the segment
        self._last = np.zeros(0, np.float32)
        self._taken = 0
        self._sent = 0

    def step(self, samples: Float, final: bool) -> Float:
        """Take the next samples ``[n]``, and return those that they settle.

        Args:
            samples: at `rate`.
            final: none follows; all together come to ``n * target / rate``, rounded.
        """
        pieces = [samples]
        if len(samples) and not self._taken:
            pieces.insert(0, self._edge(samples[:1]))
        self._taken += len(samples)
        self._last = samples[-1:] if len(samples) else self._last
        if final and self._taken:
            pieces.append(self._edge(self._last))
        made: Float = self._stream.resample_chunk(np.concatenate(pieces), last=final)
        skipped = min(self._ahead, len(made))
        self._ahead -= skipped
        made = made[skipped:]
        if final:
            made = made[: round(self._taken * self._target / self._rate) - self._sent]
        self._sent += len(made)
        return made

    def _edge(self, value: Float) -> Float:
        return np.repeat(value, self._rate // EDGES_PER_SECOND)
