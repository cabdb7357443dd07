"""CosyVoice 1 on the real server: modes that differ, windows that join, seeds that hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from live import Live
from numpy.typing import NDArray

from cosyserve_client import AsyncClient, AudioChunk, Client, SpeechOptions, SpeechRequest, Unimplemented

RATE = 22_050
FIRST = (172 - 5 - 15) * 256
"""Samples of a first window: the overlap with the next one and the vocoder's receptive field are held back."""

TEXT = "We planted three rows of beans behind the old house."
VOICE = "spk_tiny"


@pytest.fixture(scope="module")
def client1(server1: Live) -> Iterator[Client]:
    with Client(server1.url, stream_timeout=120) as client:
        yield client


def options(mode: str, prompt: SpeechOptions) -> SpeechRequest:
    """A request in each mode, with all that it needs."""
    return {
        "sft": SpeechRequest(text=TEXT, voice=VOICE, mode="sft"),
        "zero_shot": SpeechRequest.of(TEXT, **prompt),
        "cross_lingual": SpeechRequest(text="<|en|>" + TEXT, voice=VOICE, mode="cross_lingual"),
        "instruct": SpeechRequest(text=TEXT, voice=VOICE, instruct="A calm voice that reads slowly."),
    }[mode]


def spoken(client: Client, request: SpeechRequest, **given: object) -> list[AudioChunk]:
    return list(client.stream(SpeechRequest.of(request, **{"seed": 5, **given})))


def pcm(chunks: list[AudioChunk]) -> NDArray[np.int16]:
    return np.concatenate([chunk.pcm for chunk in chunks])


@pytest.fixture(scope="module")
def windows(client1: Client, prompt: SpeechOptions) -> list[AudioChunk]:
    """An utterance of several windows."""
    return [chunk for chunk in spoken(client1, options("sft", prompt)) if len(chunk.pcm)]


def test_audio_comes_window_by_window(windows: list[AudioChunk]) -> None:
    sizes = [len(chunk.pcm) for chunk in windows]
    assert len(sizes) >= 3
    assert sizes[0] == pytest.approx(FIRST, abs=512)
    assert set(sizes[1:-1]) == {172 * 256}
    assert [chunk.token_offset for chunk in windows] == [chunk.sample_offset * 50 // RATE for chunk in windows]


def test_windows_join_without_a_click(windows: list[AudioChunk]) -> None:
    audio = pcm(windows).astype(np.float64)
    jumps = np.abs(np.diff(audio, 2))
    usual = np.quantile(jumps, 0.999)
    for chunk in windows[1:]:
        at = chunk.sample_offset
        assert jumps[at - 4 : at + 4].max() <= usual


def test_windows_join_at_one_loudness(windows: list[AudioChunk]) -> None:
    """Upstream's cross-fade, whose weights sum to 1.08, makes 34 frames louder."""
    audio = pcm(windows).astype(np.float64)
    frames = np.sqrt(np.square(audio[: len(audio) // 4096 * 4096]).reshape(-1, 4096).mean(axis=1))
    assert frames.max() < 1.6 * np.median(frames)


def test_the_seed_decides_every_sample(client1: Client, prompt: SpeechOptions) -> None:
    request = options("sft", prompt)
    first, again, other = (pcm(spoken(client1, request, seed=seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


async def test_streams_at_once_equal_the_same_alone(server1: Live, prompt: SpeechOptions) -> None:
    modes = ("sft", "zero_shot", "cross_lingual", "instruct")
    wanted = [SpeechRequest.of(options(mode, prompt), seed=20 + index) for index, mode in enumerate(modes)]
    async with AsyncClient(server1.url, stream_timeout=120) as client:
        alone = [(await client.synthesize(request)).pcm for request in wanted]
        together = await asyncio.gather(*(client.synthesize(request) for request in wanted))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other.pcm)
    server1.wait_idle()


def test_a_long_text_is_spoken_segment_by_segment(client1: Client) -> None:
    text = " ".join(f"Sentence {name} fills a segment by itself, or so I hope, as it goes on." for name in "abcdefgh")
    chunks = spoken(client1, SpeechRequest(text=text, voice=VOICE, mode="sft"))
    assert {chunk.segment for chunk in chunks} >= {0, 1}
    assert all(after.sample_offset == before.sample_offset + len(before.pcm) for before, after in pairwise(chunks))


def test_another_rate_is_resampled(client1: Client, prompt: SpeechOptions) -> None:
    request = options("sft", prompt)
    own, other = pcm(spoken(client1, request)), pcm(spoken(client1, request, sample_rate=16_000))
    assert len(other) == pytest.approx(len(own) * 16_000 / RATE, abs=64)


def test_text_in_pieces_is_refused(client1: Client) -> None:
    with client1.session() as session:
        session.push("Hello there.")
        with pytest.raises(Unimplemented, match="needs CosyVoice 2 or 3"):
            next(session)
