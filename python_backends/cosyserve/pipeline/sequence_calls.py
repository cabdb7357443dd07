"""The calls to sequence models that are in progress, so that every sequence that starts also ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from cosyserve.errors import CosyServeError

Call = Callable[[], Coroutine[Any, Any, Any]]
"""Sends one step; each call of it sends the step again."""


class SequenceCalls:
    """Sends the steps of sequences, one at a time for each sequence.

    A caller may be cancelled while its step is on the way to Triton. The end of the sequence, sent by another thread,
    can overtake that step: Triton refuses to end a sequence that it does not know, and then starts it. So a step goes
    on without its caller, and an end that was refused is sent again after it.
    """

    def __init__(self) -> None:
        self._in_progress: dict[int, asyncio.Task[Any]] = {}

    async def send(self, sequence: int, call: Call, *, end: bool) -> Any:
        """The answer to a step; `end` says whether it is the last of its sequence.

        Raises:
            CosyServeError: as the call does.
        """
        earlier = self._in_progress.get(sequence)
        try:
            return await self._send(sequence, call)
        except CosyServeError:
            if not end or earlier is None:
                raise
            await asyncio.wait({earlier})
            return await self._send(sequence, call)

    async def _send(self, sequence: int, call: Call) -> Any:
        task = self._in_progress[sequence] = asyncio.create_task(call())
        task.add_done_callback(lambda task: self._done(sequence, task))
        return await asyncio.shield(task)

    def _done(self, sequence: int, task: asyncio.Task[Any]) -> None:
        if self._in_progress.get(sequence) is task:
            del self._in_progress[sequence]
        if not task.cancelled():
            task.exception()  # whoever waits has it; without a caller it concerns nobody
