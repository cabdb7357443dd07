"""Which row of the decoder, and so of its KV cache, holds which sequence."""

from __future__ import annotations

from cosyserve.llm.decoder import Decoder
from cosyserve.llm.sequence import Sequence


class Rows:
    """Running sequences occupy rows ``0..n-1`` without gaps, so that a step reads one contiguous piece of the KV cache.

    Those with a row but no part in the steps lie in rows above: the one whose prompt is being fed, and those that are
    paused. When a sequence leaves the steps, the last running one moves into the gap.

    Args:
        decoder: has at least ``slots + 1`` empty rows: one is for exchanging two others.
        slots: most sequences that have a row.

    Attributes:
        running: the sequence of each of the first rows.
        parked: those in rows above.
    """

    def __init__(self, decoder: Decoder, slots: int) -> None:
        self.running: list[Sequence] = []
        self.parked: list[Sequence] = []
        self._decoder = decoder
        self._slots = slots

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return len(self.running) + len(self.parked) >= self._slots

    def allocate(self, sequence: Sequence) -> None:
        """Give a sequence an empty row above those running."""
        sequence.row = self._free()[0]
        self.parked.append(sequence)

    def run(self, sequence: Sequence) -> None:
        """Let a parked sequence join the steps."""
        row = len(self.running)
        for other in self.parked:
            if other is not sequence and other.row == row:
                self._move(other, self._free()[-1])
        if sequence.row != row:
            self._move(sequence, row)
        self.parked.remove(sequence)
        self.running.append(sequence)

    def park(self, sequence: Sequence) -> None:
        """Take a running sequence out of the steps; its KV cache stays."""
        row, target = sequence.row, self._free()[-1]
        self._decoder.move(row, target, sequence.position)
        self.release(sequence)
        sequence.row = target
        self.parked.append(sequence)

    def release(self, sequence: Sequence) -> None:
        """Free the row of a sequence."""
        self._decoder.release(sequence.row)
        if sequence in self.parked:
            self.parked.remove(sequence)
            return
        last = self.running.pop()
        if last is not sequence:
            self.running[sequence.row] = last
            self._move(last, sequence.row)

    def clear(self) -> None:
        """Free every row."""
        self.running.clear()
        self.parked.clear()
        for row in range(self._slots + 1):
            self._decoder.release(row)

    def _free(self) -> list[int]:
        """Rows that hold nothing, ascending."""
        taken = {sequence.row for sequence in self.parked}
        return [row for row in range(len(self.running), self._slots + 1) if row not in taken]

    def _move(self, sequence: Sequence, target: int) -> None:
        source, sequence.row = sequence.row, target
        self._decoder.move(source, target, sequence.position)
        self._decoder.release(source)
