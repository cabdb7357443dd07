"""Detached calls: the last call to a stage is made even if nothing waits for it."""

from __future__ import annotations

import asyncio
import gc

import pytest

from cosyserve.pipeline import detached
from cosyserve.pipeline.detached import run_detached


async def test_a_stage_that_works_is_waited_for() -> None:
    told = []

    async def call() -> None:
        await asyncio.sleep(0.01)
        told.append("end")

    await run_detached(call())
    assert told == ["end"]


async def test_a_stage_that_hangs_is_not_waited_for_and_gets_the_call_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached, "LEAVE_SECONDS", 0.01)
    works, told = asyncio.Event(), asyncio.Event()

    async def call() -> None:
        await works.wait()
        told.set()

    await run_detached(call())
    assert not told.is_set()
    gc.collect()
    works.set()
    async with asyncio.timeout(5):
        await told.wait()


async def test_errors_of_detached_calls_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    async def call() -> None:
        raise OSError("gone")

    await run_detached(call())
    gc.collect()
    assert not caplog.records  # asyncio would log an exception that was never retrieved


async def test_a_caller_cancelled_meanwhile_has_made_the_call() -> None:
    told = asyncio.Event()

    async def call() -> None:
        await asyncio.sleep(0.01)
        told.set()

    waiting = asyncio.create_task(run_detached(call()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5):
        await told.wait()
