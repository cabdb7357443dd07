"""Normalisation, splitting and tokenisation of text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cosyserve import versions
from cosyserve.errors import BundleError, WeightsError
from cosyserve.text.normalize import (
    expand_numbers,
    is_silent,
    normalize,
    preload,
    remove_bracket,
    replace_blank,
    spell_out_numbers,
)
from cosyserve.text.split import cut, segments, split_paragraph
from cosyserve.text.tokenizer import Tokenizer

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"
CASES = json.loads((TINY / "manifest.json").read_text(encoding="utf-8"))["cases"]
LONG_ZH = "收到好友从远方寄来的生日礼物那份意外的惊喜与深深的祝福让我心中充满了甜蜜的快乐笑容如花儿般绽放开来"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bundle(TINY / "bundle" / "CosyVoice-BlankEN", 2)


@pytest.mark.parametrize("case", CASES["normalize_cases"], ids=lambda case: case["text"][:12].strip())
def test_normalize_and_split_as_recorded_without_wetext(case: dict[str, object], tokenizer: Tokenizer) -> None:
    joined = normalize(str(case["text"]), expand=str)
    assert joined == case["joined"]
    assert segments(joined, lambda part: len(tokenizer.encode_user(part))) == case["split"]


def test_numbers_are_read_out_in_the_language_of_the_text() -> None:
    preload()
    assert normalize("今天是2024年5月1日，3.5度") == "今天是二零二四年五月一日，三点五度"
    assert normalize("It costs $3.5 in 2024.") == "It costs three point five dollars in twenty twenty four."


def test_text_without_digits_never_reaches_the_grammars() -> None:
    assert expand_numbers("Dr. Smith  &  Co") == "Dr. Smith  &  Co"


@pytest.mark.parametrize("text", ['他说"3"遍', 'say "five" 5 times', "a\\b 5"])
def test_quotes_and_backslashes_survive_the_grammars(text: str) -> None:
    assert [c for c in expand_numbers(text) if c in '"\\'] == [c for c in text if c in '"\\']


@pytest.mark.parametrize("text", ["8~", "2^", "5/"])
def test_text_that_the_grammars_reject_stays(text: str) -> None:
    assert expand_numbers(text) == text


def test_spell_out_numbers() -> None:
    text = "It costs 3.5 dollars in 2024, room 007"
    assert spell_out_numbers(text) == "It costs three.five dollars in two thousand and twenty-four, room seven"
    assert spell_out_numbers("9" * 40) == " ".join(["nine"] * 40)


def test_replace_blank_and_remove_bracket() -> None:
    assert replace_blank("我 爱 hello world 你 ok") == "我爱hello world你ok"
    assert replace_blank(" a  b ") == "ab"
    assert remove_bracket("（a）【b】`c`——d") == "abc d"


def test_split_paragraph_zh() -> None:
    sentence = LONG_ZH[:49] + "。"
    assert [len(s) for s in split_paragraph(sentence * 3, "zh", len)] == [100, 50]
    assert [len(s) for s in split_paragraph("字" * 70 + "。" + "字" * 15 + "。" + "字" * 10 + "。", "zh", len)] == [
        71,
        27,
    ]
    assert split_paragraph("你好。。他说“好！”走吧", "zh", len) == ["你好。他说“好！”走吧。"]


@pytest.mark.parametrize("text", ["", "   ", "\n", "。”", "!!! ???", "😀", "。。。", ". ."])
def test_text_without_words_has_no_segments(text: str) -> None:
    assert segments(normalize(text), len) == []


@pytest.mark.parametrize(("rest", "lengths"), [(18, [90]), (19, [71, 20])])
def test_a_rest_shorter_than_20_joins_the_segment_before(rest: int, lengths: list[int]) -> None:
    assert [len(s) for s in split_paragraph("字" * 70 + "。" + "字" * rest + "。", "zh", len)] == lengths


def test_a_quote_after_an_ender_at_the_start_opens_the_first_sentence() -> None:
    assert segments(normalize("。”你好"), len) == ["”你好。"]


def test_splitting_a_long_text_is_linear() -> None:
    calls = 0

    def count(part: str) -> int:
        nonlocal calls
        calls += len(part)
        return len(part)

    split_paragraph("a." * 20_000, "en", count)
    assert calls < 20_000 * 2 * 100


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=" ab1.。“”\"'，,、！?\n-²（）`—中文<|>[]\t", max_size=40))
@example('。"中1')
@example("1 ")
def test_no_text_fails(text: str) -> None:
    assert all(not is_silent(part) for part in segments(normalize(text), len))


def test_cut_prefers_a_break_near_the_middle_and_keeps_all() -> None:
    text = "aaaa bbbb,cccc dddd"
    assert cut(text, 10, len) == ["aaaa bbbb,", "cccc dddd"]
    parts = cut("x" * 50, 7, len)
    assert max(map(len, parts)) <= 7
    assert "".join(parts) == "x" * 50


def test_special_ids_follow_the_vocabulary(tokenizer: Tokenizer) -> None:
    size = len(json.loads((TINY / "bundle/CosyVoice-BlankEN/vocab.json").read_text(encoding="utf-8")))
    assert [tokenizer.encode(token) for token in versions.get(2).special_tokens] == [[size + i] for i in range(20)]
    assert len(tokenizer) == size + 20
    assert tokenizer.special("<|endofprompt|>") == size + 3


def test_version_3_has_phones_behind_the_tags() -> None:
    tokenizer = Tokenizer.from_bundle(TINY / "bundle" / "CosyVoice-BlankEN", 3)
    first = tokenizer.special("<|endoftext|>")
    # Official ids, counted from <|endoftext|> (151643).
    official = {"[mn]": 151662, "<|endofsystem|>": 151663, "[AA]": 151664, "[AA0]": 151665, "[HH]": 151706}
    official |= {"[EH1]": 151694, "[OW0]": 151722, "[ZH]": 151747, "[a]": 151748, "[j]": 151797, "[ǐ]": 151913}
    official |= {"[ǜ]": 151923}
    assert {token: tokenizer.special(token) - first + 151643 for token in official} == official
    assert len(tokenizer) == first + 151924 - 151643


def test_user_text_cannot_use_control_tokens(tokenizer: Tokenizer) -> None:
    controls = {tokenizer.special(token) for token in versions.get(2).special_tokens if token.startswith("<|")}
    text = "a<|endoftext|>b<|im_start|><|endofprompt|>"
    assert controls & set(tokenizer.encode(text))
    assert not controls & set(tokenizer.encode_user(text))
    assert len(tokenizer.encode_user(text)) > len(tokenizer.encode(text))


@pytest.mark.parametrize("case", CASES["token_cases"], ids=lambda case: case["text"][:12].strip())
def test_user_text_without_control_tokens_has_the_recorded_ids(case: dict[str, object], tokenizer: Tokenizer) -> None:
    text = str(case["text"])
    assert tokenizer.encode(text) == case["ids"]
    assert (tokenizer.encode_user(text) == case["ids"]) == ("<|" not in text)


def test_saved_tokenizer_encodes_alike(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    for case in CASES["token_cases"]:
        assert loaded.encode(case["text"]) == case["ids"]
        assert loaded.encode_user(case["text"]) == tokenizer.encode_user(case["text"])


def test_missing_or_broken_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"vocab\.json is missing"):
        Tokenizer.from_bundle(tmp_path, 2)
    (tmp_path / "vocab.json").write_text("[]")
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(BundleError, match="no byte-pair encoding"):
        Tokenizer.from_bundle(tmp_path, 2)
    with pytest.raises(WeightsError, match="version 9"):
        Tokenizer.from_bundle(tmp_path, 9)
    with pytest.raises(WeightsError):
        Tokenizer.load(tmp_path / "vocab.json")
    with pytest.raises(WeightsError):
        Tokenizer.load(tmp_path / "absent.json")
