"""CosyVoice3 on the real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live import Live

from cosyserve_client import AsyncClient, Client, SpeechOptions, read_prompt

TEXT = "We planted three rows of beans."
TRANSCRIPT = "Good morning, the train to the harbor leaves at nine."


@pytest.fixture(scope="module")
def client3(server3: Live) -> Iterator[Client]:
    with Client(server3.url, stream_timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def audio(set3: Path) -> SpeechOptions:
    samples, rate = read_prompt(str(set3 / "prompt.wav"))
    return {"prompt_audio": samples, "prompt_sample_rate": rate}


def options(mode: str, audio: SpeechOptions) -> SpeechOptions:
    found: dict[str, SpeechOptions] = {
        "stored voice": {},
        "sft": {"mode": "sft"},
        "zero_shot": {**audio, "prompt_text": TRANSCRIPT},
        "cross_lingual": audio,
        "instruct": {**audio, "instruct": "请用广东话表达。"},
    }
    return found[mode]


@pytest.mark.parametrize("mode", ["stored voice", "zero_shot"])
def test_a_whole_segment_is_as_long_as_its_pieces(client3: Client, audio: SpeechOptions, mode: str) -> None:
    pieces, whole = (client3.synthesize(TEXT, seed=3, stream=way, **options(mode, audio)).pcm for way in (True, False))
    assert len(whole) == len(pieces)
    assert len(pieces) % 960 == 0


async def test_a_seed_gives_the_same_samples_alone_and_in_company(
    server3: Live, client3: Client, audio: SpeechOptions
) -> None:
    alone = client3.synthesize(TEXT, seed=5, **options("zero_shot", audio)).pcm
    async with AsyncClient(server3.url) as client:
        calls = [client.synthesize(TEXT, seed=seed, **options("zero_shot", audio)) for seed in (5, 6, 7)]
        together = await asyncio.gather(*calls)
    np.testing.assert_array_equal(together[0].pcm, alone)


def test_upstream_s_prefix_changes_nothing(client3: Client, audio: SpeechOptions) -> None:
    written: SpeechOptions = {**audio, "prompt_text": f"You are a helpful assistant.<|endofprompt|>{TRANSCRIPT}"}
    plain = client3.synthesize(TEXT, seed=5, **options("zero_shot", audio)).pcm
    np.testing.assert_array_equal(client3.synthesize(TEXT, seed=5, **written).pcm, plain)


@pytest.mark.parametrize("mode", ["stored voice", "zero_shot", "instruct"])
def test_text_in_pieces(client3: Client, audio: SpeechOptions, mode: str) -> None:
    def told(pieces: list[str]) -> list[int]:
        with client3.session(seed=3, **options(mode, audio)) as session:
            for piece in pieces:
                session.push(piece)
            session.end()
            return [sample for chunk in session for sample in chunk.pcm.tolist()]

    whole = told([TEXT])
    assert max(whole) > 100
    assert told(list(TEXT)) == whole
