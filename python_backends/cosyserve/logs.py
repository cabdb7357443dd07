"""Logs of server and gateway: lines of JSON on standard output, without text or audio."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
import traceback
import uuid
from contextlib import suppress
from typing import Any

from cosyserve.limits import LOG_FLUSH_SECONDS, WAITING_LOG_LINES

_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def request_id(given: str) -> str:
    """The id under which a request is logged: what its sender calls it, or one of our own if that is no plain word."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def log_json_lines() -> None:
    """Sends every log of this process there: ours from info, those of others from warning."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Lines()], force=True)
    for name in ("cosyserve", "cosyserve_gateway"):
        logging.getLogger(name).setLevel(logging.INFO)


class _Lines(logging.Handler):
    """Writes from a thread of its own: logging never waits for the log's reader, and drops lines beyond a bound."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._waiting: queue.Queue[str] = queue.Queue(WAITING_LOG_LINES)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self._waiting.put_nowait(self.format(record))

    def flush(self) -> None:
        """Waits until all is written, but not for long; called at exit."""
        deadline = time.monotonic() + LOG_FLUSH_SECONDS
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _write(self) -> None:
        while True:
            line = self._waiting.get()
            with suppress(OSError):  # nobody reads it any more
                os.write(1, line.encode() + b"\n")  # in one piece: Triton writes there too
            self._waiting.task_done()


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            # Of several lines only the first: asyncio shows an error whole in those behind it.
            "event": record.getMessage().partition("\n")[0],
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line["traceback"] = _traceback(record.exc_info[1])
        return json.dumps(line)


def _traceback(error: BaseException) -> str:
    """Frames and kinds of an error and of what it came from.

    Messages of Python's own errors and of ours are left out: they quote what they were given, which may be somebody's
    text. Those of the runtimes stay; they see numbers only.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.insert(0, cause)
        cause = cause.__cause__ or cause.__context__
    return "".join("".join(traceback.format_tb(each.__traceback__)) + _named(each) + "\n" for each in chain)


def _named(error: BaseException) -> str:
    kind = type(error)
    quotes = kind.__module__.partition(".")[0] in ("builtins", "cosyserve", "cosyserve_client", "cosyserve_gateway")
    return kind.__qualname__ if quotes else f"{kind.__module__}.{kind.__qualname__}: {error}"
