"""Written text to spoken text (upstream cli/frontend.py :: CosyVoiceFrontEnd.text_normalize, the wetext branch)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

Expand = Callable[[str], str]
"""Rewrites numbers, dates and units of a whole text as words."""

_BRACKETS = str.maketrans("", "", "（）【】`")
_TRAILING_COMMAS = re.compile("[，,、]+$")
_DIGIT = re.compile(r"\d")
_ESCAPED = re.compile(r'\\(["\\])')


def contains_chinese(text: str) -> bool:
    """Whether any character is a CJK ideograph (U+4E00..U+9FFF): it selects the Chinese rules."""
    return any("\u4e00" <= char <= "\u9fff" for char in text)


def is_raw(text: str) -> bool:
    """Whether the text holds control-token marks, so that upstream neither normalises nor splits it."""
    return "<|" in text and "|>" in text


def is_silent(text: str) -> bool:
    """Whether nothing in the text can be spoken: only punctuation, symbols, blanks and control characters."""
    return all(unicodedata.category(char)[0] in "PSZC" for char in text)


@cache
def _wetext() -> Any:
    # Imported on first use: the import alone takes 0.3 s, and most texts have no digit.
    from wetext import Normalizer

    return Normalizer(operator="tn", remove_erhua=False)


@cache
def _inflect() -> Any:
    # Imported on first use: the import takes over 1 s.
    import inflect

    return inflect.engine()


def preload() -> None:
    """Loads the grammars for numbers now, so that the first request with a digit does not wait for them."""
    expand_numbers("一 1")
    expand_numbers("one 1")
    spell_out_numbers("1")  # the grammars leave it few digits, but some


def expand_numbers(text: str) -> str:
    """Rewrites a text that has digits by the wetext grammars; any other text comes back unchanged.

    A text that the grammars reject (``8~`` and ``2^`` are examples) also comes back unchanged.
    """
    if not _DIGIT.search(text):
        return text
    lang = "zh" if contains_chinese(text) else "en"
    try:
        spoken: str = _wetext().normalize(text, lang=lang)
    except (AssertionError, RuntimeError, ValueError):  # what its token parser and its graphs raise
        return text
    # wetext 0.1.8 escapes quotes and backslashes twice and undoes it once.
    return _ESCAPED.sub(r"\1", spoken) or text


def spell_out_numbers(text: str) -> str:
    """Each run of digits as English words (upstream utils/frontend_utils.py :: spell_out_number)."""
    runs: list[str] = []
    start = 0
    while start < len(text):
        end = start
        while end < len(text) and text[end].isdigit() == text[start].isdigit():
            end += 1
        run = text[start:end]
        runs.append(_number_words(run) if run[0].isdigit() else run)
        start = end
    return "".join(runs)


def _number_words(digits: str) -> str:
    import inflect

    try:
        return str(_inflect().number_to_words(digits))
    except inflect.NumOutOfRangeError:  # more than 36 digits have no name
        return " ".join(str(_inflect().number_to_words(digit)) for digit in digits)


def replace_blank(text: str) -> str:
    """Drops every space that does not stand between two ASCII non-space characters."""

    def joins(char: str) -> bool:
        return char.isascii() and char != " "

    last = len(text) - 1
    return "".join(
        char
        for i, char in enumerate(text)
        if char != " " or (0 < i < last and joins(text[i - 1]) and joins(text[i + 1]))
    )


def remove_bracket(text: str) -> str:
    """Deletes full-width brackets and backticks; a Chinese dash becomes a space."""
    return text.translate(_BRACKETS).replace("——", " ")


def normalize(text: str, expand: Expand = expand_numbers) -> str:
    """The text as it is spoken, unsplit. Text with control-token marks comes back as it is.

    Args:
        text: what the user wrote.
        expand: reads numbers out; pass ``str`` to leave them to the rules here.
    """
    if is_raw(text):
        return text
    text = text.strip()
    if not contains_chinese(text):
        return spell_out_numbers(expand(text))
    text = replace_blank(expand(text).replace("\n", ""))
    text = text.replace("²", "平方").replace("³", "立方")
    text = text.replace(".", "。").replace(" - ", "，")
    return _TRAILING_COMMAS.sub("。", remove_bracket(text))
