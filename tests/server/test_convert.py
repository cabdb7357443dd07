"""Voice conversion: speech of one voice, spoken in another."""

from __future__ import annotations

import numpy as np
import pytest
from live import Live
from numpy.typing import NDArray
from raw import IN_BODY, call, numbers

from cosyserve.metrics import SPEECH_TOKENS
from cosyserve_client import Client, SpeechOptions

RATE = 16_000
SAMPLES_PER_TOKEN = 960


@pytest.fixture(scope="module")
def source(prompt: SpeechOptions) -> NDArray[np.float32]:
    """20 s of speech, half a second of quiet, 12 s of speech."""
    speech = prompt["prompt_audio"][: 3 * RATE]
    pause = np.full(RATE // 2, 1e-5, np.float32)
    return np.concatenate([np.resize(speech, 20 * RATE), pause, np.resize(speech[::-1], 12 * RATE)])


def test_a_source_is_spoken_in_another_voice(
    server: Live, client: Client, prompt: SpeechOptions, source: NDArray[np.float32]
) -> None:
    generated = server.metric(SPEECH_TOKENS)
    spoken = source[: 5 * RATE]
    chunks = list(client.stream(source_audio=spoken, source_sample_rate=RATE, seed=3))
    pcm = np.concatenate([chunk.pcm for chunk in chunks])
    assert len(pcm) == 5 * 25 * SAMPLES_PER_TOKEN
    assert len(chunks) > 3
    assert chunks[-1].final
    again = client.synthesize(source_audio=spoken, source_sample_rate=RATE, seed=3, mode="vc").pcm
    np.testing.assert_array_equal(again, pcm)
    voice = SpeechOptions(prompt_audio=prompt["prompt_audio"], prompt_sample_rate=prompt["prompt_sample_rate"])
    cloned = client.synthesize(source_audio=spoken, source_sample_rate=RATE, seed=3, **voice).pcm
    assert len(cloned) == len(pcm)
    assert not np.array_equal(cloned, pcm)
    # The language model had no part in it.
    assert server.metric(SPEECH_TOKENS) == generated


def test_without_streaming_a_source_is_one_chunk(client: Client, source: NDArray[np.float32]) -> None:
    spoken = source[: 5 * RATE]
    chunks = list(client.stream(source_audio=spoken, source_sample_rate=RATE, seed=3, stream=False))
    assert [len(chunk.pcm) for chunk in chunks] == [5 * 25 * SAMPLES_PER_TOKEN, 0]


def test_a_long_source_is_cut_at_its_pause(client: Client, source: NDArray[np.float32]) -> None:
    chunks = list(client.stream(source_audio=source, source_sample_rate=RATE, seed=3))
    assert {chunk.segment for chunk in chunks} == {0, 1}
    assert chunks[-1].sample_offset == 813 * SAMPLES_PER_TOKEN  # 32.5 s, rounded up
    second = next(chunk for chunk in chunks if chunk.segment == 1)
    assert 20 <= second.sample_offset / 24_000 <= 20.5


def test_a_source_that_cannot_be_heard_is_named(server: Live, source: NDArray[np.float32]) -> None:
    rate = numbers("source_sample_rate", "INT32", [RATE])
    for samples in (source[:100], np.resize(source, 301 * RATE), source * np.float32(np.nan)):
        answer = call(server.url, numbers("source_audio", "FP32", samples), rate)
        assert answer.code == IN_BODY
        assert answer.message.startswith("source_audio: ")
    answer = call(server.url, numbers("source_audio", "FP32", source))
    assert answer.message.startswith("source_sample_rate: ")
