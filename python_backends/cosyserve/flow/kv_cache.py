"""The KV cache of one flow stream, frame by frame."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

RESERVED = 1024
"""Frames to reserve address space for: 20 s. Memory is taken page by page as frames arrive."""

ALIGNMENT = 16
"""Graphs read whole granules, so that vectorised sums always group the same frames alike, alone or in a batch."""


class FlowKVCache:
    """Per layer one key and one value array ``[frames, 2, heads, dim]``, float32, that grows without moving.

    Rows are the conditional and the unconditional one of guidance. Frames behind `length` hold zeros; graphs mask them.

    Args:
        layers: attention layers.
        heads: attention heads.
        dim: channels of a head.
        window: most frames kept, the newest, or as many as were added last if that is more; 0 keeps all.
    """

    def __init__(self, layers: int, heads: int, dim: int, window: int = 0) -> None:
        self.length = 0
        self.count = 0  # frames ever added
        self._window = window
        self._arrays = _reserve(2 * layers, RESERVED, 2, heads, dim)

    @property
    def padded_length(self) -> int:
        """Frames that a graph reads: `length` rounded up to a granule, at least one."""
        return ALIGNMENT * max(1, -(-self.length // ALIGNMENT))

    @property
    def nbytes(self) -> int:
        """Bytes of the frames held."""
        return self._arrays[:, : self.length].nbytes

    def layers(self) -> Float:
        """All layers ``[2 * layers, padded_length, 2, heads, dim]``, keys first, without copying."""
        return self._arrays[:, : self.padded_length]

    def append(self, layers: Sequence[Float]) -> None:
        """Add frames: ``[n, 2, heads, dim]`` for each layer, keys first, then values."""
        new = len(layers[0])
        if self._window and self.length + new > self._window:
            self._trim(self.length + new - self._window)
        stop = self.length + new
        if stop > self._arrays.shape[1]:
            self._grow(max(stop, 2 * self._arrays.shape[1]))
        for array, frames in zip(self._arrays, layers, strict=True):
            array[self.length : stop] = frames
        self.length = stop
        self.count += new

    def _trim(self, frames: int) -> None:
        kept = max(0, self.length - frames)
        for array in self._arrays:
            array[:kept] = array[self.length - kept : self.length].copy()
            array[kept : self.length] = 0
        self.length = kept

    def _grow(self, frames: int) -> None:
        frames = ALIGNMENT * -(-frames // ALIGNMENT)
        arrays = _reserve(len(self._arrays), frames, *self._arrays.shape[2:])
        arrays[:, : self.length] = self._arrays[:, : self.length]
        self._arrays = arrays


def _reserve(*shape: int) -> Float:
    """Zeros whose pages come with the first write and go with the array: the allocator would touch and keep them."""
    pages = mmap.mmap(-1, 4 * math.prod(shape))
    return np.frombuffer(pages, np.float32).reshape(shape)


def collate(caches: Sequence[FlowKVCache], into: Float | None) -> tuple[Float, Float]:
    """The pasts of several streams as one batch.

    Args:
        pasts: one for each stream.
        into: memory of an earlier call for the same streams at the same lengths, to be used again.

    Returns:
        ``[2 * layers, padded_length, 2 * streams, heads, dim]``, conditional rows first, and its memory for the next
        call. For one stream the array is that stream's own, not a copy.
    """
    if len(caches) == 1:
        own = caches[0].layers()
        return own, own
    parts = [past.layers() for past in caches]
    if into is None:
        layers, _, rows, heads, dim = parts[0].shape
        padded_length = max(part.shape[1] for part in parts)
        into = np.zeros((layers, padded_length, rows, len(parts), heads, dim), np.float32)
    for stream, part in enumerate(parts):
        into[:, : part.shape[1], :, stream] = part
    layers, padded_length, rows, streams, heads, dim = into.shape
    return into.reshape(layers, padded_length, rows * streams, heads, dim), into
