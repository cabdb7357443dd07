"""Speed, sample rate and timing of real audio: the right length, the same speech, correct token ranges."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve.audio.pcm import to_pcm16
from cosyserve.audio.resampler import Resampler
from cosyserve.limits import SAMPLE_RATES
from cosyserve.text.normalize import normalize
from cosyserve.text.words import words
from cosyserve_client import AudioChunk, Client, SpeechOptions

TEXT = " ".join(f"Sentence {word} is long enough to be a segment of its own, or so I hope it is." for word in "ABC")
FRAME = 480
RATE = 24_000


def samples(chunks: list[AudioChunk]) -> NDArray[np.int16]:
    return np.concatenate([chunk.pcm for chunk in chunks])


def tokens(chunks: list[AudioChunk]) -> dict[int, int]:
    """Speech tokens of each segment."""
    counts: Counter[int] = Counter()
    for chunk in chunks:
        counts[chunk.segment] += chunk.token_count
    return dict(counts)


@pytest.fixture(scope="module")
def plain(client: Client) -> list[AudioChunk]:
    return list(client.stream(TEXT, seed=4))


def test_token_ranges_join_and_cover_their_audio(plain: list[AudioChunk]) -> None:
    for before, after in pairwise(plain):
        reached = before.token_offset + before.token_count
        assert after.token_offset == (reached if after.segment == before.segment else 0)
        assert after.segment in (before.segment, before.segment + 1)
    assert len(tokens(plain)) > 1
    for segment, count in tokens(plain).items():
        assert sum(len(chunk.pcm) for chunk in plain if chunk.segment == segment) == 2 * FRAME * count


@pytest.mark.parametrize("rate", SAMPLE_RATES)
def test_a_sample_rate_is_the_same_speech_resampled(client: Client, plain: list[AudioChunk], rate: int) -> None:
    heard = list(client.stream(TEXT, seed=4, sample_rate=rate))
    assert {chunk.sample_rate for chunk in heard} == {rate}
    assert all(after.sample_offset == before.sample_offset + len(before.pcm) for before, after in pairwise(heard))
    assert tokens(heard) == tokens(plain)
    assert len(samples(heard)) * RATE == len(samples(plain)) * rate
    if rate == RATE:
        np.testing.assert_array_equal(samples(heard), samples(plain))
        return
    for segment in tokens(plain):
        mine = samples([chunk for chunk in plain if chunk.segment == segment]).astype(np.float32) / 32767
        theirs = samples([chunk for chunk in heard if chunk.segment == segment])
        # One LSB more, because the compared audio was rounded to 16 bits before.
        np.testing.assert_allclose(theirs, to_pcm16(Resampler(RATE, rate).step(mine, final=True)), rtol=0, atol=2)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("speed", [0.5, 0.8, 2.0])
def test_speed_shortens_each_segment(client: Client, plain: list[AudioChunk], speed: float, stream: bool) -> None:
    heard = list(client.stream(TEXT, seed=4, speed=speed, stream=stream))
    assert tokens(heard) == tokens(plain)
    for segment, count in tokens(plain).items():
        audio = sum(len(chunk.pcm) for chunk in heard if chunk.segment == segment)
        assert audio == int(2 * count / speed) * FRAME
    assert heard[-1].sample_offset == len(samples(heard))


def test_speed_1_changes_no_sample(client: Client, plain: list[AudioChunk]) -> None:
    np.testing.assert_array_equal(samples(list(client.stream(TEXT, seed=4, speed=1.0))), samples(plain))


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (TEXT, {}),
        (TEXT, {"speed": 2.0, "sample_rate": 8000}),
        (TEXT, {"stream": False}),
        ("他说：“好！”我们 go 吧，今天去。", {}),
    ],
)
def test_each_word_begins_in_its_chunk(client: Client, text: str, shape: SpeechOptions) -> None:
    heard = list(client.stream(text, seed=4, timestamps=True, **shape))
    timed = [word for chunk in heard for word in chunk.words]
    assert [word.text for word in timed] == words(normalize(text))
    assert [word.start for word in timed] == sorted(word.start for word in timed)
    for chunk in heard:
        begins, ends = (at / chunk.sample_rate for at in (chunk.sample_offset, chunk.sample_offset + len(chunk.pcm)))
        assert all(begins - 1e-3 <= word.start <= ends + 1e-3 for word in chunk.words)


def test_a_long_text_is_spoken_whole(client: Client) -> None:
    text = "All of it is heard. " * 50
    heard = list(client.stream(text, seed=4, timestamps=True, speed=2.0, sample_rate=8000))
    assert heard[-1].final
    assert all(after.sample_offset == before.sample_offset + len(before.pcm) for before, after in pairwise(heard))
    segments = [chunk.segment for chunk in heard]
    assert segments == sorted(segments)
    assert set(segments) == set(range(segments[-1] + 1))
    assert segments[-1] >= 3
    assert [word.text for chunk in heard for word in chunk.words] == text.split()


def test_words_are_only_sent_when_asked_for(plain: list[AudioChunk]) -> None:
    assert not any(chunk.words for chunk in plain)
