"""The live sequences of one model: their states, and their steps in shared calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cosyserve.contracts import Tensors
from cosyserve.errors import Cancelled, StageFailed
from cosyserve.jobs import Call, Rounds, Steps, Task


class Session(Protocol):
    """One sequence."""

    def steps(self, inputs: Tensors) -> Steps[Tensors]:
        """One step of the sequence."""
        ...

    def close(self) -> None:
        """The sequence has ended; give back what it reserved."""
        ...


class SessionFactory(Protocol):
    """Opens sessions and knows what they share."""

    def open(self, inputs: Tensors) -> Session:
        """A session for a sequence whose first step has these inputs.

        Raises:
            CosyServeError: the inputs do not open one, or there is no room for it.
        """
        ...

    def nothing(self, inputs: Tensors) -> Tensors:
        """Outputs of a step that does nothing."""
        ...


def seed_of(inputs: Tensors) -> int:
    """The seed in the inputs of a segment's first step, as generators take it: not negative."""
    return int(inputs["seed"][0]) % 2**64 if "seed" in inputs else 0


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One request of a sequence.

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
class _Live:
    session: Session
    task: Task | None = None
    idle_since: float = 0.0


class Sessions:
    """All live sequences of one model instance. Not thread-safe: one thread calls its methods.

    Args:
        factory: opens sessions.
        idle_seconds: a sequence without a step for this long is dropped; its sender is gone.
        batch: most sequences in one call.
    """

    def __init__(self, factory: SessionFactory, idle_seconds: float, batch: int) -> None:
        self._factory = factory
        self._idle = idle_seconds
        self._live: dict[int, _Live] = {}
        self._rounds = Rounds(batch)

    def __len__(self) -> int:
        return len(self._live)

    def call(self) -> Call | None:
        """The next call to run, for what is most urgent; None when nothing is ready."""
        return self._rounds.call()

    def finish(self, call: Call) -> None:
        """Go on with what a call has computed."""
        self._rounds.finish(call)

    def submit(self, step: Step) -> None:
        """Take up a step. A step that fails ends its sequence; ending one that is gone does nothing.

        A last step that settles nothing (it is not final) abandons what the sequence is in the middle of.
        """
        self._drop_idle()
        try:
            live = self._enter(step)
        except Exception as error:
            step.failed(error)
            return
        if live is None:
            step.done(self._factory.nothing(step.inputs))
            return

        def done(outputs: Tensors) -> None:
            live.task, live.idle_since = None, time.monotonic()
            if step.end:
                self._forget(step.sequence)
            step.done(outputs)

        def failed(error: Exception) -> None:
            self._forget(step.sequence)
            step.failed(error)

        live.task = Task(live.session.steps(step.inputs), step.urgency, done, failed)
        self._rounds.add(live.task)

    def _enter(self, step: Step) -> _Live | None:
        """The sequence that a step belongs to; None when there is nothing for it to do.

        Raises:
            StageFailed: a later step of a sequence that is not live, or before the one before it was answered.
        """
        if step.start:
            self._abandon(step.sequence)
            self._live[step.sequence] = _Live(self._factory.open(step.inputs))
        live = self._live.get(step.sequence)
        if live is not None and live.task is not None:
            self._abandon(step.sequence)
            if not step.end:
                raise StageFailed("a step came before the one before it was answered")
            return None
        if live is None and not step.end:
            raise StageFailed("no such sequence: it ended, fell silent or failed before")
        return live

    def _abandon(self, sequence: int) -> None:
        live = self._live.get(sequence)
        if live is not None and live.task is not None:
            self._rounds.drop(live.task, Cancelled("the sequence was ended"))
        self._forget(sequence)

    def _forget(self, sequence: int) -> None:
        live = self._live.pop(sequence, None)
        if live is not None:
            live.task = None  # it refers back: the state that its job holds would wait for the cycle collector
            live.session.close()

    def _drop_idle(self) -> None:
        now = time.monotonic()
        idle = [s for s, live in self._live.items() if live.task is None and now - live.idle_since >= self._idle]
        for sequence in idle:
            self._forget(sequence)
