"""Normalised text to segments (upstream utils/frontend_utils.py :: split_paragraph)."""

from __future__ import annotations

import re
from collections.abc import Callable

from cosyserve.text.normalize import contains_chinese, is_raw, is_silent

LONG = 80
"""Length above which a growing segment is closed, if it has more than SHORT already."""

SHORT = 60
"""Length up to which a segment takes the next sentence whatever its length."""

REST = 20
"""Length below which the last segment joins the one before."""

_ENDERS = {"zh": "。？！；：、.?!;", "en": ".?!;:"}
_BREAK = re.compile(r"[，,、；;：:\s]")

Length = Callable[[str], int]


def split_paragraph(text: str, lang: str, count: Length) -> list[str]:
    """Segments of whole sentences, 60 to 80 long where the sentences allow it.

    Args:
        text: normalised text, not empty.
        lang: ``zh`` or ``en``.
        count: text to its number of token ids: the measure of English; Chinese is measured in characters.
    """
    enders = _ENDERS[lang]
    if text[-1] not in enders:
        text += "。" if lang == "zh" else "."
    return _merge(_sentences(text, enders), len if lang == "zh" else count)


def _sentences(text: str, enders: str) -> list[str]:
    pieces: list[str] = []
    start = 0
    for i, char in enumerate(text):
        if char not in enders:
            continue
        if i > start:
            pieces.append(text[start : i + 1])
        start = i + 1
        # Upstream fails on a closing quote with no sentence before it; here it opens the next one.
        if pieces and text[start : start + 1] in ('"', "”"):
            pieces[-1] += text[start]
            start += 1
    return pieces


def _merge(pieces: list[str], length: Length) -> list[str]:
    segments: list[str] = []
    segment, size = "", 0
    for piece in pieces:
        joined_size = length(segment + piece)
        if joined_size > LONG and size > SHORT:
            segments.append(segment)
            segment, joined_size = "", length(piece)
        segment, size = segment + piece, joined_size
    if segment and segments and size < REST:
        segments[-1] += segment
    elif segment:
        segments.append(segment)
    return segments


def segments(text: str, count: Length) -> list[str]:
    """The segments of a normalised text that can be spoken; raw text (see `is_raw`) is one segment.

    Beside upstream's rule (pieces of punctuation and symbols are dropped) pieces with blanks among them are dropped
    too.
    """
    if is_raw(text) or not text:
        pieces = [text]
    else:
        pieces = split_paragraph(text, "zh" if contains_chinese(text) else "en", count)
    return [piece for piece in pieces if not is_silent(piece)]


def cut(text: str, limit: int, count: Length) -> list[str]:
    """Halves a text, at a comma or blank if there is one in its middle half, until each part counts at most `limit`."""
    if count(text) <= limit or len(text) < 2:
        return [text]
    middle, quarter = len(text) // 2, len(text) // 4
    ends = [match.end() for match in _BREAK.finditer(text, quarter, len(text) - quarter)]
    at = min(ends, key=lambda end: abs(end - middle), default=middle)
    return cut(text[:at], limit, count) + cut(text[at:], limit, count)
