"""Voices over HTTP: list, register with consent, speak, delete."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import soundfile
from dummy_server import DummyServer
from gateways import Gateway, serving
from live import PATIENCE

from cosyserve_client import Client, SpeechOptions, SpeechRequest
from cosyserve_gateway import Settings
from cosyserve_gateway.limits import MAX_UPLOAD_BYTES

SAMPLE = (Path(__file__).parents[1] / "data" / "cosyvoice2-tiny" / "prompt.wav").read_bytes()
CONSENT = "signed, file 12"


def add(gateway: Gateway, sample: bytes | None = SAMPLE, **fields: str) -> httpx2.Response:
    files = {} if sample is None else {"audio_sample": ("voice.wav", sample, "audio/wav")}
    return httpx2.post(f"{gateway.url}/v1/audio/voices", data=fields, files=files, timeout=PATIENCE)


def listed(gateway: Gateway) -> dict[str, Any]:
    answer = httpx2.get(f"{gateway.url}/v1/audio/voices", timeout=PATIENCE).json()
    return {voice["id"]: voice for voice in answer["data"]}


def file(rate: int, seconds: float) -> bytes:
    """A tone."""
    out = io.BytesIO()
    samples = 0.3 * np.sin(np.arange(round(rate * seconds)) / 20)
    soundfile.write(out, samples, rate, format="WAV")
    return out.getvalue()


def test_from_registration_to_deletion(gateway: Gateway, client: Client, prompt: SpeechOptions) -> None:
    before = listed(gateway)
    assert list(before) == [voice.name for voice in client.list_voices()]
    transcript = prompt["prompt_text"]
    answer = add(gateway, name="Anna 中文", consent=CONSENT, prompt_text=transcript)
    try:
        assert answer.status_code == 201
        assert listed(gateway) == before | {"Anna 中文": answer.json()}
        assert set(answer.json()) == {"id", "object", "name", "prompt_seconds", "created"}
        assert client.show_voice("Anna 中文").consent == CONSENT
        spoken = gateway.post(input="Hello.", voice="Anna 中文", seed=3)
        inline = client.synthesize(SpeechRequest.of("Hello.", **prompt), seed=3).pcm
        np.testing.assert_array_equal(np.frombuffer(spoken.content, "<i2"), inline)
        again = add(gateway, name="Anna 中文", consent=CONSENT, prompt_text="Another.")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "voice_exists")
    finally:
        gone = httpx2.delete(f"{gateway.url}/v1/audio/voices/Anna 中文", timeout=PATIENCE)
    assert gone.json() == {"id": "Anna 中文", "deleted": True}
    assert listed(gateway) == before
    assert httpx2.delete(f"{gateway.url}/v1/audio/voices/Anna", timeout=PATIENCE).status_code == 404


WRONG: dict[str, tuple[bytes | None, dict[str, str], str]] = {
    "no file": (None, {"name": "x", "consent": CONSENT}, "audio_sample"),
    "no name": (SAMPLE, {"consent": CONSENT}, "name"),
    "no consent": (SAMPLE, {"name": "x"}, "consent"),
    "blank consent": (SAMPLE, {"name": "x", "consent": " "}, "consent"),
    "a path as name": (SAMPLE, {"name": "../x", "consent": CONSENT}, "name"),
    "no audio": (b"RIFF but no more", {"name": "x", "consent": CONSENT}, "audio_sample"),
    "empty": (b"", {"name": "x", "consent": CONSENT}, "audio_sample"),
    "too short": (file(16_000, 0.1), {"name": "x", "consent": CONSENT}, "audio_sample"),
    "too long": (file(16_000, 31), {"name": "x", "consent": CONSENT}, "audio_sample"),
    "rate too low": (file(8_000, 2), {"name": "x", "consent": CONSENT}, "audio_sample"),
    "rate too high": (file(400_000, 1), {"name": "x", "consent": CONSENT}, "audio_sample"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_registrations(gateway: Gateway, case: str) -> None:
    sample, fields, param = WRONG[case]
    answer = add(gateway, sample, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert not re.search(r"0x|BytesIO|/", error["message"])


def test_a_large_upload_is_refused(gateway: Gateway) -> None:
    answer = add(gateway, bytes(MAX_UPLOAD_BYTES + 1), name="x", consent=CONSENT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_changes_of_voices_can_be_disabled(dummy: DummyServer) -> None:
    with serving(Settings(url=dummy.url, voice_changes=False)) as gateway:
        assert add(gateway, name="x", consent=CONSENT).status_code == 403
        assert httpx2.delete(f"{gateway.url}/v1/audio/voices/demo").status_code == 403
