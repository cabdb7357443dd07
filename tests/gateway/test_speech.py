"""Speech over HTTP: OpenAI's clients get the audio that gRPC sends, while it is generated."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import Iterator

import av
import numpy as np
import pytest
from gateways import Gateway
from live import Live
from numpy.typing import NDArray

from cosyserve_client import Client

TEXT = "What is heard over HTTP is what is sent over gRPC."
LONG = "This text is long enough to be spoken still when its first words are heard. " * 12
RATE = 24_000
Pcm = NDArray[np.int16]


@pytest.fixture(scope="module")
def spoken(client: Client, voice: str) -> Pcm:
    """The text as gRPC sends it."""
    return client.synthesize(TEXT, voice=voice, seed=7).pcm


def decoded(data: bytes) -> Pcm:
    """The samples of a file, mono at 24 kHz."""
    convert = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    with av.open(io.BytesIO(data)) as file:
        frames = [each for frame in (*file.decode(audio=0), None) for each in convert.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def level(pcm: Pcm) -> float:
    """In dB of full scale."""
    return float(20 * np.log10(np.sqrt(np.mean(np.square(pcm / 32768.0)))))


@pytest.mark.parametrize("form", ["pcm", "wav", "flac", "mp3", "opus", "aac"])
def test_the_official_client_hears_what_grpc_sends(gateway: Gateway, spoken: Pcm, voice: str, form: str) -> None:
    with (
        gateway.openai() as openai,
        openai.audio.speech.with_streaming_response.create(
            model="tts-1",
            voice=voice,
            input=TEXT,
            response_format=form,
            extra_body={"seed": 7},  # type: ignore[arg-type]
        ) as response,
    ):
        data = b"".join(response.iter_bytes())
        kind = response.headers["content-type"]
    assert kind == {"mp3": "audio/mpeg", "opus": "audio/ogg"}.get(form, f"audio/{form}")
    heard = np.frombuffer(data, "<i2") if form == "pcm" else decoded(data)
    if form in ("pcm", "wav", "flac"):
        np.testing.assert_array_equal(heard, spoken)
    else:
        assert 0 <= len(heard) - len(spoken) < 0.15 * RATE  # padding of the last frame, and the codec's delay
        assert abs(level(heard) - level(spoken)) < 1.5


def test_events_carry_the_same(gateway: Gateway, spoken: Pcm, voice: str) -> None:
    with gateway.openai() as openai:
        answer = openai.audio.speech.create(
            model="gpt-4o-mini-tts",
            voice={"id": voice},
            input=TEXT,
            response_format="pcm",
            stream_format="sse",
            extra_body={"seed": 7},
        )
    *deltas, done = events(answer.content)
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert len(deltas) > 1
    heard = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
    np.testing.assert_array_equal(np.frombuffer(heard, "<i2"), spoken)
    usage = done["usage"]
    assert done["type"] == "speech.audio.done"
    assert usage["input_tokens"] == len(TEXT)
    assert usage["output_tokens"] * 960 == len(spoken)


def events(data: bytes) -> list[dict[str, object]]:
    """The events of a stream of them."""
    assert data.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in data[:-2].split(b"\n\n")]


def test_speed_and_instructions_reach_the_server(gateway: Gateway, client: Client, voice: str) -> None:
    answer = gateway.post(input=TEXT, voice=voice, speed=1.5, instructions="Speak softly.", seed=7)
    wanted = client.synthesize(TEXT, voice=voice, speed=1.5, instruct="Speak softly.", seed=7).pcm
    np.testing.assert_array_equal(np.frombuffer(answer.content, "<i2"), wanted)


@pytest.fixture
def curl(gateway: Gateway, voice: str) -> Iterator[subprocess.Popen[bytes]]:
    """curl while it receives a long text."""
    body = json.dumps({"model": "tts-1", "input": LONG, "voice": voice})
    kind = "content-type: application/json"
    command = ["curl", "-sN", f"{gateway.url}/v1/audio/speech", "-H", kind, "-d", body]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_curl_hears_it_while_it_is_made_and_may_leave(
    gateway: Gateway, server: Live, curl: subprocess.Popen[bytes]
) -> None:
    assert curl.stdout is not None
    assert curl.stdout.read(512)
    assert gateway.metric("cosyserve_gateway_active_streams") == 1
    assert server.held()["cosyserve_active_streams"] == 1
    before = gateway.metric('cosyserve_gateway_utterances_total{outcome="cancelled"}')
    curl.kill()
    gateway.wait_idle()
    server.wait_idle()
    assert gateway.metric('cosyserve_gateway_utterances_total{outcome="cancelled"}') == before + 1
