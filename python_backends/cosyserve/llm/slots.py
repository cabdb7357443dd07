"""Keys and values of sequences that run in one batch, in memory that a graph reads without copying."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

GRANULE = 64
"""Capacities are multiples of this many positions, so that vectorised sums always group the same positions alike."""


class SlotCache:
    """Per layer one key and one value array ``[rows, heads, capacity, dim]``, float32.

    The leading axis is the row, so the first rows of every array are contiguous and go into a graph as they are.
    Positions beyond what was written hold zeros; graphs mask them by length.
    """

    def __init__(self, layers: int, rows: int, heads: int, dim: int) -> None:
        self.capacity = GRANULE
        self._k = [np.zeros((rows, heads, GRANULE, dim), np.float32) for _ in range(layers)]
        self._v = [np.zeros((rows, heads, GRANULE, dim), np.float32) for _ in range(layers)]

    def keys(self, rows: slice = slice(None)) -> list[Float]:
        """Key arrays of these rows, without copying."""
        return [k[rows] for k in self._k]

    def values(self, rows: slice = slice(None)) -> list[Float]:
        """Value arrays of these rows, without copying."""
        return [v[rows] for v in self._v]

    def fit(self, length: int, rows: int) -> None:
        """Make room for `length` positions, and give back room of long sequences that have left.

        Args:
            length: positions that the longest of the sequences in use will have.
            rows: rows in use, from the first; only they keep what they hold.
        """
        if self.capacity < length or self.capacity > 4 * (length + GRANULE):
            # A quarter to spare, so that copying stays a small share.
            capacity = -(-(length + length // 4) // GRANULE) * GRANULE
            self._k = [_resized(k, capacity, rows) for k in self._k]
            self._v = [_resized(v, capacity, rows) for v in self._v]
            self.capacity = capacity

    def write(self, rows: slice, start: int, new_k: Sequence[Float], new_v: Sequence[Float]) -> None:
        """Put ``[rows, heads, n, dim]`` keys and values at positions ``start..start+n``, for which `fit` made room."""
        stop = start + new_k[0].shape[2]
        for layer, (k, v) in enumerate(zip(new_k, new_v, strict=True)):
            self._k[layer][rows, :, start:stop] = k
            self._v[layer][rows, :, start:stop] = v

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` over row `target`."""
        for array in (*self._k, *self._v):
            array[target, :, :length] = array[source, :, :length]

    def erase(self, row: int) -> None:
        """Zero a row."""
        for array in (*self._k, *self._v):
            array[row] = 0


def _resized(array: Float, capacity: int, rows: int) -> Float:
    other = np.zeros((*array.shape[:2], capacity, array.shape[3]), np.float32)
    kept = min(capacity, array.shape[2])
    other[:rows, :, :kept] = array[:rows, :, :kept]
    return other
