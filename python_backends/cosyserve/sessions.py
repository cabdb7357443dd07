"""State of sequence-batched models: one session for each sequence, dropped at its end or when it falls silent."""

from __future__ import annotations

import time
from typing import Protocol

from cosyserve.contracts import Tensors
from cosyserve.errors import StageFailed


class Session(Protocol):
    """State of one sequence."""

    def step(self, inputs: Tensors) -> Tensors:
        """Outputs of the next step."""
        ...


class SessionFactory(Protocol):
    """What opens sessions."""

    def open(self, inputs: Tensors) -> Session:
        """A session from the inputs of a sequence's first step."""
        ...

    def nothing(self, inputs: Tensors) -> Tensors:
        """Outputs of a step that does nothing."""
        ...


class Sessions:
    """All live sequences of one model instance.

    Args:
        factory: opens sessions.
        idle_seconds: a sequence without a step for this long is dropped; its sender is gone.
    """

    def __init__(self, factory: SessionFactory, idle_seconds: float) -> None:
        self._factory = factory
        self._idle = idle_seconds
        self._live: dict[int, tuple[Session, float]] = {}

    def __len__(self) -> int:
        return len(self._live)

    def step(self, sequence: int, inputs: Tensors, *, start: bool, end: bool) -> Tensors:
        """One step of a sequence. A step that fails ends its sequence; ending one that is gone does nothing.

        Raises:
            StageFailed: a later step of a sequence that is not live.
        """
        live = self._live.pop(sequence, None)
        now = time.monotonic()
        self._live = {s: entry for s, entry in self._live.items() if now - entry[1] < self._idle}
        if start:
            session = self._factory.open(inputs)
        elif live is not None:
            session = live[0]
        elif end:
            return self._factory.nothing(inputs)
        else:
            raise StageFailed("no such sequence: it ended, fell silent or failed before")
        outputs = session.step(inputs)
        if not end:
            self._live[sequence] = session, time.monotonic()
        return outputs
