"""Calls to a stage that outlive their caller."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cosyserve.limits import LEAVE_SECONDS

_running: set[asyncio.Task[object]] = set()
"""References to the tasks: an event loop holds only weak ones."""


async def run_detached(call: Coroutine[Any, Any, object]) -> None:
    """Run a last call to a stage in a task of its own, and wait up to `LEAVE_SECONDS` for it; then it goes on alone.

    Its errors are dropped: the caller ends for a reason of its own.
    """
    task = asyncio.create_task(call)
    _running.add(task)
    task.add_done_callback(_done)
    await asyncio.wait({task}, timeout=LEAVE_SECONDS)


def _done(task: asyncio.Task[object]) -> None:
    _running.discard(task)
    if not task.cancelled():
        task.exception()
