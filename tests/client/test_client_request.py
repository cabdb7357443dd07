"""Requests as messages: their fields, and the values that are refused."""

from __future__ import annotations

import pickle
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from dummy_server import DummyServer

from cosyserve.contracts import TTS
from cosyserve_client import Client, ConnectFailed, InvalidArgument, NotFound, ServerError, SpeechRequest
from cosyserve_client.errors import from_status

SAMPLES = np.linspace(-1, 1, 1600, dtype=np.float32)


def test_the_fields_are_the_inputs_of_the_contract() -> None:
    inputs = [tensor.name for tensor in TTS.inputs]
    assert [field.name for field in fields(SpeechRequest)] == [*inputs, "request_id", "traceparent"]


def test_everything_set_arrives(server: DummyServer) -> None:
    values: dict[str, Any] = {
        "voice": "anna",
        "prompt_audio": SAMPLES,
        "prompt_sample_rate": np.int32(16_000),
        "prompt_text": "一二三 ☃",
        "instruct": "calm",
        "mode": "zero_shot",
        "source_audio": SAMPLES[::2],
        "source_sample_rate": 44_100,
        "speed": 1,
        "sample_rate": 8000,
        "seed": -(2**63),
        "stream": False,
        "timestamps": True,
    }
    with Client(server.url) as client:
        client.synthesize("你好", **values)
    arrived = server.requests[0]
    assert {name: array.tolist() for name, array in arrived.items()} == {
        "text": ["你好".encode()],
        "voice": [b"anna"],
        "prompt_audio": SAMPLES.tolist(),
        "prompt_sample_rate": [16_000],
        "prompt_text": ["一二三 ☃".encode()],
        "instruct": [b"calm"],
        "mode": [b"zero_shot"],
        "source_audio": SAMPLES[::2].tolist(),
        "source_sample_rate": [44_100],
        "speed": [1.0],
        "sample_rate": [8000],
        "seed": [-(2**63)],
        "stream": [False],
        "timestamps": [True],
    }


def test_only_what_is_set_is_sent(server: DummyServer) -> None:
    with Client(server.url) as client:
        client.synthesize("hello")
        client.synthesize(source_audio=SAMPLES, source_sample_rate=16_000)
    assert [list(request) for request in server.requests] == [["text"], ["source_audio", "source_sample_rate"]]


def test_options_override_a_request(server: DummyServer) -> None:
    with Client(server.url) as client:
        client.synthesize(SpeechRequest(text="hello", voice="anna", seed=1), seed=2)
    assert server.requests[0]["seed"].tolist() == [2]
    assert server.requests[0]["voice"].tolist() == [b"anna"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", b"bytes"),
        ("text", "\ud800"),
        ("voice", 1),
        ("prompt_audio", [0.0, 0.1]),
        ("prompt_audio", SAMPLES.astype(np.float64)),
        ("prompt_audio", SAMPLES.reshape(-1, 2)),
        ("prompt_sample_rate", 16_000.0),
        ("prompt_sample_rate", 2**31),
        ("prompt_text", ["a"]),
        ("instruct", 0),
        ("mode", b"vc"),
        ("source_audio", np.zeros(4, np.int16)),
        ("speed", "fast"),
        ("speed", True),
        ("speed", 1e300),
        ("sample_rate", 8000.0),
        ("sample_rate", 2**31),
        ("seed", "1"),
        ("seed", True),
        ("seed", 2**63),
        ("stream", 1),
        ("timestamps", 1),
    ],
)
def test_a_wrong_type_is_refused_before_any_call(server: DummyServer, field: str, value: object) -> None:
    options: dict[str, Any] = {"text": "hello", field: value}
    with Client(server.url) as client, pytest.raises(InvalidArgument) as caught:
        client.stream(**options)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.message.startswith(f"{field}: ")
    assert not server.calls


def test_a_status_without_its_prefix_is_understood() -> None:
    assert isinstance(from_status("StatusCode.NOT_FOUND", "voice"), NotFound)
    assert isinstance(from_status("NOT_FOUND", "voice"), NotFound)
    assert isinstance(from_status("StatusCode.UNAVAILABLE", "DNS resolution failed for x"), ConnectFailed)


def test_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(NotFound("NOT_FOUND", "voice: x")))
    assert isinstance(error, ServerError)
    assert str(error) == "NOT_FOUND voice: x"


@pytest.mark.parametrize("name", ["request_id", "traceparent"])
def test_request_id_and_traceparent_must_be_text(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^INVALID_ARGUMENT {name}: is int, expected str"):
        SpeechRequest(text="Hi.", **{name: 5})  # type: ignore[arg-type]
