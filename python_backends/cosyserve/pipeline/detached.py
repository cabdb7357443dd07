"""Giving up what a stage holds for an utterance."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cosyserve.limits import LEAVE_SECONDS

_running: set[asyncio.Task[object]] = set()
"""Calls that nobody waits for any more: a loop alone would not keep them."""


async def run_detached(call: Coroutine[Any, Any, object]) -> None:
    """Make the last call to a stage, and wait for it, but not for long; it goes on when the waiting ends.

    What it fails with is dropped: whoever gives up has a reason of his own to report.
    """
    task = asyncio.create_task(call)
    _running.add(task)
    task.add_done_callback(_done)
    await asyncio.wait({task}, timeout=LEAVE_SECONDS)


def _done(task: asyncio.Task[object]) -> None:
    _running.discard(task)
    if not task.cancelled():
        task.exception()
