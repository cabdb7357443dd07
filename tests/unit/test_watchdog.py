"""A stage that hangs ends the process; one that is busy, or waits for its caller, does not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from cosyserve.limits import SIGN_OF_LIFE_SECONDS, STILL_SECONDS
from cosyserve.triton.watchdog import ModelProcess, Watchdog


@dataclass
class Llm:
    """Model process with a clock that the test controls.

    Attributes:
        answers: whether it gives signs of life; None for Triton's error in its place.
    """

    answers: bool | None = True
    now: float = 0.0
    cpu: float = 0.0
    pings: int = 0

    async def ping(self) -> bool:
        self.pings += 1
        if self.answers is False:
            await asyncio.Event().wait()
        return bool(self.answers)

    def process(self) -> ModelProcess:
        return ModelProcess("llm", self.ping, clock=lambda: self.now, cpu=lambda: self.cpu)

    async def after(self, process: ModelProcess, seconds: float, cpu: float = 0.0) -> bool:
        """Advance the clock, and return whether the process counts as hanging."""
        self.now += seconds
        self.cpu += cpu
        told = process.stands_still()
        for _ in range(3):  # a ping that is sent now may be answered
            await asyncio.sleep(0)
        return told


SILENT = pytest.mark.parametrize("answers", [False, None], ids=["no answer", "Triton's error"])


async def test_no_ping_is_sent_while_no_call_waits() -> None:
    llm = Llm(answers=False)
    process = llm.process()
    assert not await llm.after(process, 100 * STILL_SECONDS)
    assert process.quiet
    assert llm.pings == 0


async def test_no_ping_is_sent_while_answers_arrive() -> None:
    llm = Llm(answers=False)
    process = llm.process()
    with process.waiting():
        for _ in range(20):
            with process.waiting():
                assert not await llm.after(process, STILL_SECONDS / 2)
                process.answered()
    assert llm.pings == 0


async def test_a_process_that_answers_pings_may_take_its_time() -> None:
    llm = Llm()
    process = llm.process()
    with process.waiting():
        for _ in range(20):
            assert not await llm.after(process, STILL_SECONDS)
    assert 0 < llm.pings <= 20


@SILENT
async def test_a_process_that_answers_nothing_and_computes_nothing_stands_still(answers: bool | None) -> None:
    llm = Llm(answers)
    process = llm.process()
    with process.waiting():
        assert not await llm.after(process, STILL_SECONDS)
        assert not await llm.after(process, SIGN_OF_LIFE_SECONDS / 2)
        assert await llm.after(process, SIGN_OF_LIFE_SECONDS / 2)


@SILENT
async def test_callers_who_were_told_an_error_by_triton_do_not_clear_it(answers: bool | None) -> None:
    """Triton 2.51 abandons a request to a stopped process after a second."""
    llm = Llm(answers)
    process = llm.process()
    for _ in range(3):
        with process.waiting():
            assert not await llm.after(process, 1.0)
    assert not process.quiet
    assert await llm.after(process, SIGN_OF_LIFE_SECONDS)


async def test_a_ping_that_fails_is_no_answer() -> None:
    async def fail() -> bool:
        raise RuntimeError("no such model")

    llm = Llm()
    process = ModelProcess("llm", fail, clock=lambda: llm.now, cpu=lambda: 0.0)
    with process.waiting():
        assert not await llm.after(process, STILL_SECONDS)
        assert await llm.after(process, SIGN_OF_LIFE_SECONDS)


async def test_a_ping_clears_it() -> None:
    llm = Llm()
    process = llm.process()
    with process.waiting():
        pass
    assert not await llm.after(process, STILL_SECONDS)
    assert process.quiet


async def test_a_process_that_computes_is_busy() -> None:
    """A long call that holds the interpreter's lock answers no ping."""
    llm = Llm(answers=False)
    process = llm.process()
    with process.waiting():
        assert not await llm.after(process, STILL_SECONDS)
        for _ in range(5):
            assert not await llm.after(process, SIGN_OF_LIFE_SECONDS, cpu=SIGN_OF_LIFE_SECONDS / 10)
            assert not await llm.after(process, 0.0)
        assert await llm.after(process, SIGN_OF_LIFE_SECONDS)


async def test_the_process_ends_when_a_stage_stands_still() -> None:
    llm, ended = Llm(answers=False), asyncio.Event()
    process = llm.process()
    watchdog = Watchdog([process], stops=lambda: False, end=lambda code: ended.set())
    utterance = asyncio.create_task(asyncio.sleep(60))
    with watchdog.watching(utterance), process.waiting():
        await llm.after(process, STILL_SECONDS)
    utterance.cancel()  # no other call waits
    llm.now += SIGN_OF_LIFE_SECONDS
    async with asyncio.timeout(10):
        await ended.wait()


async def test_a_server_that_stops_cancels_what_runs_and_says_why() -> None:
    watchdog = Watchdog([], stops=lambda: True, end=lambda code: pytest.fail("ended"))
    utterance = asyncio.create_task(asyncio.sleep(60))
    async with asyncio.timeout(10):
        with watchdog.watching(utterance), pytest.raises(asyncio.CancelledError):
            await utterance
    assert watchdog.stopped is not None
    assert watchdog.stopped.code == "UNAVAILABLE"


async def test_nothing_is_watched_without_utterances() -> None:
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        return False

    watchdog = Watchdog([], stops=look)
    utterance = asyncio.create_task(asyncio.sleep(0))
    with watchdog.watching(utterance):
        await utterance
    await asyncio.sleep(0.5)
    assert looks <= 1
