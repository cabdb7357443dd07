"""Designed codebook: the meaning of each speech token of the demo voice.

A token has eight digits of three levels, as in CosyVoice2's finite scalar quantisation (upstream
cosyvoice/tokenizer; 3 ** 8 = 6,561 ids), lowest digit first: four for the phone, one for the place within it, one for
the pitch, two that are always 1. A learnt codebook uses thousands of ids, too many for a small language model to learn
in hours.
"""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_NAMES = "pau aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh"
PHONES = tuple(_NAMES.split())
"""Flite's names of English phones, the pause first."""

RATE = 25  # tokens a second
FIRST, MIDDLE, LAST = 0, 1, 2  # places within a phone; the only token of a phone is FIRST
LOW, LEVEL, HIGH = 0, 1, 2  # pitch; unvoiced tokens are LEVEL
_CONSTANT = 1 * 3**6 + 1 * 3**7


A = TypeVar("A", bound=Any)


def token_ids(phones: A, places: A, pitches: A) -> A:
    """Compute ids from phones (indices into `PHONES`), places and pitches: integer arrays or tensors of one shape."""
    ids: A = phones + 81 * places + 243 * pitches + _CONSTANT
    return ids


def used_ids() -> NDArray[np.int64]:
    """Return all ids that the designed codebook uses."""
    phones, places, pitches = np.meshgrid(np.arange(len(PHONES)), np.arange(3), np.arange(3), indexing="ij")
    return np.sort(token_ids(phones.ravel(), places.ravel(), pitches.ravel()))


def spread(ends: list[float], count: int) -> list[int]:
    """Distribute tokens over phones.

    Args:
        ends: seconds at which the phones end, rising.
        count: total number of tokens, at least one for each phone.

    Returns:
        The number of tokens of each phone: at least 1 each, `count` in total.
    """
    bounds = [0]
    for end in ends:
        bounds.append(max(round(end * RATE), bounds[-1] + 1))
    bounds[-1] = count
    for i in range(len(bounds) - 1, 0, -1):
        bounds[i - 1] = min(bounds[i - 1], bounds[i] - 1)
    return [after - before for before, after in itertools.pairwise(bounds)]
