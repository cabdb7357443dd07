"""Offsets of chunks: samples without gaps, and tokens that add up to their segments."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cosyserve.pipeline.timeline import Chunk, Timeline


def pcm(samples: int) -> np.ndarray:
    return np.zeros(samples, np.int16)


segments = st.lists(
    st.tuples(st.integers(0, 300), st.lists(st.integers(0, 20_000), min_size=1, max_size=6)), min_size=1, max_size=5
)


@settings(deadline=None)
@given(per_token=st.floats(100, 4000), spoken=segments)
def test_ranges_join_and_end_with_the_last_token(per_token: float, spoken: list[tuple[int, list[int]]]) -> None:
    timeline = Timeline(per_token)
    sent = 0
    for index, (tokens, chunks) in enumerate(spoken):
        reached = 0
        for number, samples in enumerate(chunks):
            chunk = timeline.chunk(pcm(samples), index, "", tokens, ended=True, last=number == len(chunks) - 1)
            assert (chunk.sample_offset, chunk.token_offset, chunk.segment) == (sent, reached, index)
            assert chunk.token_count >= 0
            sent += samples
            reached += chunk.token_count
        assert reached == tokens
    end = timeline.end()
    assert (end.sample_offset, end.token_count, end.final) == (sent, 0, True)


def test_tokens_are_counted_by_what_is_heard() -> None:
    """28 tokens were processed, but their last frames have no audio yet."""
    timeline = Timeline(960)
    steps = [(14 * 960 + 5, 28, False), (25 * 960, 53, False), (11 * 960 - 5, 50, True)]
    chunks = [timeline.chunk(pcm(samples), 0, "", tokens, ended=last, last=last) for samples, tokens, last in steps]
    assert [(chunk.token_offset, chunk.token_count) for chunk in chunks] == [(0, 14), (14, 25), (39, 11)]


def test_the_end_says_where_the_utterance_stands() -> None:
    timeline = Timeline(960)
    timeline.chunk(pcm(960), 0, "", 1, ended=True, last=True)
    timeline.chunk(pcm(1920), 1, "", 2, ended=True, last=True)
    end: Chunk = timeline.end()
    assert (end.sample_offset, end.segment, end.token_offset, len(end.audio)) == (2880, 1, 2, 0)
