"""How many utterances run at once. Refusing early and clearly beats queueing unseen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cosyserve.errors import Overloaded


@dataclass
class Admission:
    """Counts utterances in progress in one event loop.

    Attributes:
        limit: most at once.
        active: in progress now.
    """

    limit: int
    active: int = 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one place; `Overloaded` at once when there is none."""
        if self.active >= self.limit:
            raise Overloaded(f"all {self.limit} streams are in use; try again shortly")
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1
