"""Which utterances may begin. Refusing early and clearly beats queueing unseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cosyserve.errors import Draining, StreamsTaken


@dataclass
class Admission:
    """Counts utterances in progress in one event loop.

    Attributes:
        limit: most at once.
        drain_file: while this file exists, none begins.
        changed: told `active` whenever it changes, before anything else happens.
        active: in progress now.
    """

    limit: int
    drain_file: Path | None = None
    changed: Callable[[int], object] = lambda active: None
    active: int = 0

    def check(self) -> None:
        """`StreamsTaken` when there is no place, `Draining` when the server is about to stop. Any thread may ask."""
        if self.drain_file is not None and self.drain_file.exists():
            raise Draining("this server is about to stop; try another")
        if self.active >= self.limit:
            raise StreamsTaken(f"all {self.limit} streams are in use; try again shortly")

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one place; raises what `check` does."""
        # Nothing is awaited between this look and the count: whoever made the file sees every utterance that began.
        self.check()
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.active += change
        self.changed(self.active)
