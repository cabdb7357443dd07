"""A text as the words of a caption, and how long each takes to say."""

from __future__ import annotations

import re

_UNSPACED = "々\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_OPENING = "“‘（《〈【「『〔"
_WORD = re.compile(rf"[{_OPENING}]*[{_UNSPACED}][^\w\s{_OPENING}]*|[^\s{_UNSPACED}]+")
_CHARACTER = re.compile(rf"[{_UNSPACED}]")
_PAUSE = re.compile(r"[,.;:!?，。、；：！？…]+")

LETTERS_PER_SECOND = 17.0
"""How fast `duration` runs in even speech, until the speech itself tells better."""


def words(text: str) -> list[str]:
    """Words between blanks; in scripts without blanks (Chinese, Japanese) each character. Punctuation stays with them.

    Nothing but blanks is lost.
    """
    return _WORD.findall(text)


def duration(word: str) -> int:
    """How long a word and the pause behind it take, in letters of English.

    A word has a beginning, whatever its length; a character of an unspaced script is a syllable or two, and a mark of
    punctuation a silence. The weights fit the speech of eSpeak NG (see `Captions` for how well).
    """
    characters = len(_CHARACTER.findall(word))
    letters = sum(map(str.isalnum, word)) - characters
    return (letters + 1 if letters else 0) + 3 * characters + 3 * len(_PAUSE.findall(word))
