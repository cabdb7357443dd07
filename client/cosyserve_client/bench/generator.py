"""Closed and open loops of utterances."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cosyserve_client.bench.results import OK, LoadResult, Result
from cosyserve_client.bench.speaker import Speaker

_PAUSE_SECONDS = 0.1  # after a refusal or an error, so that a closed loop does not flood a full server


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a load lasts: a number of utterances or, when that is None, the seconds within which they start."""

    utterances: int | None
    seconds: float = 0.0

    def bound(self, starts: Iterable[float]) -> Iterator[float]:
        """Those of `starts`, in seconds after the start of the load, that are within the budget."""
        if self.utterances is not None:
            return itertools.islice(starts, self.utterances)
        return itertools.takewhile(lambda start: start < self.seconds, starts)


@dataclass(frozen=True, slots=True)
class Closed:
    """`concurrency` clients, each of which starts an utterance when its last one has ended."""

    concurrency: int

    @property
    def label(self) -> tuple[str, float]:
        """Name and value of this load."""
        return "concurrency", self.concurrency

    def warmup(self, rounds: int) -> Budget:
        """`rounds` utterances of each client."""
        return Budget(rounds * self.concurrency)

    async def run(self, speaker: Speaker, budget: Budget) -> list[Result]:
        """All utterances, in the order in which they ended."""
        done: list[Result] = []
        starts = enumerate(budget.bound(_whenever(speaker.now)))

        async def client() -> None:
            for number, start in starts:
                done.append(utterance := await speaker.speak(number, start))
                if utterance.outcome != OK:
                    await asyncio.sleep(_PAUSE_SECONDS)

        async with asyncio.TaskGroup() as clients:
            for _ in range(self.concurrency):
                clients.create_task(client())
        return done


@dataclass(frozen=True, slots=True)
class Open:
    """Arrivals at random, `rate` a second on average, whatever the server does.

    A server that falls behind is measured with all the waiting this causes, because an utterance counts from the moment
    that the schedule gives it (no coordinated omission).

    Attributes:
        rate: mean utterances a second of the Poisson process.
        seed: of the schedule.
    """

    rate: float
    seed: int

    @property
    def label(self) -> tuple[str, float]:
        """Name and value of this load."""
        return "rate", self.rate

    def warmup(self, rounds: int) -> Budget:
        """`rounds` utterances."""
        return Budget(rounds)

    async def run(self, speaker: Speaker, budget: Budget) -> list[Result]:
        """All utterances, in the order in which they were due."""
        tasks = []
        async with asyncio.TaskGroup() as group:
            for number, due in enumerate(budget.bound(self.schedule())):
                await asyncio.sleep(max(0.0, due - speaker.now()))
                tasks.append(group.create_task(speaker.speak(number, due)))
        return [task.result() for task in tasks]

    def schedule(self) -> Iterator[float]:
        """Seconds after the start of the load of each arrival; the first is at 0."""
        random = np.random.default_rng(self.seed)
        gaps = (float(random.exponential(1 / self.rate)) for _ in itertools.count())
        return itertools.accumulate(gaps, initial=0.0)


Load = Closed | Open


async def run_load(load: Load, speaker: Speaker, budget: Budget) -> LoadResult:
    """Runs `load` with a `speaker` made for it."""
    cpu = time.process_time()
    utterances = await load.run(speaker, budget)
    return LoadResult(load.label, speaker.now(), time.process_time() - cpu, utterances)


def _whenever(now: Callable[[], float]) -> Iterator[float]:
    while True:
        yield now()
