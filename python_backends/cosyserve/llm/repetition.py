"""A guard against generation that goes in circles."""

from __future__ import annotations

from collections import deque

from cosyserve.limits import MAX_CYCLE, MAX_REPEATED_TOKENS


class RepetitionGuard:
    """Watches the tokens of one sequence for one token, or a cycle of up to `MAX_CYCLE`, that comes over and over."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=MAX_CYCLE)  # newest first
        self._runs = [0] * MAX_CYCLE  # for each period, tokens in a row that equal the one a period before

    def repeats(self, token: int) -> bool:
        """Take the next token; whether the last `MAX_REPEATED_TOKENS` are one short cycle."""
        for index, before in enumerate(self._recent):
            self._runs[index] = self._runs[index] + 1 if token == before else 0
        self._recent.appendleft(token)
        # The first cycle equals nothing before it and belongs to the run.
        return any(run + period >= MAX_REPEATED_TOKENS for period, run in enumerate(self._runs, start=1))
