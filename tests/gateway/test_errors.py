"""Errors have the form that OpenAI's clients expect, and release all resources."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from dummy_server import SINE, DummyServer
from gateways import Gateway, serving
from live import PATIENCE, Live, wait_until
from test_speech import events
from websockets.sync.client import connect

from cosyserve_gateway import Settings
from cosyserve_gateway.limits import MAX_JSON_BYTES, RETRIES

OK = {"model": "tts-1", "input": "Hi."}

WRONG: dict[str, tuple[bytes, int, str | None]] = {
    "no JSON": (b"{", 400, None),
    "no object": (b"[]", 400, None),
    "not UTF-8": (b'{"model": "\xff"}', 400, None),
    "surrogate": (b'{"model": "tts-1", "input": "\\ud800"}', 400, None),
    "no input": (json.dumps({"model": "tts-1"}).encode(), 400, "input"),
    "number": (json.dumps(OK | {"input": 3}).encode(), 400, "input"),
    "empty": (json.dumps(OK | {"input": ""}).encode(), 400, "input"),
    "too long": (json.dumps(OK | {"input": "word " * 1000}).encode(), 400, "input"),
    "format": (json.dumps(OK | {"response_format": "ogg"}).encode(), 400, "response_format"),
    "stream format": (json.dumps(OK | {"stream_format": "x"}).encode(), 400, "stream_format"),
    "too fast": (json.dumps(OK | {"speed": 4.0}).encode(), 400, "speed"),
    "speed NaN": (json.dumps(OK | {"speed": float("nan")}).encode(), 400, "speed"),
    "speed as text": (json.dumps(OK | {"speed": "1"}).encode(), 400, "speed"),
    "empty instructions": (json.dumps(OK | {"instructions": ""}).encode(), 400, "instructions"),
    "huge seed": (json.dumps(OK | {"seed": 2**70}).encode(), 400, "seed"),
    "unknown field": (json.dumps(OK | {"path": "/etc"}).encode(), 400, "path"),
    "voice of another type": (json.dumps(OK | {"voice": ["nobody"]}).encode(), 400, "voice"),
    "unknown voice": (json.dumps(OK | {"voice": "nobody"}).encode(), 404, "voice"),
    "path as voice": (json.dumps(OK | {"voice": "../nobody"}).encode(), 404, "voice"),
    "unknown model": (json.dumps(OK | {"model": "gpt"}).encode(), 404, "model"),
    "too large": (b" " * (MAX_JSON_BYTES + 1), 413, None),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests(gateway: Gateway, case: str) -> None:
    body, status, param = WRONG[case]
    kind = {"content-type": "application/json"}
    answer = httpx2.post(f"{gateway.url}/v1/audio/speech", content=body, headers=kind, timeout=PATIENCE)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(f"{param}: " if status == 400 and param else "")
    assert answer.headers["x-request-id"]


def test_the_official_client_raises_its_own_errors(gateway: Gateway, voice: str) -> None:
    with gateway.openai() as client:
        with pytest.raises(openai.NotFoundError, match="nobody") as missing:
            client.audio.speech.create(model="tts-1", voice="nobody", input="Hi.")
        assert missing.value.param == "voice"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.audio.speech.create(model="tts-1", voice=voice, input="Hi.", speed=3)
        assert wrong.value.param == "speed"


def test_other_paths_methods_and_types(gateway: Gateway) -> None:
    def code(method: str, path: str, **options: object) -> tuple[int, str]:
        answer = httpx2.request(method, gateway.url + path, timeout=PATIENCE, **options)  # type: ignore[arg-type]
        return answer.status_code, answer.json()["error"]["code"]

    assert code("GET", "/nowhere") == (404, "not_found")
    assert code("GET", "/v1/audio/speech") == (405, "method_not_allowed")
    assert code("POST", "/v1/audio/speech", content=json.dumps(OK)) == (415, "unsupported_media_type")


FAILURES = {
    "UNAVAILABLE full": (503, "overloaded", "1"),
    "NOT_FOUND/voice no voice named 'x'": (404, "voice_not_found", None),
    "NOT_FOUND no voice is in these words": (503, "unreachable", "1"),
    "ALREADY_EXISTS there is one": (409, "voice_exists", None),
    "CANCELLED/idle nothing came": (503, "cancelled", "1"),
    "UNAVAILABLE/of_tomorrow full": (503, "overloaded", "1"),
    "RESOURCE_EXHAUSTED what is that": (502, "server_failed", None),
    "INTERNAL boom": (502, "server_failed", None),
    "DEADLINE_EXCEEDED slow": (504, "timeout", None),
    "UNIMPLEMENTED no instructions here": (400, "unsupported", None),
}


@pytest.mark.parametrize("text", FAILURES)
@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_failures_before_audio_are_errors_of_http(before_dummy: Gateway, text: str, stream_format: str) -> None:
    answer = before_dummy.post(input=text, stream_format=stream_format)
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers.get("retry-after")) == FAILURES[text]
    assert "boom" not in answer.text
    before_dummy.wait_idle()


def test_a_refusal_is_tried_again_where_there_may_be_another_server(before_dummy: Gateway, dummy: DummyServer) -> None:
    calls = dummy.calls["ModelStreamInfer"]
    assert before_dummy.post(input="UNAVAILABLE full").status_code == 503
    assert dummy.calls["ModelStreamInfer"] - calls == 1 + RETRIES
    assert before_dummy.post(input="INTERNAL boom").status_code == 502
    assert dummy.calls["ModelStreamInfer"] - calls == 1 + RETRIES + 1


@pytest.mark.parametrize("text", ["late INTERNAL boom", "truncate"])
@pytest.mark.parametrize("form", ["pcm", "mp3"])
def test_failures_after_audio_break_the_connection_off(before_dummy: Gateway, text: str, form: str) -> None:
    before = before_dummy.metric('cosyserve_gateway_utterances_total{outcome="failed"}')
    with pytest.raises(httpx2.RemoteProtocolError, match="incomplete chunked read"):
        before_dummy.post(input=text, response_format=form)
    assert before_dummy.metric('cosyserve_gateway_utterances_total{outcome="failed"}') == before + 1


def test_failures_after_audio_are_an_event_among_events(before_dummy: Gateway) -> None:
    *deltas, last = events(before_dummy.post(input="late INTERNAL boom", stream_format="sse").content)
    assert len(deltas) == 3
    assert last == {
        "type": "error",
        "error": {
            "message": "the speech server failed",
            "type": "server_error",
            "param": None,
            "code": "server_failed",
        },
    }


def test_no_server() -> None:
    with DummyServer() as dummy, serving(Settings(url=dummy.url)) as gateway:
        dummy.loaded = False
        assert httpx2.get(f"{gateway.url}/healthz").status_code == 503
        dummy.__exit__()
        answer = gateway.post()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unreachable")
        assert answer.headers["retry-after"] == "1"
        assert httpx2.get(f"{gateway.url}/healthz").status_code == 503


@pytest.mark.parametrize("text", ["slow", "silent"])
def test_a_disconnected_client_frees_the_stream(before_dummy: Gateway, dummy: DummyServer, text: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(before_dummy.url).netloc, timeout=PATIENCE)
    body = json.dumps(OK | {"input": text})
    connection.request("POST", "/v1/audio/speech", body, {"content-type": "application/json"})
    if text == "slow":
        assert connection.getresponse().read(1)
    wait_until(lambda: dummy.active == 1, lambda: "it does not begin")
    assert before_dummy.metric("cosyserve_gateway_active_streams") == 1
    connection.close()
    before_dummy.wait_idle()
    wait_until(lambda: not dummy.active, lambda: "it goes on")


def test_a_client_that_does_not_read_is_disconnected(dummy: DummyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosyserve_gateway.middleware.STALLED_SECONDS", 0.5)
    body = json.dumps(OK | {"input": "flood", "response_format": "wav"})
    request = (
        f"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    )
    with serving(Settings(url=dummy.url)) as gateway, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        address = urlsplit(gateway.url)
        client.connect((address.hostname, address.port))
        client.sendall(f"{request}\r\n\r\n{body}".encode())
        gateway.wait_idle()
        wait_until(lambda: not dummy.active, lambda: "it goes on")
        assert gateway.metric('cosyserve_gateway_utterances_total{outcome="cancelled"}') == 1


def test_a_body_that_does_not_arrive_times_out(dummy: DummyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosyserve_gateway.middleware.BODY_SECONDS", 0.2)
    head = "POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    with serving(Settings(url=dummy.url)) as gateway:
        address = urlsplit(gateway.url)
        with socket.create_connection((address.hostname, address.port), PATIENCE) as client:
            client.sendall(head.encode())
            assert client.recv(12) == b"HTTP/1.1 408"


def test_limits_of_streams(dummy: DummyServer) -> None:
    settings = Settings(url=dummy.url, streams=2, streams_per_client=1, api_keys=("one", "two", "three"))
    with serving(settings) as gateway:

        @contextmanager
        def hold(key: str) -> Iterator[None]:
            body = {"model": "tts-1", "input": "slow", "response_format": "pcm"}
            url = f"{gateway.url}/v1/audio/speech"
            with httpx2.stream("POST", url, json=body, headers=bearer(key), timeout=PATIENCE) as answer:
                assert answer.status_code == 200
                yield

        with hold("one"):
            refused = gateway.post(bearer("one"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
            assert refused.headers["retry-after"] == "1"
            with hold("two"):
                refused = gateway.post(bearer("three"))
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
                assert refused.headers["retry-after"] == "1"
        gateway.wait_idle()
        assert gateway.post(bearer("three")).content == SINE.tobytes()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_limits_of_requests(dummy: DummyServer) -> None:
    with serving(Settings(url=dummy.url, requests_per_minute=3, api_keys=("one", "two"))) as gateway:
        answers = [gateway.post(bearer("one")) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[3].json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(answers[3].headers["retry-after"]) <= 20
        assert gateway.post(bearer("two")).is_success


def test_keys(dummy: DummyServer) -> None:
    with serving(Settings(url=dummy.url, api_keys=("secret", "other"))) as gateway:
        for headers in ({}, bearer("secre"), bearer("secretother"), {"authorization": "secret"}):
            answer = gateway.post(headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert gateway.post(bearer("secret")).is_success
        assert gateway.post(bearer("other")).is_success
        with gateway.openai("wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with gateway.openai("secret") as client:
            assert "cosyvoice" in {model.id for model in client.models.list()}
        assert httpx2.get(f"{gateway.url}/").is_success
        assert httpx2.get(f"{gateway.url}/healthz").is_success


def test_pages_of_other_origins_may_call_only_if_allowed(dummy: DummyServer) -> None:
    named, other = {"origin": "https://named.example"}, {"origin": "https://other.example"}
    with serving(Settings(url=dummy.url, origins=(named["origin"],))) as gateway:
        assert gateway.post(other).status_code == 403
        assert "access-control-allow-origin" not in gateway.post(other).headers
        assert gateway.post(named).headers["access-control-allow-origin"] == named["origin"]
        assert gateway.post({**named, "x-request-id": "mine"}, speed="x").headers["x-request-id"] == "mine"
        assert gateway.post({"origin": gateway.url}).is_success


def test_the_log_has_each_request_and_no_text(gateway: Gateway, log: Path) -> None:
    text = "Nobody may read this."
    answer = gateway.post({"x-request-id": "told-of"}, input=text, instructions="In secret.")
    assert answer.headers["x-request-id"] == "told-of"
    wait_until(lambda: "told-of" in log.read_text(), lambda: "no line in the log")
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    (line,) = (line for line in lines if line.get("request_id") == "told-of")
    assert (line["event"], line["route"], line["status"], line["outcome"]) == (
        "request",
        "/v1/audio/speech",
        200,
        "complete",
    )
    assert line["audio_seconds"] == round(len(answer.content) / 48_000, 3)
    assert 0 < line["first_audio_seconds"] <= line["seconds"]
    assert "read this" not in log.read_text()
    assert "secret" not in log.read_text()


def test_server_and_gateway_log_the_same_request_id(gateway: Gateway, server: Live) -> None:
    made = gateway.post().headers["x-request-id"]
    with connect(gateway.socket_url, additional_headers={"x-request-id": "a-talk"}) as socket:
        for kind in ('"text", "text": "Hi."', '"end"'):
            socket.send(f'{{"type": {kind}}}')
        while '"done"' not in socket.recv(PATIENCE, decode=True):
            pass
    for name in (made, "a-talk"):
        (line,) = server.logged(request_id=name)
        assert line["outcome"] == "complete"


def test_the_servers_spans_belong_to_the_callers_trace(before_dummy: Gateway, dummy: DummyServer) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    dummy.traces.clear()
    assert before_dummy.post({"traceparent": traceparent}).is_success
    assert before_dummy.post().is_success
    with connect(before_dummy.socket_url, additional_headers={"traceparent": traceparent}) as socket:
        socket.send('{"type": "text", "text": "Hi."}')
        socket.send('{"type": "end"}')
        while '"done"' not in socket.recv(PATIENCE, decode=True):
            pass
    assert dummy.traces[:3] == [traceparent, "", traceparent]
