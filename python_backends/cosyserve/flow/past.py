"""Keys and values of one stream's attention layers, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

RESERVED = 1024
"""Frames to reserve address space for: 20 s. Memory is taken page by page as frames arrive."""


class Past:
    """Per layer one key and one value array ``[frames, rows, heads, dim]``, float32, that grows without moving.

    A graph reads the first `length` frames of each array as they lie. It needs at least one, so an empty past shows a
    frame of zeros, which graphs mask by length.
    """

    def __init__(self, layers: int, rows: int, heads: int, dim: int) -> None:
        self.length = 0
        self._layers = layers
        self._arrays = np.zeros((2 * layers, RESERVED, rows, heads, dim), np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of the frames held."""
        return self._arrays[:, : self.length].nbytes

    def keys(self) -> list[Float]:
        """Keys ``[length, rows, heads, dim]`` of each layer, without copying."""
        return [array[: max(1, self.length)] for array in self._arrays[: self._layers]]

    def values(self) -> list[Float]:
        """Values ``[length, rows, heads, dim]`` of each layer, without copying."""
        return [array[: max(1, self.length)] for array in self._arrays[self._layers :]]

    def append(self, keys: Sequence[Float], values: Sequence[Float]) -> None:
        """Add ``[n, rows, heads, dim]`` keys and values of each layer."""
        stop = self.length + len(keys[0])
        if stop > self._arrays.shape[1]:
            self._arrays = self._moved(max(stop, 2 * self._arrays.shape[1]))
        for array, new in zip(self._arrays, [*keys, *values], strict=True):
            array[self.length : stop] = new
        self.length = stop

    def copy(self) -> Past:
        """An independent copy."""
        twin = object.__new__(Past)
        twin.length, twin._layers = self.length, self._layers
        twin._arrays = self._moved(self._arrays.shape[1])
        return twin

    def _moved(self, frames: int) -> Float:
        arrays = np.zeros((len(self._arrays), frames, *self._arrays.shape[2:]), np.float32)
        arrays[:, : self.length] = self._arrays[:, : self.length]
        return arrays
