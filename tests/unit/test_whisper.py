"""Whisper's text tokenizer, rebuilt from its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.whisper import whisper_tokenizer

CASES = json.loads((Path(__file__).parents[1] / "data" / "cosyvoice1-tiny" / "manifest.json").read_text("utf-8"))
RECORDED = CASES["cases"]["token_cases"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer as the server reads it from prepared weights."""
    path = tmp_path_factory.mktemp("whisper") / "tokenizer.json"
    whisper_tokenizer().save(path)
    return Tokenizer.load(path)


@pytest.mark.parametrize("case", RECORDED, ids=range(len(RECORDED)))
def test_recorded_texts(tokenizer: Tokenizer, case: dict[str, list[int] | str]) -> None:
    assert tokenizer.encode(str(case["text"])) == case["ids"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [675, 1913, 1002]),
        ("你好", [26410]),
        ("<|endofprompt|>", [27, 91, 521, 2670, 28722, 662, 91, 29]),
        ("<endofprompt>", [27, 521, 2670, 28722, 662, 29]),
        ("[laughter]", [58, 5330, 60]),
        ("<strong>", [27, 28063, 29]),
        ("<|endoftext|><|en|><|zh|><|ko|><|ja|>", [50257, 50259, 50260, 50264, 50266]),
        ("<|yue|><|notimestamps|><|30.00|>", [50358, 50364, 51865]),
    ],
)
def test_known_ids(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids


def test_it_has_an_id_for_each_row_of_the_embedding(tokenizer: Tokenizer) -> None:
    assert len(tokenizer) == 51866


def test_users_may_tag_a_language_but_not_a_task(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_user("<|en|>hi") == tokenizer.encode("<|en|>hi")
    spelled = tokenizer.encode_user("<|endoftext|>")
    assert 50257 not in spelled
    assert len(spelled) > 1
