"""Log lines: one per event, without texts of users, and never blocking."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from cosyserve.errors import InvalidInput
from cosyserve.logs import JsonLines, request_id

SECRET = "what somebody said"


def line(error: Exception | None = None, **fields: object) -> str:
    """A formatted record."""
    record = logging.LogRecord("cosyserve", logging.ERROR, "file", 1, "failed", (), None)
    record.fields = fields
    if error is not None:
        record.exc_info = (type(error), error, error.__traceback__)
    return JsonLines().format(record)


def raised(error: Exception) -> Exception:
    """Raise and catch an error with a cause."""
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize("given", ["a", "5f2c", "A-b_c.9", "x" * 64])
def test_plain_request_ids_are_kept(given: str) -> None:
    assert request_id(given) == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", 'a"', "a\n", "a\n{}", "\x1b[31m", "é", "a/b", "日"])
def test_others_are_replaced_by_ids_of_our_own(given: str) -> None:
    made = request_id(given)
    assert made != request_id(given)
    assert request_id(made) == made


@pytest.mark.parametrize("value", ["a\nb", "\r", "\u2028", "\x85", "\x00", '"}{"', "日本", "\udcff"])
def test_whatever_is_in_it_a_line_is_one_line(value: str) -> None:
    text = line(detail=value)
    assert len(text.splitlines()) == 1
    told = json.loads(text)
    assert told["detail"] == value
    assert (told["level"], told["logger"], told["event"]) == ("error", "cosyserve", "failed")


@pytest.mark.parametrize("error", [ValueError(SECRET), InvalidInput("text", SECRET), UnicodeError(SECRET)])
def test_a_traceback_names_places_and_kinds_and_quotes_nothing(error: Exception) -> None:
    traceback = json.loads(line(raised(error)))["traceback"]
    assert SECRET not in traceback
    assert traceback.splitlines()[-1] == type(error).__name__
    assert "KeyError\n" in traceback
    assert "in raised" in traceback


def test_messages_of_library_errors_are_logged() -> None:
    error = json.JSONDecodeError("no value", "", 0)  # of a library: neither Python's own nor ours
    traceback = json.loads(line(raised(error)))["traceback"]
    assert "json.decoder.JSONDecodeError: no value" in traceback
    assert SECRET not in traceback


def test_only_the_first_line_of_a_message_is_logged() -> None:
    record = logging.LogRecord("asyncio", logging.ERROR, "file", 1, f"never retrieved\nfuture: {SECRET}", (), None)
    assert json.loads(JsonLines().format(record))["event"] == "never retrieved"


def test_a_log_that_is_not_read_blocks_nothing() -> None:
    program = """
import logging, sys
from cosyserve.logs import log_json_lines
log_json_lines()
for number in range(5000):
    logging.getLogger("cosyserve").info("%s", 200 * "x")
print("went on", file=sys.stderr)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"went on\n"
        process.kill()


def test_all_lines_are_written_at_the_end() -> None:
    program = """
import logging
from cosyserve.logs import log_json_lines
log_json_lines()
for number in range(500):
    logging.getLogger("cosyserve").info("line")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert [json.loads(each)["event"] for each in done.stdout.splitlines()] == 500 * ["line"]
