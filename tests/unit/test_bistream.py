"""The order in which interleaved text and speech reach the model, with a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosyserve.config import LlmConfig
from cosyserve.errors import StageFailed
from cosyserve.llm.bistream import Interleaver

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"
CASES = {c["tag"]: c for c in json.loads((TINY / "manifest.json").read_text(encoding="utf-8"))["cases"]["bistream"]}
CONFIG = LlmConfig(48, 128, 2, 3, 1, 16, 1e6, 1e-6, 440, 6561, (5, 15), 0.8, 25, 10, 0.1)
START, TASK, SPEECH = -1.0, -2.0, 10_000.0


class Scripted:
    """Embeddings are one number: the text id, or SPEECH + the speech id. Tokens count up from 0."""

    def __init__(self, prompt_text: Sequence[int], prompt_speech: Sequence[int], script: dict[int, int]) -> None:
        self.fed: list[list[float]] = []
        self.script = script  # sampler call -> special id
        self.calls = 0
        self.held: list[bool] = []
        self.interleaver = Interleaver(
            CONFIG,
            start=np.full((1, 1), START, np.float32),
            task=np.full((1, 1), TASK, np.float32),
            prompt_text=prompt_text,
            prompt_speech=prompt_speech,
            embed_text=lambda ids: np.array(ids, np.float32).reshape(-1, 1),
            embed_speech=lambda ids: np.array(ids, np.float32).reshape(-1, 1) + np.float32(SPEECH),
            forward=self.forward,
            sample=self.sample,
        )

    def forward(self, embeddings: Any) -> Any:
        self.fed.append(embeddings[:, 0].tolist())
        return np.zeros(1)

    def sample(self, logits: Any, history: Sequence[int], hold: bool) -> int:
        self.held.append(hold)
        self.calls += 1
        return self.script.get(self.calls, self.calls)

    def lengths(self) -> list[int]:
        return [len(block) for block in self.fed]


def ending(run: Scripted, after: int) -> Iterator[int]:
    run.script[run.calls + after] = CONFIG.end
    return run.interleaver.finish()


@pytest.mark.parametrize("tag", ["scripted_prompt", "scripted_noprompt", "earlyfill"])
def test_forward_lengths_as_recorded(tag: str) -> None:
    case = CASES[tag]
    script = {4: CONFIG.fill} if tag == "earlyfill" else {}
    run = Scripted([1] * case["prompt_text_tokens_used"], [2] * case["prompt_speech_tokens_used"], script)
    emitted = [token for piece in case["text_ids"] for token in run.interleaver.feed(piece)]
    emitted += ending(run, 30)
    assert run.lengths() == case["forward_lengths"]
    assert len(emitted) == case["emitted"]


def test_the_sequence_without_prompt() -> None:
    run = Scripted([], [], {})
    feed = run.interleaver.feed
    assert list(feed([1, 2, 3, 4])) == []
    assert run.fed == []
    first = list(feed([5]))
    assert first == list(range(1, 16))
    assert run.fed[0] == [START, 1, 2, 3, 4, 5]
    assert run.fed[1:] == [[SPEECH + token] for token in first]
    assert list(feed([6])) == []
    assert list(ending(run, 3)) == [16, 17]
    # Upstream's quirk: the last speech token of the block is fed a second time.
    assert run.fed[16] == [SPEECH + 15, 6, TASK]
    assert run.held == [True] * 15 + [False] * 3


def test_prompt_speech_waits_for_text_block_by_block() -> None:
    prompt = list(range(100, 120))
    run = Scripted([1, 2, 3], prompt, {})
    assert list(run.interleaver.feed([4, 5, 6, 7, 8, 9])) == []
    assert run.fed == []
    # 20 prompt tokens are 5 into the second block of 15, so 10 tokens are left in it.
    assert len(list(run.interleaver.feed([10]))) == 10
    speech = [SPEECH + token for token in prompt]
    assert run.fed[0] == [START, 1, 2, 3, 4, 5, *speech[:15], 6, 7, 8, 9, 10, *speech[15:]]


def test_short_text_is_spoken_at_the_end() -> None:
    run = Scripted([1], [], {})
    assert list(run.interleaver.feed([2, 3])) == []
    assert list(ending(run, 2)) == [1]
    assert run.fed[0] == [START, 1, 2, 3, TASK]


def test_tokens_are_decoded_only_as_they_are_read() -> None:
    run = Scripted([], [], {})
    tokens = run.interleaver.feed([1, 2, 3, 4, 5])
    assert next(tokens) == 1
    assert len(run.fed) == 1


def test_an_end_before_the_text_ends_fails() -> None:
    run = Scripted([], [], {2: CONFIG.end + 1})
    with pytest.raises(StageFailed, match="before the text"):
        list(run.interleaver.feed([1, 2, 3, 4, 5]))


def test_a_fill_token_in_the_last_phase_fails() -> None:
    run = Scripted([], [], {1: CONFIG.fill})
    with pytest.raises(StageFailed, match="unexpected"):
        list(run.interleaver.finish())
