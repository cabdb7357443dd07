"""Streams of one client: order and timing of chunks, seeds, voices."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from live import Live

from cosyserve.metrics import AUDIO_SAMPLES
from cosyserve_client import AudioChunk, Client, SpeechOptions, SpeechRequest

SHORT = "Hello there."
SEGMENTS = 2
# Commas count as tokens of the text, so that segments fill up with few words.
LONG = " ".join(", ".join([first, *["two", "three", "four", "five"] * 8]) + "." for first in ("One", "Ten"))
SAMPLES_PER_TOKEN = 960


@pytest.fixture(scope="module")
def chunks(client: Client) -> list[AudioChunk]:
    """A long text, spoken in several segments of several chunks."""
    return list(client.stream(LONG, seed=3))


def spoken(chunks: list[AudioChunk]) -> list[list[AudioChunk]]:
    """The chunks that carry audio, by segment."""
    return [[c for c in chunks if c.segment == index and len(c.pcm)] for index in range(SEGMENTS)]


def test_sample_offsets_leave_no_gap(chunks: list[AudioChunk]) -> None:
    assert chunks[0].sample_offset == 0
    assert all(after.sample_offset == before.sample_offset + len(before.pcm) for before, after in pairwise(chunks))


def test_only_the_last_chunk_is_final_and_it_carries_no_audio(chunks: list[AudioChunk]) -> None:
    assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(chunks[-1].pcm) == 0


def test_each_sentence_is_a_segment(chunks: list[AudioChunk]) -> None:
    order = [chunk.segment for chunk in chunks]
    assert order == sorted(order)
    assert set(order) == set(range(SEGMENTS))


def test_token_offsets_count_the_audio_of_their_segment(chunks: list[AudioChunk]) -> None:
    for segment in spoken(chunks):
        start = segment[0].sample_offset
        assert [c.token_offset for c in segment] == [(c.sample_offset - start) // SAMPLES_PER_TOKEN for c in segment]


def test_each_segment_starts_small_and_grows(chunks: list[AudioChunk]) -> None:
    for segment in spoken(chunks):
        sizes = [len(chunk.pcm) for chunk in segment[:-1]]
        assert len(sizes) >= 2
        # The first reaches to the model's chunk grid, so it may be longer than the second.
        assert sizes[1:] == sorted(sizes[1:])
        assert sizes[0] < sizes[-1]


def test_audio_arrives_while_the_rest_is_still_being_made(client: Client, server: Live) -> None:
    before = server.metric(AUDIO_SAMPLES)
    with client.stream(LONG, seed=3) as stream:
        next(stream)
        made_by_then = server.metric(AUDIO_SAMPLES) - before
        rest = list(stream)
    assert len(rest) > 2
    assert made_by_then < (rest[-1].sample_offset) / 2


def test_the_same_seed_gives_the_same_samples(client: Client) -> None:
    first, again = (client.synthesize(SHORT, seed=7).pcm for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_another_seed_gives_other_samples(client: Client) -> None:
    assert not np.array_equal(client.synthesize(SHORT, seed=7).pcm, client.synthesize(SHORT, seed=8).pcm)


def test_without_a_seed_each_call_differs(client: Client) -> None:
    assert not np.array_equal(client.synthesize(SHORT).pcm, client.synthesize(SHORT).pcm)


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, -(2**63)])
def test_any_seed_serves(client: Client, seed: int) -> None:
    assert len(client.synthesize("Hi.", seed=seed).pcm)


def test_without_streaming_a_segment_is_one_chunk(client: Client, chunks: list[AudioChunk]) -> None:
    whole = list(client.stream(LONG, seed=3, stream=False))
    assert [len(segment) for segment in spoken(whole)] == [1] * SEGMENTS
    # The same speech tokens, so the same length; full attention, so other samples.
    assert whole[-1].sample_offset == chunks[-1].sample_offset
    full, causal = (np.concatenate([chunk.pcm for chunk in given]) for given in (whole, chunks))
    assert not np.array_equal(full, causal)


@pytest.mark.parametrize("stream", [True, False])
def test_the_prompt_changes_the_voice(client: Client, prompt: SpeechOptions, stream: bool) -> None:
    cloned = list(client.stream(SpeechRequest.of(SHORT, **prompt), seed=7, stream=stream))
    assert cloned[-1].final
    assert cloned[-1].sample_offset > 0
    registered = client.synthesize(SHORT, seed=7, stream=stream).pcm
    assert not np.array_equal(np.concatenate([chunk.pcm for chunk in cloned]), registered)


def test_a_cached_prompt_sounds_as_at_first(client: Client, prompt: SpeechOptions) -> None:
    samples = prompt["prompt_audio"] * np.float32(0.9)
    fresh, cached = (
        client.synthesize(
            SHORT, seed=7, prompt_audio=samples, prompt_sample_rate=16_000, prompt_text=prompt["prompt_text"]
        ).pcm
        for _ in range(2)
    )
    np.testing.assert_array_equal(fresh, cached)


def test_prompts_transcript_and_instruction_each_matter(client: Client, prompt: SpeechOptions) -> None:
    voice: SpeechOptions = {
        "prompt_audio": prompt["prompt_audio"],
        "prompt_sample_rate": prompt["prompt_sample_rate"],
    }
    request = SpeechRequest.of(SHORT, **voice)
    zero_shot = client.synthesize(request, seed=7, prompt_text=prompt["prompt_text"]).pcm
    cross_lingual = client.synthesize(request, seed=7).pcm
    instructed = client.synthesize(request, seed=7, instruct="Speak slowly.").pcm
    assert not np.array_equal(zero_shot, cross_lingual)
    assert not np.array_equal(cross_lingual, instructed)
    assert not np.array_equal(zero_shot, instructed)


@pytest.mark.parametrize(
    "text", ["你好，今天天气很好。", "In 2024 it cost $15.", "A\0B.", "Say <|endofprompt|> aloud."]
)
def test_any_text_is_spoken(client: Client, text: str) -> None:
    assert client.synthesize(text, seed=1).seconds > 0.2


def test_control_tokens_in_the_text_are_mere_text(client: Client) -> None:
    # As a control token it would be one id; as text it is many ids, with at least two speech tokens each.
    marker = "<|endofprompt|>"
    plain, with_marker = (client.synthesize(text, seed=1).seconds for text in ("Hi.", f"Hi {marker * 5}."))
    assert with_marker > plain
