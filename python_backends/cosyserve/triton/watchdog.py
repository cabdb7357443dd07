"""Ends utterances when the server stops and when a model process hangs.

Triton reports neither to callers at once; see `cosyserve.triton_defects`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from cosyserve.errors import Draining
from cosyserve.limits import SIGN_OF_LIFE_SECONDS, STILL_CPU_SECONDS, STILL_SECONDS, STOP_POLL_SECONDS

_LOG = logging.getLogger("cosyserve")

Ping = Callable[[], Coroutine[Any, Any, bool]]
"""Asks a model process for a sign of life: whether it gave one, and not Triton in its place."""


class ModelProcess:
    """The process of an inner model, and the calls to it.

    Args:
        model: its name.
        ping: asks it for a sign of life.
        clock: monotonic time in seconds.
        cpu: processor seconds that it has used.
    """

    def __init__(
        self,
        model: str,
        ping: Ping,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] | None = None,
    ) -> None:
        self.model = model
        self._ping = ping
        self._clock = clock
        self._cpu = cpu or partial(processor_seconds, model)
        self._waiting = 0
        self._silent_since: float | None = None  # the first call that it has not answered
        self._asking: asyncio.Task[None] | None = None
        self._asked: tuple[float, float] | None = None  # when, and the processor seconds then

    @property
    def suspect(self) -> bool:
        """Whether a call to it has not been answered for long, or ended without an answer."""
        return self._silent_since is not None and self._clock() - self._silent_since >= STILL_SECONDS

    @property
    def quiet(self) -> bool:
        """Whether no call to it is unanswered."""
        return self._silent_since is None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count one call as in progress; call `answered` within when the process has answered."""
        if self._silent_since is None:
            self._silent_since = self._clock()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def answered(self) -> None:
        """It has answered a call."""
        self._silent_since = self._clock() if self._waiting > 1 else None
        self._asked = None

    def stands_still(self) -> bool:
        """Whether it neither answers nor computes; pings it when it is suspect."""
        if not self.suspect:
            return False
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        now = self._clock()
        if self._asked is None:
            self._asked = now, self._cpu()
        since, cpu = self._asked
        if now - since < SIGN_OF_LIFE_SECONDS:
            return False
        self._asked = None
        return self._cpu() - cpu < STILL_CPU_SECONDS

    async def _ask(self) -> None:
        answered = False
        with suppress(Exception):  # Triton's, in the process's place
            answered = await self._ping()
        if answered:
            self._silent_since = self._clock() if self._waiting else None
            self._asked = None


class Watchdog:
    """Watches the utterances of one entry model while there are any.

    Args:
        processes: the model processes that they call.
        stops: whether the server is about to stop.
        end: ends this process.
    """

    def __init__(
        self, processes: list[ModelProcess], stops: Callable[[], bool], end: Callable[[int], object] = os._exit
    ) -> None:
        self._processes = processes
        self._stops = stops
        self._end = end
        self._utterances: set[asyncio.Task[Any]] = set()
        self._task: asyncio.Task[None] | None = None
        self.stopped: Draining | None = None

    @contextmanager
    def watching(self, utterance: asyncio.Task[Any]) -> Iterator[None]:
        """Watch `utterance` while the context lasts: when the server stops it is cancelled, and `stopped` is set."""
        self._utterances.add(utterance)
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._utterances.discard(utterance)

    async def _watch(self) -> None:
        while self._utterances or not all(process.quiet for process in self._processes):
            await asyncio.sleep(STOP_POLL_SECONDS)
            if self.stopped is None and self._stops():
                self.stopped = Draining("this server stops; try another")
                for utterance in self._utterances:
                    utterance.cancel()
            for process in self._processes:
                if process.stands_still():
                    _LOG.error("%s stands still: the server ends", process.model)
                    self._end(1)
        self._task = None


def processor_seconds(model: str) -> float:
    """Processor time that the process of a model of this server has used (Linux); 0 when there is none."""
    server = os.getppid()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == server and f"/{model}/1/model.py" in (folder / "cmdline").read_text():
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
    return 0.0
