"""Chunks of several streams in one call of a network whose past lies in pages."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosyserve.runtimes.buckets import BATCH, BLOCKS, batches, bucket
from cosyserve.runtimes.memory import most_pages
from cosyserve.runtimes.torch.cuda_graphs import CudaGraphs
from cosyserve.runtimes.torch.paged_kv_cache import EMPTY, SCRATCH, PagePool, PageTable

Array = NDArray[Any]


class ChunkJob(Protocol):
    """What the jobs of both networks have."""

    @property
    def chunks(self) -> int:
        """Whole chunks that it is; one chunk may have any length."""
        ...


J = TypeVar("J", bound=ChunkJob, contravariant=True)


class Places(NamedTuple):
    """Where the streams of a call have their pages, int64.

    Attributes:
        table: pages of the past, right-aligned behind `EMPTY` ones, ``[B, room]``.
        filled: pages of it that hold something, ``[B]``.
        position: pages before this chunk, those that a window has trimmed included, ``[B]``.
        last: the newest page, ``[B]``.
        fresh: the pages to fill with whole chunks, ``[B, chunks]``; `SCRATCH` for any other.
        valid: positions of the chunk that are there, ``[B]``; those behind them only pad it.
    """

    table: Tensor
    filled: Tensor
    position: Tensor
    last: Tensor
    fresh: Tensor
    valid: Tensor


Function = Callable[..., tuple[Tensor, ...]]
"""Takes `Places`, then the arrays of the jobs stacked, and the number of chunks in each as `chunks`; returns a tensor
``[B, ..., time]``."""


class PagedNetwork(Generic[J]):
    """A `Network` of jobs over a function on the device.

    A stream's last chunk may be shorter than the others. It is padded to a whole one, so that it runs in the recorded
    shape and shares a call with whole ones; full attention runs all positions in one longer chunk.

    Args:
        function: see `Function`.
        device: where it runs.
        pages: what is handed out for whole chunks.
        chunk: positions of a whole chunk.
        chain: the job's pages in this network.
        arrays: the job's arrays; the first one's last axis runs along time.
        padded: how many of the arrays run along time, in the last axis.
        masks: whether the function ignores what only pads a chunk; otherwise short chunks run as they are.
        graphs: whether calls may be recorded.
    """

    def __init__(
        self,
        function: Function,
        device: torch.device,
        pages: PagePool,
        chunk: int,
        chain: Callable[[J], PageTable],
        arrays: Callable[[J], Sequence[Array]],
        *,
        padded: int,
        masks: bool = True,
        graphs: bool = True,
    ) -> None:
        def run(*tensors: Tensor, chunks: int) -> tuple[Tensor, ...]:
            places = len(Places._fields)
            return function(Places(*tensors[:places]), *tensors[places:], chunks=chunks)

        self._run = CudaGraphs(run, device, enabled=graphs)
        self.pages = pages
        self._chunk = chunk
        self._chain = chain
        self._arrays = arrays
        self._padded = padded
        self._masks = masks
        self._most_pages = most_pages(pages.count)

    def can_batch(self, batch: Sequence[J], job: J) -> bool:
        """Chunks of one width whose pasts need the same recorded room, so that no stream pays for a longer one's.

        A stream beyond the longest recorded room runs alone, and so do several chunks of one. Both bounds are on the
        memory that one call takes.
        """
        room = self._room(batch[0])
        return (
            job.chunks == batch[0].chunks == 1
            and len(batch) < BATCH[-1]
            and bucket(BATCH, len(batch) + 1) * room <= self._most_pages
            and self._room(job) == room
            and self._width(job) == self._width(batch[0])
        )

    def __call__(self, batch: Sequence[J]) -> list[NDArray[np.float32]]:
        """Run a chunk of each stream.

        Raises:
            MemoryTaken: no page is free. No stream has changed then.
        """
        chains = [self._chain(job) for job in batch]
        lengths = [self._length(job) for job in batch]
        width, chunks = self._width(batch[0]), batch[0].chunks
        grown = [row for row, length in enumerate(lengths) if length == chunks * self._chunk]
        taken = iter(self.pages.take(chunks * len(grown)))
        fresh = {row: list(itertools.islice(taken, chunks)) for row in grown}
        rows = bucket(BATCH, len(batch)) if width == self._chunk else len(batch)
        places = _places(chains, lengths, rows, max(map(self._room, batch)), chunks)
        for row, pages in fresh.items():
            places.fresh[row] = torch.tensor([page.number for page in pages])
        stacked = self._stacked([self._arrays(job) for job in batch], rows, width)
        (out,) = self._run(*places, *stacked, chunks=chunks)
        results = out[: len(batch)].float().cpu().numpy()
        for row, pages in fresh.items():
            for page in pages:
                chains[row].append(page)
        ratio = results.shape[-1] // width
        return [result[..., : ratio * length] for result, length in zip(results, lengths, strict=True)]

    def record(self, job: J, streams: int, chunks: Sequence[int] = (1,)) -> None:
        """Record the ladder up to this many streams, and of so many chunks for one; `job` is a chunk of one."""
        for count in sorted(chunks, reverse=True):
            for rows in reversed(batches(streams) if count == 1 else (1,)):
                for room in reversed([room for room in BLOCKS if rows * room <= self._most_pages]):
                    width = count * self._chunk
                    places = _places([], [], rows, room, count, valid=width)
                    self._run.record(*places, *self._stacked([self._arrays(job)], rows, width), chunks=count)

    def _room(self, job: J) -> int:
        return bucket(BLOCKS, len(self._chain(job).pages))

    def _length(self, job: J) -> int:
        return int(self._arrays(job)[0].shape[-1])

    def _width(self, job: J) -> int:
        """Positions of the call that a job needs."""
        length = self._length(job)
        return self._chunk if self._masks and length < self._chunk else length

    def _stacked(self, jobs: Sequence[Sequence[Array]], rows: int, width: int) -> list[Tensor]:
        stacked = []
        for index, arrays in enumerate(zip(*jobs, strict=True)):
            first = arrays[0]
            shape = (*first.shape[:-1], width) if index < self._padded else first.shape
            out = np.zeros((rows, *shape), first.dtype)
            for row, array in zip(out, arrays, strict=False):
                row[..., : array.shape[-1]] = array
            stacked.append(torch.from_numpy(out))
        return stacked


def _places(
    chains: Sequence[PageTable], lengths: Sequence[int], rows: int, room: int, chunks: int, valid: int = 1
) -> Places:
    """Places of these streams; further rows only fill up the batch, with `valid` positions each."""
    table = np.full((rows, room), EMPTY, np.int64)
    last = np.full(rows, EMPTY, np.int64)
    filled, position = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    there = np.full(rows, valid, np.int64)
    for row, (chain, length) in enumerate(zip(chains, lengths, strict=True)):
        if chain.pages:
            table[row, -len(chain.pages) :] = [page.number for page in chain.pages]
            filled[row], last[row] = len(chain.pages), chain.pages[-1].number
        position[row], there[row] = chain.position, length
    fresh = np.full((rows, chunks), SCRATCH, np.int64)
    return Places(*map(torch.from_numpy, (table, filled, position, last, fresh, there)))
