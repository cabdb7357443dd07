"""Chunks of several streams in one call of a network whose past lies in pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosyserve.runtimes.buckets import BATCH, BLOCKS
from cosyserve.runtimes.torch.cuda_graphs import CudaGraphs, Function, batches, bucket
from cosyserve.runtimes.torch.paged_kv_cache import EMPTY, SCRATCH, PagePool, PageTable

Array = NDArray[Any]
J = TypeVar("J", contravariant=True)


class PagedNetwork(Generic[J]):
    """A `Network` of jobs over a function on the device.

    Args:
        function: called with ``table`` (pages of the past, right-aligned behind `EMPTY` ones) int64 ``[B, room]``,
            ``count`` (pages of it that are filled), ``last`` (newest page) and ``fresh`` (page to fill, where the chunk
            is a whole one) int64 ``[B]``, then with the arrays of the jobs stacked; returns a tensor ``[B, ...]``.
        device: where it runs.
        pages: what is handed out for whole chunks.
        chunk: positions of a whole chunk. Only a stream's last chunk may have another length.
        chain: the job's pages in this network.
        arrays: the job's arrays; the first one's last axis runs along time.
    """

    def __init__(
        self,
        function: Function,
        device: torch.device,
        pages: PagePool,
        chunk: int,
        chain: Callable[[J], PageTable],
        arrays: Callable[[J], Sequence[Array]],
    ) -> None:
        self._run = CudaGraphs(function, device)
        self.pages = pages
        self._chunk = chunk
        self._chain = chain
        self._arrays = arrays

    def can_batch(self, batch: Sequence[J], job: J) -> bool:
        """Chunks of one length, while the pages read together stay within the largest recorded call."""
        streams = [*batch, job]
        room = max(len(self._chain(other).pages) for other in streams)
        fits = len(streams) <= BATCH[-1] and len(streams) * room <= BATCH[-1] * BLOCKS[-1]
        return fits and self._positions(job) == self._positions(batch[0])

    def __call__(self, batch: Sequence[J]) -> list[NDArray[np.float32]]:
        """Run a chunk of each stream.

        Raises:
            MemoryTaken: no page is free. No stream has changed then.
        """
        chains = [self._chain(job) for job in batch]
        whole = self._positions(batch[0]) == self._chunk
        fresh = self.pages.take(len(batch)) if whole else []
        rows = bucket(BATCH, len(batch)) if whole else len(batch)
        room = bucket(BLOCKS, max(len(chain.pages) for chain in chains))
        places = _places(chains, rows, room)
        places["fresh"][: len(fresh)] = [page.number for page in fresh]
        stacked = [_stacked(arrays, rows) for arrays in zip(*map(self._arrays, batch), strict=True)]
        (out,) = self._run(*_tensors([*places.values(), *stacked]))
        results = list(out[: len(batch)].float().cpu().numpy())
        for chain, page in zip(chains, fresh, strict=whole):
            chain.append(page)
        return results

    def record(self, job: J, streams: int) -> None:
        """Record the ladder up to this many streams; `job` tells the shapes of a whole chunk."""
        for rows in reversed(batches(streams)):
            for room in reversed(BLOCKS):
                places = _places([], rows, room)
                stacked = [_stacked([array], rows) for array in self._arrays(job)]
                self._run.record(*_tensors([*places.values(), *stacked]))

    def _positions(self, job: J) -> int:
        return int(self._arrays(job)[0].shape[-1])


def _places(chains: Sequence[PageTable], rows: int, room: int) -> dict[str, NDArray[np.int64]]:
    table = np.full((rows, room), EMPTY, np.int64)
    count, last = np.zeros(rows, np.int64), np.full(rows, EMPTY, np.int64)
    for row, chain in enumerate(chains):
        if chain.pages:
            table[row, -len(chain.pages) :] = [page.number for page in chain.pages]
            count[row], last[row] = len(chain.pages), chain.pages[-1].number
    return {"table": table, "count": count, "last": last, "fresh": np.full(rows, SCRATCH, np.int64)}


def _stacked(arrays: Sequence[Array], rows: int) -> Array:
    out = np.zeros((rows, *arrays[0].shape), arrays[0].dtype)
    out[: len(arrays)] = arrays
    return out


def _tensors(arrays: Sequence[Array]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]
