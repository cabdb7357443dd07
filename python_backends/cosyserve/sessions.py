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
        """One step of a sequence. A step that fails ends its sequence.

        Raises:
            StageFailed: a later step of a sequence that is not live.
        """
        live = None if start else self._live.pop(sequence, None)
        if live is None and not start:
            raise StageFailed("no such sequence: it ended, fell silent or failed before")
        session = live[0] if live else self._factory.open(inputs)
        outputs = session.step(inputs)
        now = time.monotonic()
        if not end:
            self._live[sequence] = session, now
        self._live = {s: entry for s, entry in self._live.items() if now - entry[1] < self._idle}
        return outputs
