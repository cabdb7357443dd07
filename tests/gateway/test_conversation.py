"""Text in pieces over a WebSocket: the same audio as over gRPC, several utterances, and cancels."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from dummy_server import DummyServer
from gateways import Gateway, serving
from live import PATIENCE, Live, wait_until
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from cosyserve_client import Client
from cosyserve_gateway import Settings
from cosyserve_gateway.limits import MAX_JSON_BYTES

TEXT = "These words are written one by one."
LONG = "This text is long enough to be spoken still when its first words are heard. " * 10
Pcm = NDArray[np.int16]


class Talker:
    """A client of the WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.ready = self.read()

    def say(self, *types: str, **fields: object) -> None:
        """Sends messages, the last of which has `fields`."""
        for kind in types[:-1]:
            self.socket.send(json.dumps({"type": kind}))
        self.socket.send(json.dumps({"type": types[-1], **fields}))

    def read(self) -> Any:
        """The next message, or frame of audio."""
        message = self.socket.recv(PATIENCE)
        return json.loads(message) if isinstance(message, str) else message

    def hear(self) -> tuple[Pcm, Any]:
        """Return the audio up to the message that ends an utterance, and that message."""
        heard: list[bytes] = []
        while (message := self.read())["type"] == "audio":
            assert message["sample_offset"] * 2 == sum(map(len, heard))
            heard.append(base64.b64decode(message["audio"]))
        return np.frombuffer(b"".join(heard), "<i2"), message


@pytest.fixture
def talker(gateway: Gateway) -> Iterator[Talker]:
    with connect(gateway.socket_url) as socket:
        yield Talker(socket)


@pytest.fixture
def dummy_talker(before_dummy: Gateway) -> Iterator[Talker]:
    with connect(before_dummy.socket_url) as socket:
        yield Talker(socket)


def told(client: Client, voice: str, text: str, seed: int) -> Pcm:
    """Return the audio of a text over gRPC."""
    with client.session(voice=voice, seed=seed) as session:
        session.push(text)
        session.end()
        return np.concatenate([chunk.pcm for chunk in session])


def test_utterances_one_after_another_equal_those_of_grpc(talker: Talker, client: Client, voice: str) -> None:
    assert talker.ready == {"type": "ready", "sample_rate": 24_000}
    for seed in (1, 2):
        talker.say("config", voice=voice, seed=seed)
        for word in TEXT.split():
            talker.say("text", text=word + " ")
        talker.say("end")
        heard, last = talker.hear()
        np.testing.assert_array_equal(heard, told(client, voice, TEXT + " ", seed))
        assert last == {"type": "done", "samples": len(heard)}


def test_binary_frames_and_words(talker: Talker, client: Client, voice: str) -> None:
    talker.say("config", voice=voice, seed=1, audio="binary", timestamps=True)
    talker.say("text", text=TEXT)
    talker.say("end")
    heard, words = b"", []
    while isinstance(message := talker.read(), bytes) or message["type"] == "words":
        if isinstance(message, bytes):
            assert struct.unpack("<q", message[:8]) == (len(heard) // 2,)
            heard += message[8:]
        else:
            words += message["words"]
    assert message["type"] == "done"
    np.testing.assert_array_equal(np.frombuffer(heard, "<i2"), told(client, voice, TEXT, 1))
    assert " ".join(word["text"] for word in words) == TEXT
    assert [word["start"] for word in words] == sorted(word["start"] for word in words)


def test_a_flush_is_heard_before_the_end(talker: Talker, client: Client, voice: str) -> None:
    talker.say("config", voice=voice, seed=1)
    talker.say("text", text="Good morning")
    talker.say("flush")
    first = told(client, voice, "Good morning", 1)
    heard = b""
    while len(heard) < 2 * len(first):
        heard += base64.b64decode(talker.read()["audio"])
    np.testing.assert_array_equal(np.frombuffer(heard, "<i2"), first)
    talker.say("text", text="to you.")
    talker.say("end")
    while (message := talker.read())["type"] == "audio":
        assert message["segment"] == 1
    assert message["type"] == "done"
    assert message["samples"] > len(first)


def test_cancel_stops_at_once_and_another_may_begin(talker: Talker, client: Client, voice: str, server: Live) -> None:
    talker.say("config", voice=voice, seed=2)
    talker.say("text", text=LONG)
    assert talker.read()["type"] == "audio"
    talker.say("cancel")
    while (message := talker.read())["type"] == "audio":
        pass
    assert message["type"] == "cancelled"
    assert message["samples"] > 0
    server.wait_idle()
    talker.say("text", text=TEXT)
    talker.say("end")
    heard, _ = talker.hear()
    np.testing.assert_array_equal(heard, told(client, voice, TEXT, 2))
    talker.say("cancel")  # too late: the utterance has ended meanwhile
    assert talker.read() == {"type": "cancelled", "samples": len(heard)}
    talker.say("end")
    assert talker.read() == {"type": "done", "samples": 0}


def test_leaving_frees_the_stream(gateway: Gateway, server: Live) -> None:
    with connect(gateway.socket_url) as socket:
        talker = Talker(socket)
        talker.say("text", text=LONG)
        assert talker.read()["type"] == "audio"
        assert gateway.metric("cosyserve_gateway_active_streams") == 1
    gateway.wait_idle()
    server.wait_idle()


def test_an_error_ends_the_utterance_and_no_more(talker: Talker, client: Client, voice: str) -> None:
    talker.say("config", voice="nobody")
    for _ in range(5):
        talker.say("text", text="Hi. ")
    talker.say("end")
    assert talker.read()["error"]["code"] == "voice_not_found"
    talker.say("config", voice=voice, sample_rate=7)
    talker.say("text", text="Hi. ")
    assert talker.read()["error"]["param"] == "sample_rate"
    talker.say("config", voice=voice, seed=1)
    talker.say("text", text=TEXT)
    talker.say("end")
    np.testing.assert_array_equal(talker.hear()[0], told(client, voice, TEXT, 1))


def test_a_late_failure_is_an_error_after_the_audio(dummy_talker: Talker) -> None:
    dummy_talker.say("text", text="late INTERNAL boom")
    heard, last = dummy_talker.hear()
    assert len(heard) == 3 * 2400
    assert last["error"]["code"] == "server_failed"


MALFORMED: dict[str, tuple[str | bytes, str | None]] = {
    "no JSON": ("{", None),
    "a list": ("[]", None),
    "binary": (b"\x00", "type"),
    "no type": ('{"text": "Hi."}', None),
    "unknown type": ('{"type": "sing"}', None),
    "no text": ('{"type": "text"}', "text"),
    "number": ('{"type": "text", "text": 3}', "text"),
    "extra field": ('{"type": "flush", "now": true}', "now"),
    "speed": ('{"type": "config", "speed": "fast"}', "speed"),
    "NaN": ('{"type": "config", "speed": NaN}', "speed"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_messages_close_the_connection(before_dummy: Gateway, dummy: DummyServer, case: str) -> None:
    message, param = MALFORMED[case]
    with connect(before_dummy.socket_url) as socket:
        talker = Talker(socket)
        talker.say("text", text="silent")
        wait_until(lambda: dummy.active == 1, lambda: "it does not begin")
        socket.send(message)
        answer = talker.read()
        assert (answer["type"], answer["error"]["param"]) == ("error", param)
        with pytest.raises(ConnectionClosed) as closed:
            talker.read()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
    before_dummy.wait_idle()


def test_messages_out_of_turn_close_the_connection(before_dummy: Gateway) -> None:
    for kind in ("config", "text", "end"):
        with connect(before_dummy.socket_url) as socket:
            talker = Talker(socket)
            talker.say("text", text="silent")
            if kind != "config":
                talker.say("end")
            talker.say(kind, **({"text": "more"} if kind == "text" else {}))
            assert talker.read()["error"]["param"] == kind
    before_dummy.wait_idle()


def test_too_large_a_message_closes_the_connection(before_dummy: Gateway) -> None:
    with connect(before_dummy.socket_url) as socket:
        talker = Talker(socket)
        talker.say("text", text="x" * MAX_JSON_BYTES)
        with pytest.raises(ConnectionClosed) as closed:
            talker.read()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_silence_closes_the_connection(dummy: DummyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosyserve_gateway.conversation.SOCKET_IDLE_SECONDS", 0.2)
    with serving(Settings(url=dummy.url)) as gateway, connect(gateway.socket_url) as socket:
        assert Talker(socket).read()["error"]["code"] == "idle_timeout"


def test_callers_without_permission_cannot_open_a_websocket(dummy: DummyServer) -> None:
    settings = Settings(url=dummy.url, api_keys=("secret",), streams_per_client=1)
    bearer = {"authorization": "Bearer secret"}
    wait_until(lambda: dummy.active == 0, lambda: "an earlier conversation goes on")
    with serving(settings) as gateway:
        with pytest.raises(InvalidStatus) as refused:
            connect(gateway.socket_url)
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body or b"")["error"]["code"] == "invalid_api_key"
        with pytest.raises(InvalidStatus) as refused:
            connect(gateway.socket_url, additional_headers=bearer, origin="https://elsewhere.example")
        assert refused.value.response.status_code == 403
        with connect(gateway.socket_url, additional_headers=bearer) as one:
            talker = Talker(one)
            talker.say("text", text="silent")
            wait_until(lambda: dummy.active == 1, lambda: "it does not begin")
            with connect(gateway.socket_url, additional_headers=bearer) as other:
                second = Talker(other)
                second.say("text", text="Hi.")
                assert second.read()["error"]["code"] == "too_many_streams"
