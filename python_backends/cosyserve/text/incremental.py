"""Text that arrives in pieces: which part of it can be tokenised before the rest is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from cosyserve.limits import MAX_WORD_CHARS
from cosyserve.text.normalize import is_silent

_PUNCTUATION = frozenset("，。！？；：、“”‘’（）《》…—")
_BLANK = re.compile(r"\s+")
_STOP = r"[.!?。！？…]+[\"'”’)）」』》]*"
_ENDS_SENTENCE = re.compile(_STOP + r"$")
_OPENS_WITH_END = re.compile(_STOP)


def tidy(text: str) -> str:
    """The text with one space for each run of blanks: the space before a word is where the word before it ends."""
    return _BLANK.sub(" ", text)


def complete(text: str) -> int:
    """How many leading characters of a tidy text no later text can change: whole words, the last of them left out."""
    return max(_ends(text), default=0)


def words(text: str) -> list[str]:
    """A tidy text cut into words, each with the space or the punctuation before it.

    A word ends before a space and, for scripts that have none, before full-width punctuation; there the tokenizer cuts
    too, so the words' token ids, joined, are those of the text. Punctuation without a word goes with the next one.
    """
    ends = [0, *_ends(text), len(text)]
    return [text[start:end] for start, end in pairwise(ends) if start < end]


def ends_sentence(word: str) -> bool:
    """Whether a sentence ends with this word, closing quotes and brackets behind the stop included."""
    return _ENDS_SENTENCE.search(word) is not None


def leading_stop(word: str) -> str:
    """The punctuation at the beginning of a word that ends the sentence before it; empty when there is none."""
    found = _OPENS_WITH_END.match(word)
    return found.group() if found else ""


def _ends(text: str) -> Iterator[int]:
    start = 0
    for place in range(1, len(text)):
        before, here = text[place - 1], text[place]
        breaks = here == " " or (here in _PUNCTUATION and before not in _PUNCTUATION and before != " ")
        if (breaks and not is_silent(text[start:place])) or place - start == MAX_WORD_CHARS:
            yield place
            start = place
