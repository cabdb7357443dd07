"""The live sequences of one model: their states, and their steps in shared calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cosyserve.contracts import Tensors
from cosyserve.errors import Cancelled, StageFailed
from cosyserve.scheduler import Batch, Computation, Scheduler, Task


class TritonSequence(Protocol):
    """What a model keeps for one sequence."""

    def begin_step(self, inputs: Tensors) -> Computation[Tensors]:
        """One step of the sequence."""
        ...

    def release(self) -> None:
        """The sequence has ended; free what it holds."""
        ...


class SequenceFactory(Protocol):
    """Opens sequences, and holds what they share."""

    def open(self, inputs: Tensors) -> TritonSequence:
        """A sequence whose first step has these inputs.

        Raises:
            CosyServeError: the inputs do not open one, or there is no memory for it.
        """
        ...

    def empty_outputs(self, inputs: Tensors) -> Tensors:
        """Outputs of a step that does nothing."""
        ...


def seed_of(inputs: Tensors) -> int:
    """The seed in the inputs of a segment's first step, as generators take it: not negative."""
    return int(inputs["seed"][0]) % 2**64 if "seed" in inputs else 0


@dataclass(frozen=True, slots=True, eq=False)
class SequenceRequest:
    """One request of a sequence: one step.

    Attributes:
        sequence: its id.
        start: it is the first.
        end: it is the last.
        urgency: smaller goes first.
        done: called with the outputs.
        failed: called instead with the reason.
    """

    sequence: int
    inputs: Tensors
    start: bool
    end: bool
    urgency: int
    done: Callable[[Tensors], None]
    failed: Callable[[Exception], None]


@dataclass(slots=True, eq=False)
class _Entry:
    sequence: TritonSequence
    task: Task | None = None
    idle_since: float = 0.0


class SequenceTable:
    """All live sequences of one model instance. Not thread-safe: one thread calls its methods.

    Args:
        factory: opens sequences.
        idle_seconds: a sequence without a step for this long is released; its caller is gone.
        max_batch: most sequences in one network call.
    """

    def __init__(self, factory: SequenceFactory, idle_seconds: float, max_batch: int) -> None:
        self._factory = factory
        self._idle_seconds = idle_seconds
        self._live: dict[int, _Entry] = {}
        self._scheduler = Scheduler(max_batch)

    def __len__(self) -> int:
        return len(self._live)

    def schedule(self) -> Batch | None:
        """The next batch to run, for the most urgent step; None when nothing is ready."""
        return self._scheduler.schedule()

    def update(self, batch: Batch) -> None:
        """Resume the steps of a batch that has run."""
        self._scheduler.update(batch)

    def submit(self, request: SequenceRequest) -> None:
        """Start a step. A step that fails ends its sequence; a last step of a sequence that has ended does nothing.

        A last step that comes while another step runs cancels that one.
        """
        self.release_idle()
        try:
            entry = self._resolve(request)
        except Exception as error:
            request.failed(error)
            return
        if entry is None:
            request.done(self._factory.empty_outputs(request.inputs))
            return

        def done(outputs: Tensors) -> None:
            entry.task, entry.idle_since = None, time.monotonic()
            if request.end:
                self._release(request.sequence)
            request.done(outputs)

        def failed(error: Exception) -> None:
            self._release(request.sequence)
            request.failed(error)

        entry.task = Task(entry.sequence.begin_step(request.inputs), request.urgency, done, failed)
        self._scheduler.add(entry.task)

    def _resolve(self, request: SequenceRequest) -> _Entry | None:
        """The sequence that a request belongs to; None when there is nothing for it to do.

        Raises:
            StageFailed: a later step of a sequence that is not live, or before the one before it was answered.
        """
        if request.start:
            self._cancel(request.sequence)
            self._live[request.sequence] = _Entry(self._factory.open(request.inputs))
        entry = self._live.get(request.sequence)
        if entry is not None and entry.task is not None:
            self._cancel(request.sequence)
            if not request.end:
                raise StageFailed("a step came before the one before it was answered")
            return None
        if entry is None and not request.end:
            raise StageFailed("no such sequence: it ended, was idle for too long or failed before")
        return entry

    def _cancel(self, sequence: int) -> None:
        entry = self._live.get(sequence)
        if entry is not None and entry.task is not None:
            self._scheduler.cancel(entry.task, Cancelled("the sequence was ended"))
        self._release(sequence)

    def _release(self, sequence: int) -> None:
        entry = self._live.pop(sequence, None)
        if entry is not None:
            entry.task = None  # it refers back: the state that its job holds would wait for the cycle collector
            entry.sequence.release()

    def release_idle(self) -> None:
        """Release the sequences that had no step for `idle_seconds`."""
        now = time.monotonic()
        idle = [
            sequence
            for sequence, entry in self._live.items()
            if entry.task is None and now - entry.idle_since >= self._idle_seconds
        ]
        for sequence in idle:
            self._release(sequence)
