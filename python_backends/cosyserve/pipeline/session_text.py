"""The segments of an utterance whose text arrives in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import numpy as np

from cosyserve.contracts import Tensors
from cosyserve.errors import InvalidInput
from cosyserve.pipeline.segments import Ids, Segment, segment_seed
from cosyserve.pipeline.text_session import TextSession
from cosyserve.text.incremental import complete, tidy

Frontend = Callable[[Tensors], Awaitable[Tensors]]
"""See `cosyserve.pipeline.synthesizer.Stages.frontend`."""


class SessionTextSource:
    """Implements `SegmentSource` on a session.

    The unfinished last word is held back, so token ids, segments and hence samples depend on the text and its flushes
    alone, not on how it was cut into pieces or when they came.

    Args:
        frontend: tokenises words.
        session: what is written.
        seed: of the request.
    """

    expected_tokens = None

    def __init__(self, frontend: Frontend, session: TextSession, seed: int) -> None:
        self._frontend = frontend
        self._session = session
        self._seed = seed
        self._begun: asyncio.Queue[Segment | None] = asyncio.Queue()
        self._count = 0  # segments
        self._open: Segment | None = None
        self._held = 0  # token ids of the open segment

    async def read(self) -> None:
        """See `SegmentSource`.

        Raises:
            InvalidInput: the text ended and had nothing that can be spoken.
            SessionIdle: the writer fell silent.
        """
        text, ended = "", False
        while not ended:
            piece = await self._session.read()
            ended = piece.end
            text = tidy(text + piece.text)
            speakable = text if piece.flush or ended else text[: complete(text)]
            text = text[len(speakable) :]
            await self._say(speakable.rstrip())
            if piece.flush or ended:
                self._close(ends=ended)
        if not self._count:
            raise InvalidInput("text", "holds nothing that can be spoken")
        self._begun.put_nowait(None)

    async def segments(self) -> AsyncGenerator[Segment, None]:
        """See `SegmentSource`."""
        while segment := await self._begun.get():
            yield segment

    async def _say(self, words: str) -> None:
        if not words:
            return
        request: Tensors = {
            "text": np.asarray([words.encode()], np.object_),
            "continues": np.asarray([self._held], np.int32),
        }
        features = await self._frontend(request)
        bounds = np.cumsum(features["segment_lengths"])[:-1]
        parts = np.split(features["text_tokens"].astype(np.int32), bounds)
        for index, (part, text) in enumerate(zip(parts, features["segment_texts"], strict=True)):
            if index:
                self._close(ends=False)
            self._add(part, text.decode())

    def _add(self, ids: Ids, text: str) -> None:
        if not len(ids):
            return
        self._held += len(ids)
        if self._open is not None and self._open.arriving is not None:
            self._open.spoken += text
            self._open.arriving.put_nowait(ids)
            return
        self._open = Segment(ids, segment_seed(self._seed, self._count), text, arriving=asyncio.Queue())
        self._count += 1
        self._begun.put_nowait(self._open)

    def _close(self, *, ends: bool) -> None:
        if self._open is not None and self._open.arriving is not None:
            self._open.ends = ends
            self._open.arriving.put_nowait(None)
        self._open, self._held = None, 0
