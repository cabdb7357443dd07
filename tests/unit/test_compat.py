"""Conversion of upstream's contract to ours."""

from __future__ import annotations

import numpy as np
import pytest

from cosyserve.compat import SEED, renamed, tts_request, waveform
from cosyserve.contracts import TTS, UPSTREAM, Tensors
from cosyserve.errors import InvalidInput, Overloaded

TARGET: Tensors = {"target_text": np.array([b"hello"], np.object_)}
WAVE = np.linspace(-1, 1, 1000, dtype=np.float32)


def test_text_alone_is_spoken_by_the_default_voice() -> None:
    request = tts_request(TARGET)
    assert {name: array.tolist() for name, array in request.items()} == {"text": [b"hello"], "seed": [SEED]}


@pytest.mark.parametrize("text", ["三二一", "You are a helpful assistant.<|endofprompt|>三二一"])
def test_a_reference_is_a_prompt_without_its_padding(text: str) -> None:
    reference: Tensors = {
        "reference_wav": WAVE,
        "reference_wav_len": np.array([600], np.int32),
        "reference_text": np.array([text.encode()], np.object_),
    }
    request = tts_request(TARGET | reference)
    assert set(TARGET | reference) == {tensor.name for tensor in UPSTREAM[0].inputs}
    np.testing.assert_array_equal(request["prompt_audio"], WAVE[:600])
    assert request["prompt_sample_rate"].tolist() == [16_000]
    assert request["prompt_text"].tolist() == ["三二一".encode()]
    for name, array in request.items():
        assert array.dtype == TTS.input(name).numpy


@pytest.mark.parametrize("text", [b"", b" \n", b"You are a helpful assistant.<|endofprompt|>"])
def test_a_reference_may_have_no_text_and_no_length(text: bytes) -> None:
    request = tts_request(TARGET | {"reference_wav": WAVE, "reference_text": np.array([text], np.object_)})
    assert len(request["prompt_audio"]) == 1000
    assert "prompt_text" not in request


@pytest.mark.parametrize("length", [-1, 1001, 2**31 - 1])
def test_a_length_beyond_the_samples_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match=r"^reference_wav_len: "):
        tts_request(TARGET | {"reference_wav": WAVE, "reference_wav_len": np.array([length], np.int32)})


def test_a_waveform_is_the_pcm_on_a_scale_of_one() -> None:
    heard = waveform(np.array([-32768, 0, 16384, 32767], np.int16))
    assert heard.dtype == np.float32
    assert heard.tolist() == [-1.0, 0.0, 0.5, 32767 / 32768]


@pytest.mark.parametrize(
    ("field", "problem", "expected"),
    [
        ("text", "holds no text: nothing", "target_text: holds no text: nothing"),
        ("prompt_audio", "is silent", "reference_wav: is silent"),
        ("prompt_text", "needs prompt_audio", "reference_text: needs reference_wav"),
        ("voice", "give prompt_audio", "voice: give reference_wav"),
    ],
)
def test_errors_call_fields_as_the_client_does(field: str, problem: str, expected: str) -> None:
    error = renamed(InvalidInput(field, problem))
    assert (error.code, str(error)) == ("INVALID_ARGUMENT", expected)


def test_other_errors_stay_as_they_are() -> None:
    error = renamed(Overloaded("all 64 streams are in use"))
    assert (error.code, str(error)) == ("UNAVAILABLE", "all 64 streams are in use")
