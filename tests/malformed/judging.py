"""Statistics of malformed requests: tried, answered wrongly, not answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

ANSWERED_SECONDS = 60.0
"""Maximum seconds for the answer to a malformed request: a thousand times the usual, and far below the timeout
of any stage, so that an answer by such a timeout counts as a hang."""


class Hung(AssertionError):
    """No answer came in time."""


@dataclass
class Tally:
    """Requests tried, wrong answers and hangs."""

    tried: int = 0
    wrong: int = 0
    hangs: int = 0

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Counts one request, and how its judgement ends."""
        self.tried += 1
        try:
            yield
        except Hung:
            self.hangs += 1
            raise
        except BaseException:
            self.wrong += 1
            raise

    def __str__(self) -> str:
        return f"malformed requests tried {self.tried}, wrong answers {self.wrong}, hangs {self.hangs}"


TALLY = pytest.StashKey[Tally]()
"""Where a run of pytest keeps its own."""
