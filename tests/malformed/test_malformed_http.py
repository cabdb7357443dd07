"""Malformed HTTP requests are refused at once, in OpenAI's form, and change nothing."""

from __future__ import annotations

import http.client
import json
import socket
from urllib.parse import urlsplit

import httpx2
import pytest
from gateways import Gateway
from http_corpus import CASES, Asked
from judging import ANSWERED_SECONDS, Hung, Tally
from raw import INSIDE


@pytest.mark.parametrize("name", CASES)
def test_malformed_http(doorman: Gateway, tally: Tally, name: str) -> None:
    with tally.judging():
        judge(CASES[name], *exchange(doorman.url, CASES[name].data))


def exchange(url: str, data: bytes) -> tuple[int, str, bytes]:
    """Status, type and body of the answer to some bytes."""
    at = urlsplit(url)
    with socket.create_connection((at.hostname, at.port), ANSWERED_SECONDS) as connection:
        try:
            connection.sendall(data)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, answer.headers.get_content_type(), answer.read()
        except TimeoutError:
            raise Hung from None


def judge(asked: Asked, status: int, kind: str, body: bytes) -> None:
    """Raise unless the answer is right."""
    assert status == asked.status, body
    text = body.decode()
    assert not INSIDE.search(text), text
    assert len(text) < 1000
    if not asked.code:
        assert kind == "text/plain", kind
        return
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert error["code"] == asked.code or asked.code == "*", error
    assert error["param"] == asked.param or asked.param == "*", error


def test_nothing_is_held_and_nothing_was_registered(doorman: Gateway) -> None:
    doorman.wait_idle()
    voices = httpx2.get(f"{doorman.url}/v1/audio/voices", timeout=ANSWERED_SECONDS).json()["data"]
    assert not [voice for voice in voices if voice["name"].startswith("never")]
