"""The KV cache of the LLM: sequences that run in one batch, in memory that a graph reads without copying."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

ALIGNMENT = 64
"""Capacities are multiples of this many positions, so that vectorised sums always group the same positions alike."""


class KVCache:
    """Per layer one key and one value array ``[rows, heads, capacity, dim]``, float32.

    The leading axis is the row, so the first rows of every array are contiguous and go into a graph as they are.
    Positions beyond what was written hold zeros; graphs mask them by length.
    """

    def __init__(self, layers: int, rows: int, heads: int, dim: int) -> None:
        self.capacity = ALIGNMENT
        self._lengths = np.zeros(rows, np.int64)
        self._k = [np.zeros((rows, heads, ALIGNMENT, dim), np.float32) for _ in range(layers)]
        self._v = [np.zeros((rows, heads, ALIGNMENT, dim), np.float32) for _ in range(layers)]

    def keys(self, rows: slice = slice(None)) -> list[Float]:
        """Key arrays of these rows, without copying."""
        return [k[rows] for k in self._k]

    def values(self, rows: slice = slice(None)) -> list[Float]:
        """Value arrays of these rows, without copying."""
        return [v[rows] for v in self._v]

    def fit(self, length: int) -> None:
        """Make room for `length` positions in a row, and give back room of long sequences that have left."""
        length = max(length, int(self._lengths.max()))
        if self.capacity < length or self.capacity > 4 * (length + ALIGNMENT):
            # A quarter to spare, so that copying stays a small share.
            capacity = -(-(length + length // 4) // ALIGNMENT) * ALIGNMENT
            self._k, self._v = ([self._resized(a, capacity) for a in arrays] for arrays in (self._k, self._v))
            self.capacity = capacity

    def write(self, rows: slice, start: int, new_k: Sequence[Float], new_v: Sequence[Float]) -> None:
        """Put ``[rows, heads, n, dim]`` keys and values at positions ``start..start+n``, for which `fit` made room."""
        stop = start + new_k[0].shape[2]
        self._lengths[rows] = stop
        for array, new in zip((*self._k, *self._v), (*new_k, *new_v), strict=True):
            array[rows, :, start:stop] = new

    def append(self, lengths: NDArray[np.int64], new_k: Sequence[Float], new_v: Sequence[Float]) -> None:
        """Put ``[n, heads, 1, dim]`` keys and values into rows 0..n-1, each at its own position `lengths` [n]."""
        n, heads, _, dim = new_k[0].shape
        self._lengths[:n] = lengths + 1
        # One index over (row, head, position): numpy writes along it several times faster than along two.
        lines = (np.arange(n * heads).reshape(n, heads) * self.capacity + lengths[:, None]).ravel()
        for array, new in zip((*self._k, *self._v), (*new_k, *new_v), strict=True):
            array.reshape(-1, dim)[lines] = new.reshape(-1, dim)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` over row `target`."""
        self._lengths[target] = length
        for array in (*self._k, *self._v):
            array[target, :, :length] = array[source, :, :length]

    def release(self, row: int) -> None:
        """Zero a row."""
        for array in (*self._k, *self._v):
            array[row, :, : self._lengths[row]] = 0
        self._lengths[row] = 0

    def _resized(self, array: Float, capacity: int) -> Float:
        other = np.zeros((*array.shape[:2], capacity, array.shape[3]), np.float32)
        for row, length in enumerate(self._lengths):
            other[row, :, :length] = array[row, :, :length]
        return other
