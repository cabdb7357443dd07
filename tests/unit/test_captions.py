"""Start times of words: each word once, in order, in its chunk, near the time in speech with known timing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosyserve.pipeline.captions import Captions, Word
from cosyserve.text.words import duration, words

RATE = 1000
TIMINGS = json.loads((Path(__file__).parents[1] / "data" / "timings.json").read_text("utf-8"))
"""Sentences as eSpeak NG speaks them: seconds in all, and the start of each word (null where it reports none)."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello there,  my friend - how are you?", ["Hello", "there,", "my", "friend", "-", "how", "are", "you?"]),
        ("今天，好。", ["今", "天，", "好。"]),
        ("他说“好！”走", ["他", "说", "“好！”", "走"]),
        ("你好hello world", ["你", "好", "hello", "world"]),
        ("カナと々（真）", ["カ", "ナ", "と", "々", "（真）"]),
        ("안녕 세상", ["안녕", "세상"]),
        (" ", []),
    ],
)
def test_words_are_what_a_caption_shows(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@settings(deadline=None)
@given(st.text())
def test_only_blanks_are_lost(text: str) -> None:
    assert "".join(words(text)) == "".join(text.split())
    assert all(duration(word) >= 0 for word in words(text))


def chunked(
    captions: Captions, text: str, chunks: list[int], known_at: int, segment: int = 0, offset: int = 0
) -> list[list[Word]]:
    """The words of each chunk of a segment whose length is known from chunk `known_at` on."""
    made = np.cumsum(chunks)
    found = []
    for i, samples in enumerate(chunks):
        before, last, ended = int(made[i]) - samples, i == len(chunks) - 1, i >= known_at
        so_far = made[-1] if ended else made[i]
        found.append(
            captions.chunk(
                segment, text, offset + before, before, samples, made=float(so_far), ended=ended or last, last=last
            )
        )
    return found


spoken = st.lists(
    st.tuples(
        st.text("ab ,。字", max_size=30), st.lists(st.integers(0, 3000), min_size=1, max_size=5), st.integers(0, 5)
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(spoken)
def test_every_word_begins_once_and_in_its_chunk(spoken: list[tuple[str, list[int], int]]) -> None:
    captions = Captions(RATE, speed=1.0)
    offset = 0
    starts = []
    for segment, (text, chunks, known_at) in enumerate(spoken):
        found = chunked(captions, text, chunks, known_at, segment, offset)
        assert [word.text for chunk in found for word in chunk] == words(text)
        for samples, chunk in zip(chunks, found, strict=True):
            assert all(offset - 1e-6 <= word.start * RATE <= offset + samples + 1e-6 for word in chunk)
            starts += [word.start for word in chunk]
            offset += samples
    assert starts == sorted(starts)


def off(lang: str, chunk: float, known_at: int) -> list[float]:
    """Seconds between estimate and truth, for each word whose beginning is known."""
    errors = []
    for text, seconds, starts in TIMINGS[lang]:
        samples = round(seconds * RATE)
        chunks = [len(part) for part in np.array_split(np.arange(samples), max(1, round(seconds / chunk)))]
        found = chunked(Captions(RATE, speed=1.0), text, chunks, known_at)
        estimates = [word.start for part in found for word in part]
        errors += [abs(e - t) for e, t in zip(estimates, starts, strict=True) if t is not None]
    return errors


@pytest.mark.parametrize(("lang", "mean", "most"), [("en", 0.08, 0.24), ("zh", 0.14, 0.33)])
def test_words_are_about_where_they_are_spoken(lang: str, mean: float, most: float) -> None:
    """The figures of `Captions`, of segments whose length is known."""
    errors = off(lang, chunk=1.0, known_at=0)
    assert len(errors) > 150
    assert (np.mean(errors), np.percentile(errors, 95)) == pytest.approx((mean, most), abs=0.01)
    assert max(errors) <= 0.43


def test_a_wrong_guess_of_the_pace_is_corrected() -> None:
    """Speech at half the guessed pace: after the length is known, the remaining words are spread over the rest."""
    text = "word " * 20
    guessed = sum(map(duration, words(text))) / 17
    chunks = [round(2 * guessed * RATE / 8)] * 8
    found = chunked(Captions(RATE, speed=1.0), text, chunks, known_at=2)
    assert 10 <= sum(map(len, found[:2])) <= 11  # twice their share
    assert all(1 <= len(chunk) <= 2 for chunk in found[2:])


def test_a_segment_is_guessed_by_the_pace_of_those_before() -> None:
    captions = Captions(RATE, speed=1.0)
    chunks = [1500] * 8
    chunked(captions, "word " * 20, chunks, known_at=0)
    found = chunked(captions, "word " * 20, chunks, known_at=9, segment=1, offset=sum(chunks))
    assert max(map(len, found)) == 3  # 2.5 each; at the first guess they would be 5


def test_the_first_guess_knows_the_speed() -> None:
    text = "word " * 20
    heard = [chunked(Captions(RATE, speed), text, [500] * 10, known_at=9)[0] for speed in (1.0, 2.0)]
    assert len(heard[1]) == 2 * len(heard[0])


def test_words_that_arrive_while_others_are_spoken_follow_them() -> None:
    captions = Captions(RATE, speed=1.0)
    texts = ["one two", "one two three four", "one two three four five"]
    found = [
        captions.chunk(0, text, 1000 * i, 1000 * i, 1000, made=1000.0 * (i + 1), ended=i == 2, last=i == 2)
        for i, text in enumerate(texts)
    ]
    assert [[word.text for word in chunk] for chunk in found] == [["one", "two"], ["three", "four"], ["five"]]
    assert all(i <= word.start < i + 1 for i, chunk in enumerate(found) for word in chunk)
