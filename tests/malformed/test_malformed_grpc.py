"""Malformed gRPC requests are refused by name, or served, but never answered wrongly, nor not at all."""

from __future__ import annotations

import re

import pytest
from grpc_corpus import CASES, Case, Right
from judging import ANSWERED_SECONDS, Hung, Tally
from live import Live
from raw import IN_BODY, INSIDE, Answer, send

NOTATION = re.compile(r"^(in ensemble '\w+', )?[A-Z_]+(/\w*)? \| ")
"""Before the message of an inner model or of a session stands its code."""


@pytest.mark.parametrize("name", CASES)
def test_malformed_requests(server: Live, tally: Tally, name: str) -> None:
    case = CASES[name]
    with tally.judging():
        judge(case, send(server.url, *case.messages, seconds=ANSWERED_SECONDS))
    for message in case.parting:
        send(server.url, message, seconds=ANSWERED_SECONDS)


def judge(case: Case, answer: Answer) -> None:
    """Raises unless that is a right answer."""
    if answer.code == "DEADLINE_EXCEEDED":
        raise Hung
    message = assert_harmless(answer)
    if isinstance(case.right, str):
        assert answer.code == IN_BODY, answer
        assert case.right.lower() in message.lower(), answer
        assert len(message) < 1000
    elif case.right is Right.SERVED:
        assert answer.code == "OK", answer
        assert answer.responses, answer
    else:
        assert case.right is Right.EITHER, answer
        assert answer.code in ("OK", IN_BODY), answer


def assert_harmless(answer: Answer) -> str:
    """The message of an answer, which tells nothing of the inside of a server."""
    message = NOTATION.sub("", answer.message)
    assert not INSIDE.search(message), answer
    assert "internal error" not in message, answer
    assert "not healthy" not in message, answer
    assert "\n" not in message
    return message
