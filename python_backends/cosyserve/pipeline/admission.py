"""Admission: whether an utterance may begin. A full server refuses at once; it does not queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cosyserve.errors import Draining, StreamsTaken

STOP = "stop"
"""What the drain file says when running utterances are to end too."""


@dataclass
class Admission:
    """Counts utterances in progress in one event loop.

    Attributes:
        limit: most at once.
        drain_file: while this file exists, none begins; while it says `STOP`, none goes on.
        changed: called with `active` whenever it changes, before anything else happens.
        active: in progress now.
    """

    limit: int
    drain_file: Path | None = None
    changed: Callable[[int], object] = lambda active: None
    active: int = 0

    @property
    def stops(self) -> bool:
        """Whether running utterances are to end."""
        try:
            return self.drain_file is not None and self.drain_file.read_text("utf-8") == STOP
        except OSError:
            return False

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot; `StreamsTaken` at once when there is none, `Draining` when the server is about to stop."""
        # Nothing is awaited between this check and the count: `active` has every utterance that began before the file.
        if self.drain_file is not None and self.drain_file.exists():
            raise Draining("this server is about to stop; try another")
        if self.active >= self.limit:
            raise StreamsTaken(f"all {self.limit} streams are in use; try again shortly")
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.active += change
        self.changed(self.active)
