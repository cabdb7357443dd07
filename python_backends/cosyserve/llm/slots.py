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

    def reserve(self, length: int) -> None:
        """Make room for `length` positions; grows by a quarter, so copying stays a small share."""
        if length <= self.capacity:
            return
        wanted = max(length, self.capacity + self.capacity // 4)
        capacity = -(-wanted // GRANULE) * GRANULE
        self._k = [_wider(k, capacity) for k in self._k]
        self._v = [_wider(v, capacity) for v in self._v]
        self.capacity = capacity

    def write(self, rows: slice, start: int, new_k: Sequence[Float], new_v: Sequence[Float]) -> None:
        """Put ``[rows, heads, n, dim]`` keys and values at positions ``start..start+n``."""
        stop = start + new_k[0].shape[2]
        self.reserve(stop)
        for layer, (k, v) in enumerate(zip(new_k, new_v, strict=True)):
            self._k[layer][rows, :, start:stop] = k
            self._v[layer][rows, :, start:stop] = v

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` over row `target`."""
        for array in (*self._k, *self._v):
            array[target, :, :length] = array[source, :, :length]


def _wider(array: Float, capacity: int) -> Float:
    grown = np.zeros((*array.shape[:2], capacity, array.shape[3]), np.float32)
    grown[:, :, : array.shape[2]] = array
    return grown
