"""Scores of next speech tokens in host memory: softmax and the likeliest ids of many rows at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 64
"""Ids of which the maximum is taken first: partitioning a hundred maxima costs a tenth of partitioning 6,564 values."""


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities over the last axis, in float64; NaN where its maximum is not finite."""
    mass, total = _mass(logits)
    mass /= total
    return mass


def _mass(logits: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unnormalised probabilities [..., V] and their sum [..., 1]."""
    mass = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        mass -= logits.max(axis=-1, keepdims=True)
    np.exp(mass, out=mass)
    # Not in one pass with a conversion from float32: its buffers would group the terms of a row by where it lies.
    return mass, mass.sum(axis=-1, keepdims=True)


def top(logits: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The likeliest ids of each row in descending order, ties by lower id, and their probabilities.

    Args:
        logits: [n, V]; forbidden ids are -inf.
        k: how many; V when there are no more.

    Returns:
        ids [n, min(k, V)] and their probabilities [n, min(k, V)]: NaN in rows whose maximum is not finite.
    """
    rows, size = logits.shape
    k = min(k, size)
    mass, total = _mass(logits)
    broken = np.isnan(total)
    if broken.any():
        logits = np.where(broken, np.float32(0), logits)
    flat = np.flatnonzero(logits >= _floor(logits, k))
    row, found = np.divmod(flat, size)
    # The sort is stable and ids ascend within their row, so the lower of two equal ids stays first.
    order = np.lexsort((-logits.ravel()[flat], row))
    first = np.searchsorted(row, np.arange(rows))
    ids = found[order[first[:, None] + np.arange(k)]]
    return ids, np.take_along_axis(mass, ids, axis=1) / total


def _floor(logits: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """A bound [n, 1] that at least k values of each row reach, and few more: the k-th largest maximum of blocks."""
    rows, size = logits.shape
    blocks = size // BLOCK
    if blocks < k:
        return np.full((rows, 1), -np.inf, np.float32)
    maxima = logits[:, : BLOCK * blocks].reshape(rows, BLOCK, blocks).max(axis=1)
    return np.partition(maxima, blocks - k, axis=1)[:, blocks - k, None]


class LogitScores:
    """`Scores` over logits.

    Args:
        logits: [n, V].
        end: the first id that ends a sequence; so do all above it.
    """

    def __init__(self, logits: NDArray[np.float32], end: int) -> None:
        self._logits = logits
        self._end = end

    def top(self, k: int, suppress_end: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """See `Scores`."""
        logits = self._logits
        if suppress_end.any():
            logits = logits.copy()
            logits[suppress_end, self._end :] = -np.inf
        return top(logits, k)

    def row(self, index: int) -> NDArray[np.float32]:
        """See `Scores`."""
        logits: NDArray[np.float32] = self._logits[index]
        return logits
