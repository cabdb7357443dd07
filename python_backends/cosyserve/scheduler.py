"""The scheduler of flow and vocoder: it batches the network calls of many streams.

A step of a stream is a generator that yields one `Job` at a time and is sent its result, so that its code reads as if
the stream ran alone. `Scheduler` holds the steps of all streams. Each batch is for the most urgent job and every job
that can share its call: what is ready runs, nothing waits for a batch to fill. (The LLM has a scheduler of its own,
`cosyserve.llm.scheduler`: its sequences run in lockstep.)
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
    """A network that computes for several streams in one call."""

    def can_batch(self, batch: Sequence[In], job: In, /) -> bool:
        """Whether the inputs `job` may share a call with those of `batch`, which is not empty."""
        ...

    def __call__(self, batch: Sequence[In], /) -> list[Out]:
        """Results in the order of `batch`; each equals, to the bit, what the inputs give alone."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One call that a stream needs: a network and this stream's inputs."""

    network: Network[Any, Any]
    inputs: Any


Computation = Generator[Job | None, Any, T]
"""A step of a stream: yields jobs, is sent their results, returns a value. It yields None to wait for other streams."""


def run_alone(steps: Computation[T]) -> T:
    """Run a step that waits for no other stream."""
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
    """A step in progress.

    Attributes:
        computation: not yet started when given to `Scheduler`.
        urgency: smaller goes first.
        done: called with what the computation returns.
        failed: called instead with what it, or a batch it was in, raises.
        job: that it waits for; None while it waits for other streams.
        scheduled: its job is in a batch that has not come back.
    """

    computation: Computation[Any]
    urgency: int
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    job: Job | None = None
    scheduled: bool = False


@dataclass(slots=True, eq=False)
class Batch:
    """Jobs of several tasks for one call of one network.

    Attributes:
        inputs: of each task's job.
        results: in the order of `tasks`, once it has run.
        error: what the call raised.
        seconds: that the call took.
    """

    network: Network[Any, Any]
    tasks: list[Task]
    inputs: list[Any]
    results: list[Any] = field(default_factory=list)
    error: Exception | None = None
    seconds: float = 0.0

    def run(self) -> None:
        """Compute; any thread may do it."""
        began = time.perf_counter()
        try:
            self.results = self.network(self.inputs)
        except Exception as error:
            self.error = error
        self.seconds = time.perf_counter() - began


class Scheduler:
    """The steps of all streams. Not thread-safe: one thread calls its methods.

    Args:
        max_batch: most jobs in one batch.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._tasks: list[Task] = []

    def add(self, task: Task) -> None:
        """Start a task."""
        self._tasks.append(task)
        self._resume(task, None)

    def cancel(self, task: Task, reason: Exception) -> None:
        """End a task where it is; nothing happens if it has ended."""
        if task in self._tasks:
            self._remove(task)
            task.failed(reason)
            self._resume_waiting()

    def schedule(self) -> Batch | None:
        """The next batch, for the most urgent job and those that can share its call; None when no job is ready.

        Run it, then give it to `update`.
        """
        ready = sorted((t for t in self._tasks if t.job and not t.scheduled), key=lambda task: task.urgency)
        if not ready:
            return None
        batch = Batch(_job(ready[0]).network, [], [])
        for task in ready:
            job = _job(task)
            if job.network is batch.network and (not batch.inputs or self._fits(batch, job)):
                task.scheduled = True
                batch.tasks.append(task)
                batch.inputs.append(job.inputs)
        return batch

    def update(self, batch: Batch) -> None:
        """Resume the tasks of a batch that has run, then those that wait for other streams."""
        live = [task for task in batch.tasks if task in self._tasks]
        error, batch.error = batch.error, None  # an error refers to the frame that refers to the batch
        for task in live:
            task.scheduled = False
            if error is not None:
                self._remove(task)
                task.failed(error)
            else:
                self._resume(task, batch.results[batch.tasks.index(task)])
        self._resume_waiting()

    def _fits(self, batch: Batch, job: Job) -> bool:
        return len(batch.inputs) < self._max_batch and batch.network.can_batch(batch.inputs, job.inputs)

    def _resume_waiting(self) -> None:
        for task in [task for task in self._tasks if task.job is None]:
            if task in self._tasks:  # the end of another one may have ended this one
                self._resume(task, None)

    def _resume(self, task: Task, result: Any) -> None:
        try:
            task.job = task.computation.send(result)
        except StopIteration as end:
            self._remove(task)
            task.done(end.value)
        except Exception as error:
            self._remove(task)
            task.failed(error)

    def _remove(self, task: Task) -> None:
        self._tasks.remove(task)
        task.computation.close()


def _job(task: Task) -> Job:
    assert task.job is not None
    return task.job
