"""The segments of an utterance, and where they come from when all of its text is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import Tensors
from cosyserve.limits import EXPECTED_TOKENS_PER_TEXT_TOKEN

Ids = NDArray[np.int32]


@dataclass(eq=False)
class Segment:
    """One segment: the text to speak and the speech tokens generated so far, or in mode vc all of them and no text.

    Attributes:
        spoken: the text in words, as far as it is there.
        arriving: where the text goes on, piece by piece, with None at its end; None when `text` is all of it.
        ends: the utterance ends with it. Where text arrives that may turn out late, or not at all.
    """

    text: Ids
    seed: NDArray[np.int64]
    spoken: str = ""
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    ends: bool = False
    arriving: asyncio.Queue[Ids | None] | None = None


class SegmentSource(Protocol):
    """Source of the segments of one utterance."""

    @property
    def expected_tokens(self) -> int | None:
        """Speech tokens that the longest segment may come to; None when that is not known."""
        ...

    async def read(self) -> None:
        """Produce the segments; runs beside their synthesis until the last is there."""
        ...

    def segments(self) -> AsyncGenerator[Segment, None]:
        """Yield each segment as soon as it begins."""
        ...


class WholeTextSource:
    """The segments in the frontend's answer to a whole request (contract `FRONTEND`)."""

    def __init__(self, features: Tensors, seed: int) -> None:
        bounds = np.cumsum(features["segment_lengths"])[:-1]
        given = len(features["speech_tokens"]) > 0
        parts = np.split(features["speech_tokens" if given else "text_tokens"].astype(np.int32), bounds)
        seeds = (segment_seed(seed, index) for index in range(len(parts)))
        if given:
            nothing = np.zeros(0, np.int32)
            made = [
                Segment(nothing, seed, tokens=part.tolist(), ended=True)
                for part, seed in zip(parts, seeds, strict=True)
            ]
        else:
            texts = [text.decode() for text in features["segment_texts"]]
            made = [Segment(*segment) for segment in zip(parts, seeds, texts, strict=True)]
        made[-1].ends = True
        self._segments = made
        longest = int(features["segment_lengths"].max())
        self.expected_tokens: int | None = longest if given else longest * EXPECTED_TOKENS_PER_TEXT_TOKEN

    async def read(self) -> None:
        """See `SegmentSource`."""

    async def segments(self) -> AsyncGenerator[Segment, None]:
        """See `SegmentSource`."""
        for segment in self._segments:
            yield segment


def segment_seed(seed: int, index: int) -> NDArray[np.int64]:
    """The seed of one segment of a request with this seed."""
    words = np.random.SeedSequence([seed % 2**64, index]).generate_state(1, np.uint64)
    return (words >> np.uint64(1)).astype(np.int64)
