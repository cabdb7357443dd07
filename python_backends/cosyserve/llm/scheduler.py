"""Which sequences of the LLM run next. First come, first served; no running sequence is preempted."""

from __future__ import annotations

from collections import deque

from cosyserve.llm.rows import Rows
from cosyserve.llm.sequence import Sequence, Status


class SequenceScheduler:
    """The live sequences of an engine, each in the `Status` that only this class sets.

    Args:
        rows: where the sequences with a slot lie.

    Attributes:
        waiting: for a slot, oldest first.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.waiting: deque[Sequence] = deque()
        self._live: dict[int, Sequence] = {}
        self._prefill: list[Sequence] = []

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.rows.running or self._prefill or (self.waiting and not self.rows.full))

    def find(self, id: int) -> Sequence | None:
        """The live sequence of this id."""
        return self._live.get(id)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; one that has nothing to feed yet stays out of the queue."""
        self._live[sequence.request.id] = sequence
        if sequence.ids:
            self._queue(sequence)

    def schedule_prefill(self, most: int = 1) -> list[Sequence]:
        """The sequences whose prompts are fed next, at most so many, each from its first chunk to its last."""
        while len(self._prefill) < most and self.waiting and not self.rows.full:
            sequence = self.waiting.popleft()
            sequence.status = Status.PREFILL
            self.rows.allocate(sequence)
            self._prefill.append(sequence)
        return list(self._prefill)

    def schedule_decode(self) -> list[Sequence]:
        """The sequences that take part in the next step, by row."""
        return list(self.rows.running)

    def run(self, sequence: Sequence) -> None:
        """A prompt has been fed whole, or the text that a sequence waited for has come."""
        if sequence.status is Status.BLOCKED:
            self._queue(sequence)
            return
        if sequence in self._prefill:
            self._prefill.remove(sequence)
        sequence.status = Status.RUNNING
        self.rows.run(sequence)

    def pause(self, sequence: Sequence) -> None:
        """A running sequence waits for text; it keeps its slot."""
        sequence.status = Status.PAUSED
        self.rows.park(sequence)

    def remove(self, sequence: Sequence) -> None:
        """A sequence has ended; free what it holds."""
        del self._live[sequence.request.id]
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is not Status.BLOCKED:
            self.rows.release(sequence)
        if sequence in self._prefill:
            self._prefill.remove(sequence)

    def clear(self) -> None:
        """Forget every sequence, and free every row."""
        self.waiting.clear()
        self._live.clear()
        self._prefill.clear()
        self.rows.clear()

    def _queue(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        self.waiting.append(sequence)
