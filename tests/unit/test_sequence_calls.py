"""A sequence that starts also ends, for any order in which its steps reach Triton."""

from __future__ import annotations

import asyncio

import pytest

from cosyserve.errors import StageFailed
from cosyserve.pipeline.sequence_calls import SequenceCalls


class Batcher:
    """Triton's sequence batcher: it refuses the end of a sequence that has not started."""

    def __init__(self) -> None:
        self.live = False
        self.ends = 0
        self.way = asyncio.Event()  # set: a start arrives
        self.refused = asyncio.Event()

    async def start(self) -> str:
        await self.way.wait()
        self.live = True
        return "started"

    async def end(self) -> str:
        self.ends += 1
        if not self.live:
            self.refused.set()
            raise StageFailed("must specify the START flag")
        self.live = False
        return "ended"


async def test_an_end_that_overtakes_the_start_is_sent_again() -> None:
    batcher, calls = Batcher(), SequenceCalls()
    caller = asyncio.create_task(calls.send(1, batcher.start, end=False))
    await asyncio.sleep(0)
    caller.cancel()
    ending = asyncio.create_task(calls.send(1, batcher.end, end=True))
    await batcher.refused.wait()
    batcher.way.set()
    assert await asyncio.wait_for(ending, 5) == "ended"
    assert (batcher.live, batcher.ends) == (False, 2)
    assert caller.cancelled()


async def test_an_end_is_sent_once_when_nothing_else_is_in_progress() -> None:
    batcher, calls = Batcher(), SequenceCalls()
    batcher.way.set()
    assert await calls.send(1, batcher.start, end=False) == "started"
    assert await calls.send(1, batcher.end, end=True) == "ended"
    with pytest.raises(StageFailed, match="START"):
        await calls.send(1, batcher.end, end=True)
    assert batcher.ends == 2


async def test_a_start_that_fails_after_its_caller_left_leaves_the_refusal() -> None:
    batcher, calls = Batcher(), SequenceCalls()

    async def failing() -> str:
        await batcher.way.wait()
        raise StageFailed("no memory")

    caller = asyncio.create_task(calls.send(1, failing, end=False))
    await asyncio.sleep(0)
    caller.cancel()
    ending = asyncio.create_task(calls.send(1, batcher.end, end=True))
    await asyncio.sleep(0)
    batcher.way.set()
    with pytest.raises(StageFailed, match="START"):
        await asyncio.wait_for(ending, 5)
    assert batcher.ends == 2


async def test_sequences_do_not_wait_for_each_other() -> None:
    batcher, other, calls = Batcher(), Batcher(), SequenceCalls()
    caller = asyncio.create_task(calls.send(1, batcher.start, end=False))
    await asyncio.sleep(0)
    with pytest.raises(StageFailed, match="START"):
        await asyncio.wait_for(calls.send(2, other.end, end=True), 5)
    batcher.way.set()
    assert await caller == "started"
