"""Work of many streams in shared calls.

A stream's step is a generator that yields one `Job` at a time and is sent its result, so that its code reads as if it
ran alone. `Rounds` holds the steps of all streams and gives each call to the most urgent job and whoever can join it:
what is ready runs, nothing waits for a batch to fill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out")
T = TypeVar("T")


class Network(Protocol[In, Out]):
    """Something that computes for several streams in one call."""

    def joins(self, batch: Sequence[In], job: In, /) -> bool:
        """Whether `job` may join a call that already holds `batch`, which is not empty."""
        ...

    def __call__(self, batch: Sequence[In], /) -> list[Out]:
        """Results in the order of `batch`, each what it would be alone."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One call that a stream needs: a network and this stream's inputs."""

    network: Network[Any, Any]
    inputs: Any


Steps = Generator[Job | None, Any, T]
"""A stream's work: yields jobs, is sent their results, returns a value. None waits for what other streams do."""


def alone(steps: Steps[T]) -> T:
    """Carry out steps that wait for nobody."""
    result = None
    while True:
        try:
            job = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        assert job is not None
        (result,) = job.network([job.inputs])


@dataclass(slots=True, eq=False)
class Task:
    """Steps in progress.

    Attributes:
        steps: not yet started when given to `Rounds`.
        urgency: smaller goes first.
        done: called with what the steps return.
        failed: called instead with what they, or a call they were in, raise.
    """

    steps: Steps[Any]
    urgency: int
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    job: Job | None = None
    called: bool = False  # its job is in a call


@dataclass(slots=True, eq=False)
class Call:
    """Jobs of several tasks for one network."""

    network: Network[Any, Any]
    tasks: list[Task]
    batch: list[Any]
    results: list[Any] = field(default_factory=list)
    error: Exception | None = None
    seconds: float = 0.0  # it took

    def run(self) -> None:
        """Compute; any thread may do it."""
        began = time.perf_counter()
        try:
            self.results = self.network(self.batch)
        except Exception as error:
            self.error = error
        self.seconds = time.perf_counter() - began


class Rounds:
    """The steps of all streams. Not thread-safe: one thread calls its methods.

    Args:
        batch: most jobs in one call.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._tasks: list[Task] = []

    def add(self, task: Task) -> None:
        """Start a task."""
        self._tasks.append(task)
        self._go_on(task, None)

    def drop(self, task: Task, reason: Exception) -> None:
        """End a task where it is; nothing happens if it has ended."""
        if task in self._tasks:
            self._end(task)
            task.failed(reason)
            self._wake()

    def call(self) -> Call | None:
        """The next call, to be given to `finish` when it has run: for the most urgent job and who may join it."""
        ready = sorted((t for t in self._tasks if t.job and not t.called), key=lambda task: task.urgency)
        if not ready:
            return None
        call = Call(_job(ready[0]).network, [], [])
        for task in ready:
            job = _job(task)
            if job.network is call.network and (not call.batch or self._joins(call, job)):
                task.called = True
                call.tasks.append(task)
                call.batch.append(job.inputs)
        return call

    def finish(self, call: Call) -> None:
        """Go on with the tasks of a call that has run; then who waited for others looks again."""
        live = [task for task in call.tasks if task in self._tasks]
        error, call.error = call.error, None  # an error knows the frame that knows the call
        for task in live:
            task.called = False
            if error is not None:
                self._end(task)
                task.failed(error)
            else:
                self._go_on(task, call.results[call.tasks.index(task)])
        self._wake()

    def _joins(self, call: Call, job: Job) -> bool:
        return len(call.batch) < self._batch and call.network.joins(call.batch, job.inputs)

    def _wake(self) -> None:
        for task in [task for task in self._tasks if task.job is None]:
            if task in self._tasks:  # what another one's end set off may have ended this one
                self._go_on(task, None)

    def _go_on(self, task: Task, result: Any) -> None:
        try:
            task.job = task.steps.send(result)
        except StopIteration as end:
            self._end(task)
            task.done(end.value)
        except Exception as error:
            self._end(task)
            task.failed(error)

    def _end(self, task: Task) -> None:
        self._tasks.remove(task)
        task.steps.close()


def _job(task: Task) -> Job:
    assert task.job is not None
    return task.job
