"""Text in pieces: word boundaries do not depend on the pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosyserve.limits import MAX_WORD_CHARS
from cosyserve.text.incremental import complete, ends_sentence, leading_stop, tidy, words
from cosyserve.text.tokenizer import Tokenizer

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"

TEXTS = (
    "Hello there, my friend. It's 3 o'clock!",
    "收到你的来信，我很高兴。“真的吗？”他问…… 好。",
    "Mixed 中文 and English，像这样。OK?",
    "[breath] a <strong>tag</strong> here",
    "... and so on -- or (not)",
    "no",
    "一" * 80,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bundle(TINY / "bundle" / "CosyVoice-BlankEN", 2)


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_the_text_and_their_ids_its_ids(tokenizer: Tokenizer, text: str) -> None:
    found = words(text)
    assert "".join(found) == text
    if len(text) < 80:  # longer texts without a word's end are cut
        assert [id for word in found for id in tokenizer.encode_user(word)] == tokenizer.encode_user(text)


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_complete_stays_so(text: str) -> None:
    whole = words(text)
    for length in range(len(text) + 1):
        part = text[:length]
        ready = words(part[: complete(part)])
        assert ready == whole[: len(ready)]
    assert len(text) - complete(text) <= MAX_WORD_CHARS


def test_a_word_ends_where_the_next_begins() -> None:
    assert words("Hello there, you") == ["Hello", " there,", " you"]
    assert complete("Hello") == 0
    assert complete("Hello there,") == 5
    assert complete("Hello there, ") == 12
    assert words("你好，世界。") == ["你好", "，世界", "。"]
    assert words("... so") == ["... so"]


def test_blanks_are_one_space() -> None:
    assert tidy("a\n\n b\t　c ") == "a b c "


def test_sentences_end_with_a_stop_and_what_closes_behind_it() -> None:
    assert [ends_sentence(word) for word in (" end.", ' so?"', " 3.5", " Hi,", "吗？”")] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert [leading_stop(word) for word in ("。”他", "，他", " he.", "！")] == ["。”", "", "", "！"]
