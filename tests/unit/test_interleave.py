"""The order in which interleaved text and speech reach the model, with a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from cosyserve.config import LlmConfig
from cosyserve.errors import StageFailed
from cosyserve.llm.decoder import VocabLayout
from cosyserve.llm.interleave import Interleaver

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"
CASES = {c["tag"]: c for c in json.loads((TINY / "manifest.json").read_text(encoding="utf-8"))["cases"]["bistream"]}
CONFIG = LlmConfig(48, 128, 2, 3, 1, 16, 1e6, 1e-6, 440, 6561, (5, 15), 0.8, 25, 10, 0.1)
NUMBERS = VocabLayout(CONFIG)
START, TASK, SPEECH = NUMBERS.start, NUMBERS.task, NUMBERS.speech


class Run:
    """Feeds the given text and draws 1, 2, 3, ... except for the draws in `script`."""

    def __init__(
        self,
        prompt_text: Sequence[int] = (),
        prompt_speech: Sequence[int] = (),
        prefix: Sequence[int] = (),
        *,
        script: dict[int, int] | None = None,
        as_upstream: bool = False,
    ) -> None:
        self.interleaver = Interleaver(CONFIG, prompt_text, prompt_speech, prefix, as_upstream=as_upstream)
        self.script = script or {}
        self.fed: list[list[int]] = []
        self.drawn = 0
        self.open: list[bool] = []  # at each draw
        self.ended = False

    def feed(self, text: Iterable[int]) -> list[int]:
        """Feed text, and return the new speech tokens."""
        self.interleaver.add(text)
        return self._speak()

    def end(self, after: int) -> list[int]:
        """The remaining speech tokens; that draw of the rest is the end."""
        self.interleaver.end()
        self.script[self.drawn + after] = CONFIG.end
        return self._speak()

    def _speak(self) -> list[int]:
        spoken = []
        while not self.ended and (piece := self.interleaver.next()):
            self.fed.append(piece.ids)
            if not piece.draws:
                continue
            self.drawn += 1
            self.open.append(self.interleaver.open)
            token = self.script.get(self.drawn, self.drawn)
            if token == CONFIG.end and not self.interleaver.open:
                self.ended = True
                break
            self.interleaver.take(token)
            spoken += [token] if token < CONFIG.end else []
        return spoken


def speech(tokens: Iterable[int]) -> list[int]:
    return [SPEECH + token for token in tokens]


@pytest.mark.parametrize("tag", ["scripted_prompt", "scripted_noprompt", "earlyfill"])
def test_pieces_are_as_long_as_recorded(tag: str) -> None:
    case = CASES[tag]
    script = {4: CONFIG.fill} if tag == "earlyfill" else {}
    prompt = [1] * case["prompt_text_tokens_used"], [2] * case["prompt_speech_tokens_used"]
    run = Run(*prompt, script=script, as_upstream=True)
    emitted = [token for piece in case["text_ids"] for token in run.feed(piece)]
    emitted += run.end(30)
    assert [len(ids) for ids in run.fed] == case["forward_lengths"]
    assert len(emitted) == case["emitted"]


def test_the_sequence_without_prompt() -> None:
    run = Run()
    assert run.feed([1, 2, 3, 4]) == []
    assert run.fed == []
    first = run.feed([5])
    assert first == list(range(1, 16))
    assert run.fed[0] == [START, 1, 2, 3, 4, 5]
    assert run.fed[1:] == [[token] for token in speech(first)]
    assert run.feed([6]) == []
    assert run.end(3) == [16, 17]
    assert run.fed[16] == [6, TASK]
    assert run.open == [True] * 15 + [False] * 3


def test_what_is_fed_does_not_depend_on_when_text_arrives() -> None:
    text = list(range(100, 133))
    whole, little = Run([1, 2, 3], range(20)), Run([1, 2, 3], range(20))
    spoken = [token for id in text for token in little.feed([id])] + little.end(9)
    assert whole.feed(text) + whole.end(9) == spoken
    assert whole.fed == little.fed


def test_prompt_speech_waits_for_text_block_by_block() -> None:
    prompt = list(range(100, 120))
    run = Run([1, 2, 3], prompt)
    assert run.feed([4, 5, 6, 7, 8, 9]) == []
    assert run.fed == []
    # 20 prompt tokens are 5 into the second block of 15, so 10 tokens are left in it.
    assert len(run.feed([10])) == 10
    assert run.fed[0] == [START, 1, 2, 3, 4, 5, *speech(prompt[:15]), 6, 7, 8, 9, 10, *speech(prompt[15:])]


def test_short_text_is_spoken_at_the_end() -> None:
    run = Run([1])
    assert run.feed([2, 3]) == []
    assert run.end(2) == [1]
    assert run.fed[0] == [START, 1, 2, 3, TASK]


def test_prompt_speech_left_over_follows_the_task() -> None:
    run = Run([1, 2], range(20))
    assert run.feed([3, 4, 5, 6]) == []
    assert run.end(2) == [1]
    assert run.fed[0] == [START, 1, 2, 3, 4, 5, *speech(range(15)), 6, TASK, *speech(range(15, 20))]


def test_a_prompt_of_whole_blocks_waits_for_text() -> None:
    run = Run([1, 2, 3], range(15))
    assert run.feed([4, 5, 6]) == []
    assert len(run.feed([7, 8, 9, 10])) == 15
    assert run.fed[0] == [START, 1, 2, 3, 4, 5, *speech(range(15)), 6, 7, 8, 9, 10]


def test_a_prefix_stands_outside_the_blocks() -> None:
    run = Run([3], prefix=[1, 2])
    assert run.feed([4, 5, 6]) == []
    assert len(run.feed([7])) == 15
    assert run.fed[0] == [START, 1, 2, 3, 4, 5, 6, 7]


def test_special_cases_of_the_original() -> None:
    again = Run(as_upstream=True)
    again.feed([1, 2, 3, 4, 5])
    again.end(1)
    assert again.fed[-1] == [SPEECH + 15, TASK]
    dropped = Run([1, 2], range(20), as_upstream=True)
    dropped.feed([3, 4, 5, 6])
    dropped.end(1)
    assert dropped.fed == [[START, 1, 2, 3, 4, 5, *speech(range(15)), 6, TASK]]
    whole_blocks = Run([1, 2, 3], range(15), as_upstream=True)
    assert len(whole_blocks.feed([4, 5])) == 15
    assert len(Run(prefix=[1], as_upstream=True).feed([2])) == 15


def test_an_end_before_the_text_ends_fails() -> None:
    with pytest.raises(StageFailed, match="before the text"):
        Run(script={2: CONFIG.end + 1}).feed([1, 2, 3, 4, 5])


def test_a_fill_token_in_the_last_phase_fails() -> None:
    run = Run(script={1: CONFIG.fill})
    with pytest.raises(StageFailed, match="unexpected"):
        run.end(2)
