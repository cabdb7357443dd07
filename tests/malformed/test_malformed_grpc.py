"""Malformed gRPC requests are refused with the field's name or served; every request gets a right answer."""

from __future__ import annotations

import re

import pytest
from grpc_corpus import CASES, Case, Right
from judging import ANSWERED_SECONDS, Hung, Tally
from live import Live
from raw import IN_BODY, INSIDE, Answer, send

NOTATION = re.compile(r"^(in ensemble '\w+', )?[A-Z_]+(/\w*)? \| ")
"""Messages of inner models and of sessions begin with the code."""


@pytest.mark.parametrize("name", CASES)
def test_malformed_requests(server: Live, tally: Tally, name: str) -> None:
    case = CASES[name]
    with tally.judging():
        judge(case, send(server.url, *case.messages, seconds=ANSWERED_SECONDS))
    for message in case.parting:
        send(server.url, message, seconds=ANSWERED_SECONDS)


def judge(case: Case, answer: Answer) -> None:
    """Raise unless the answer is right."""
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
    """Return the message of an answer, after a check that it exposes nothing internal."""
    message = NOTATION.sub("", answer.message)
    assert not INSIDE.search(message), answer
    assert "internal error" not in message, answer
    assert "not healthy" not in message, answer
    assert "\n" not in message
    return message
