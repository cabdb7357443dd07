"""Logs as lines of JSON on standard output."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any


def log_json_lines() -> None:
    """Sends every log of this process there: of the gateway from info, of others from warning."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("cosyserve_gateway").setLevel(logging.INFO)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
