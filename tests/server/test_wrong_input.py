"""A wrong request gets its status and a message with the field's name; the next request is served."""

from __future__ import annotations

import numpy as np
import pytest
from live import Live
from raw import IN_BODY, INSIDE, Answer, Input, call, message, numbers, send, words

from cosyserve_client import Client

RATE = 16_000
TEXT = words("text", "Hi.")
TONE = 0.3 * np.sin(np.arange(2 * RATE) / 20)


def audio(samples: object) -> Input:
    return numbers("prompt_audio", "FP32", np.asarray(samples, np.float32))


def rate(value: int = RATE) -> Input:
    return numbers("prompt_sample_rate", "INT32", [value])


def spoilt(value: float) -> Input:
    samples = TONE.copy()
    samples[len(samples) // 2] = value
    return audio(samples)


TEXTS = {
    "empty": words("text", ""),
    "blank": words("text", " \t\n　"),
    "punctuation": words("text", "...!? 。，"),
    "NUL": words("text", "\0\0"),
    "emoji": words("text", "\U0001f600"),
    "too long": words("text", "word " * 20_000),
    "not UTF-8": words("text", b"caf\xe9"),
    "surrogate": words("text", b"\xed\xa0\x80"),
}

INVALID = {
    "NaN": ("prompt_audio", (spoilt(np.nan), rate())),
    "infinite": ("prompt_audio", (spoilt(-np.inf), rate())),
    "no samples": ("prompt_audio", (audio(TONE[:0]), rate())),
    "0.1 s": ("prompt_audio", (audio(TONE[: RATE // 10]), rate())),
    "10 minutes": ("prompt_audio", (audio(np.tile(TONE, 300)), rate())),
    "silent": ("prompt_audio", (audio(0 * TONE), rate())),
    "on the int16 scale": ("prompt_audio", (audio(32767 * TONE), rate())),
    "rate 8000": ("prompt_sample_rate", (audio(TONE), rate(8000))),
    "rate 0": ("prompt_sample_rate", (audio(TONE), rate(0))),
    "negative rate": ("prompt_sample_rate", (audio(TONE), rate(-RATE))),
    "huge rate": ("prompt_sample_rate", (audio(TONE), rate(2**31 - 1))),
    "no rate": ("prompt_sample_rate", (audio(TONE),)),
    "rate alone": ("prompt_sample_rate", (rate(),)),
    "transcript alone": ("prompt_text", (words("prompt_text", "hello"),)),
    "long transcript": ("prompt_text", (audio(TONE), rate(), words("prompt_text", "word " * 500))),
    "empty transcript": ("prompt_text", (audio(TONE), rate(), words("prompt_text", ""))),
    "transcript not UTF-8": ("prompt_text", (audio(TONE), rate(), words("prompt_text", b"\xff"))),
    "voice and prompt": ("voice", (audio(TONE), rate(), words("voice", "demo"))),
    "voice not UTF-8": ("voice", (words("voice", b"\xff\xfe"),)),
    "long instruction": ("instruct", (words("instruct", "slowly " * 500),)),
    "empty instruction": ("instruct", (words("instruct", ""),)),
    "mode": ("mode", (words("mode", "opera"),)),
    "mode without instruction": ("instruct", (words("mode", "instruct"),)),
    "mode without a source": ("source_audio", (words("mode", "vc"),)),
    "text and a source": ("text", (numbers("source_audio", "FP32", TONE),)),
    "rate without a source": ("source_sample_rate", (numbers("source_sample_rate", "INT32", [RATE]),)),
    "speed 0": ("speed", (numbers("speed", "FP32", [0.0]),)),
    "negative speed": ("speed", (numbers("speed", "FP32", [-1.0]),)),
    "speed NaN": ("speed", (numbers("speed", "FP32", [np.nan]),)),
    "too slow": ("speed", (numbers("speed", "FP32", [0.49]),)),
    "too fast": ("speed", (numbers("speed", "FP32", [2.01]),)),
    "sample rate 0": ("sample_rate", (numbers("sample_rate", "INT32", [0]),)),
    "negative sample rate": ("sample_rate", (numbers("sample_rate", "INT32", [-RATE]),)),
    "sample rate of no one": ("sample_rate", (numbers("sample_rate", "INT32", [44_000]),)),
}

UNKNOWN_VOICES = ["nobody", "", "../voices/demo", "..", "/etc/passwd", "demo.json", "demo\0", "*", "x" * 10_000, "声"]

CONTRADICTIONS = {
    "nothing at all": ("text", ()),
    "no text": ("text", (numbers("seed", "INT64", [1]),)),
    "text FP32": ("text", (numbers("text", "FP32", [1.0]),)),
    "voice INT32": ("voice", (TEXT, numbers("voice", "INT32", [1]))),
    "prompt_audio BYTES": ("prompt_audio", (TEXT, words("prompt_audio", "RIFF"))),
    "prompt_sample_rate INT64": ("prompt_sample_rate", (TEXT, numbers("prompt_sample_rate", "INT64", [RATE]))),
    "prompt_text FP32": ("prompt_text", (TEXT, numbers("prompt_text", "FP32", [1.0]))),
    "instruct BOOL": ("instruct", (TEXT, numbers("instruct", "BOOL", [True]))),
    "mode INT32": ("mode", (TEXT, numbers("mode", "INT32", [0]))),
    "source_audio INT32": ("source_audio", (TEXT, numbers("source_audio", "INT32", [0, 1]))),
    "speed INT32": ("speed", (TEXT, numbers("speed", "INT32", [1]))),
    "sample_rate FP32": ("sample_rate", (TEXT, numbers("sample_rate", "FP32", [8000.0]))),
    "timestamps INT32": ("timestamps", (TEXT, numbers("timestamps", "INT32", [1]))),
    "seed INT32": ("seed", (TEXT, numbers("seed", "INT32", [1]))),
    "stream INT32": ("stream", (TEXT, numbers("stream", "INT32", [1]))),
    "two texts": ("text", (words("text", "one", "two"),)),
    "no element": ("text", (words("text"),)),
    "batch dimension": ("seed", (TEXT, numbers("seed", "INT64", np.ones((1, 1))))),
    "stereo": ("prompt_audio", (TEXT, rate(), numbers("prompt_audio", "FP32", np.zeros((2, RATE))))),
    "half a string": ("text", (Input("text", "BYTES", (1,), b"\x09\0\0\0abc"),)),
    "too few bytes": ("seed", (TEXT, Input("seed", "INT64", (1,), b"\0\0"))),
    "endless shape": ("prompt_audio", (TEXT, Input("prompt_audio", "FP32", (2**40,), b""))),
    "negative shape": ("text", (Input("text", "BYTES", (-1,), b"\1\0\0\0a"),)),
    "unknown tensor": ("tone", (TEXT, numbers("tone", "FP32", [1.0]))),
    "the same tensor twice": ("text", (TEXT, TEXT)),
}


@pytest.fixture(autouse=True)
def next_request_is_served(client: Client) -> object:
    yield
    assert len(client.synthesize("Hi.", seed=1).pcm)


def assert_refused(answer: Answer, field: str) -> None:
    assert answer.code == IN_BODY, answer
    assert field in answer.message
    assert answer.responses == 0
    assert not INSIDE.search(answer.message), answer.message
    assert "\n" not in answer.message
    assert len(answer.message) < 300


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_text_that_cannot_be_spoken(server: Live, text: Input) -> None:
    answer = call(server.url, text)
    assert_refused(answer, "text: ")
    assert answer.message.startswith("text: ")


@pytest.mark.parametrize(("field", "inputs"), INVALID.values(), ids=INVALID.keys())
def test_invalid_values_name_their_field(server: Live, field: str, inputs: tuple[Input, ...]) -> None:
    answer = call(server.url, TEXT, *inputs)
    assert_refused(answer, field)
    assert answer.message.startswith(f"{field}: ")


@pytest.mark.parametrize("name", UNKNOWN_VOICES, ids=range(len(UNKNOWN_VOICES)))
def test_unknown_voices_are_not_found(server: Live, name: str) -> None:
    answer = call(server.url, TEXT, words("voice", name))
    assert answer.code == IN_BODY
    assert answer.message == f"no voice named {name[:64]!r}"


@pytest.mark.parametrize(("field", "inputs"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_tensors_against_the_contract_are_refused_by_name(server: Live, field: str, inputs: tuple[Input, ...]) -> None:
    assert_refused(call(server.url, *inputs), field)


@pytest.mark.parametrize(
    ("code", "inputs"),
    [
        ("INVALID_ARGUMENT", (words("text", ""),)),
        ("NOT_FOUND", (TEXT, words("voice", "nobody"))),
    ],
)
def test_each_kind_of_refusal_has_its_status(server: Live, code: str, inputs: tuple[Input, ...]) -> None:
    assert call(server.url, *inputs, status=True).code == code


def test_errors_of_inner_models_keep_their_code(server: Live) -> None:
    """Calls between models, and ensembles, pass on only the message."""
    request = message("tts", TEXT, words("voice", "nobody"), coded_errors=True)
    assert send(server.url, request, seconds=5).message.startswith("NOT_FOUND | no voice named")
    request = message("tts", TEXT, words("voice", "nobody"), coded_errors="reason")
    assert send(server.url, request, seconds=5).message.startswith("NOT_FOUND/voice | no voice named")
    step = message("token2wav", *STEP, sequence=2**40, start=True, end=True)
    assert "INVALID_ARGUMENT/ | speaker_embedding" in send(server.url, step, seconds=5).message


STEP = (
    Input("speech_tokens", "INT32", (1, 3), np.array([-1, 2**30, 5], np.int32).tobytes()),
    Input("final", "BOOL", (1, 1), b"\1"),
)
MEL = (Input("mel", "FP32", (1, 80, 2), bytes(640)), Input("mel_final", "BOOL", (1, 1), b"\1"))


@pytest.mark.parametrize(
    ("model", "named", "inputs", "sequence", "start"),
    [
        ("llm", "text_tokens", (numbers("utterance", "INT64", [2**40]),), 0, False),
        ("llm", "utterance", (), 0, False),
        ("frontend", "text", (), 0, False),
        ("flow", "START", STEP, 2**40, False),
        ("flow", "correlation ID", STEP, 0, False),
        ("flow", "speaker_embedding", STEP, 2**40, True),
        ("hift", "START", MEL, 2**40, False),
        ("token2wav", "speaker_embedding", STEP, 2**40, True),
        ("nothing", "nothing", (TEXT,), 0, False),
    ],
)
def test_inner_models_refuse_garbage(
    server: Live, model: str, named: str, inputs: tuple[Input, ...], sequence: int, start: bool
) -> None:
    answer = call(server.url, *inputs, model=model, sequence=sequence, start=start)
    assert answer.code == IN_BODY, answer
    assert named in answer.message
    assert "Traceback" not in answer.message
    assert "internal error" not in answer.message


def test_refused_requests_hold_nothing(server: Live) -> None:
    call(server.url, TEXTS["not UTF-8"])
    server.wait_idle()
