"""CosyVoice 1's language model in the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve.errors import InvalidInput, Unsupported
from cosyserve.llm.engine import Engine
from cosyserve.llm.sequence import GenerationRequest
from cosyserve.load.llm import load_decoder, load_prompt_encoder
from cosyserve.settings import Settings

SPEAKER = np.random.default_rng(0).standard_normal(192).astype(np.float32)
NONE = np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def engine(weights1: Path) -> Engine:
    settings = Settings(weights=str(weights1), llm_slots=4)
    config, decoder = load_decoder(settings)
    return Engine(decoder, config, settings.llm_slots, prompt_encoder=load_prompt_encoder(settings))


def sequence(id: int, *, text: int = 4, speech: int = 0, speaker: NDArray[np.float32] = SPEAKER) -> GenerationRequest:
    """A sequence of so many text and prompt speech tokens; its tokens go to ``emitted``."""
    random = np.random.default_rng(id)
    emitted: list[int | None] = []
    made = GenerationRequest(
        id=id,
        text=random.integers(0, 50257, text).astype(np.int32),
        prompt_text=random.integers(0, 50257, speech // 10).astype(np.int32),
        prompt_speech=random.integers(0, 4096, speech).astype(np.int32),
        seed=id,
        emit=emitted.append,
        fail=pytest.fail,
        speaker=speaker,
    )
    made.emit = emitted.append
    return made


def spoken(engine: Engine, *sequences: GenerationRequest) -> list[list[int | None]]:
    """Tokens of sequences that run in one engine together."""
    heard: list[list[int | None]] = [[] for _ in sequences]
    for one, tokens in zip(sequences, heard, strict=True):
        one.emit = tokens.append
        engine.admit(one)
    while engine.busy:
        engine.step()
    return heard


def test_a_sequence_says_the_same_alone_and_among_others(engine: Engine) -> None:
    # Prompts of other lengths, and long ones that make the cache grow.
    made = [{"text": 4, "speech": 0}, {"text": 9, "speech": 150}, {"text": 3, "speech": 70}, {"text": 20}]
    alone = [spoken(engine, sequence(id, **sizes))[0] for id, sizes in enumerate(made)]
    together = spoken(engine, *(sequence(id, **sizes) for id, sizes in enumerate(made)))
    assert together == alone
    assert all(len(tokens) > 2 * sizes["text"] for tokens, sizes in zip(alone, made, strict=True))


def test_the_speaker_changes_the_tokens(engine: Engine) -> None:
    (first,) = spoken(engine, sequence(1))
    (other,) = spoken(engine, sequence(1, speaker=-SPEAKER))
    (nobody,) = spoken(engine, sequence(1, speaker=NONE))
    assert first != other
    assert nobody not in (first, other)


def test_without_a_speaker_there_is_no_position_for_it(weights1: Path) -> None:
    prompt_encoder = load_prompt_encoder(Settings(weights=str(weights1)))
    assert prompt_encoder is not None
    assert len(prompt_encoder(sequence(1))) == 1 + 1 + 4 + 1
    assert len(prompt_encoder(sequence(1, speaker=NONE))) == 1 + 4 + 1
    assert len(prompt_encoder(sequence(1, speech=20))) == 1 + 1 + 2 + 4 + 1 + 20


def test_text_is_encoded_without_a_look_ahead(weights1: Path) -> None:
    prompt_encoder = load_prompt_encoder(Settings(weights=str(weights1)))
    assert prompt_encoder is not None
    whole = sequence(1, text=9)
    begun = sequence(1, text=9)
    begun.text = whole.text[:5]
    np.testing.assert_allclose(prompt_encoder(whole)[:7], prompt_encoder(begun)[:7], atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("text", np.asarray([51866], np.int32), "text_tokens"),
        ("prompt_text", np.asarray([-1], np.int32), "prompt_text_tokens"),
        ("prompt_speech", np.asarray([4096], np.int32), "llm_prompt_tokens"),
        ("text", np.zeros(0, np.int32), "text_tokens"),
        ("speaker", np.zeros(80, np.float32), "llm_speaker_embedding"),
    ],
)
def test_wrong_input_is_named(engine: Engine, field: str, value: NDArray[np.generic], named: str) -> None:
    wrong = sequence(1)
    setattr(wrong, field, value)
    with pytest.raises(InvalidInput, match=f"^{named}: "):
        engine.admit(wrong)
    assert not engine.busy


def test_text_must_come_at_once(engine: Engine) -> None:
    asked = sequence(1)
    asked.more = True
    with pytest.raises(Unsupported, match="all of its text"):
        engine.admit(asked)
