"""Text sessions: text that a client writes in pieces, queued until it is spoken."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cosyserve.errors import InvalidInput, SessionIdle
from cosyserve.limits import MAX_SESSION_CHARS, MAX_TEXT_CHARS, REMEMBERED_IDS


@dataclass(frozen=True, slots=True)
class TextPiece:
    """One piece. `flush`: speak all that was written without waiting for more; `end`: nothing follows."""

    text: str
    flush: bool
    end: bool


class TextSession:
    """One writer, one reader, both in one event loop.

    Args:
        idle_seconds: longest time without text to speak and without audio.

    Attributes:
        error: what was wrong with a piece; it ends the session.
        on_failure: called then.
        began: when the first text was written, in seconds of the monotonic clock; None before.
        written: when the last piece was that had something to speak, or to speak now.
    """

    def __init__(self, idle_seconds: float) -> None:
        self.error: Exception | None = None
        self.on_failure: Callable[[], object] = lambda: None
        self.began: float | None = None
        self.written = 0.0
        self._idle_seconds = idle_seconds
        self._pieces: asyncio.Queue[TextPiece] = asyncio.Queue()
        self._active = time.monotonic()
        self._chars = 0
        self._ended = False

    def write(self, piece: TextPiece) -> None:
        """Add a piece; it returns at once.

        Raises:
            InvalidInput: the piece or all the text is too long, or the text has ended.
        """
        if self._ended:
            raise InvalidInput("text", "comes after the end of its session")
        if len(piece.text) > MAX_TEXT_CHARS:
            raise InvalidInput("text", f"has {len(piece.text)} characters, at most {MAX_TEXT_CHARS} are allowed")
        if self._chars + len(piece.text) > MAX_SESSION_CHARS:
            raise InvalidInput("text", f"of one session has at most {MAX_SESSION_CHARS} characters; start another")
        self._chars += len(piece.text)
        self._ended = piece.end
        if piece.text.strip() or piece.flush or piece.end:
            self._active = self.written = time.monotonic()
        if piece.text.strip() and self.began is None:
            self.began = self.written
        self._pieces.put_nowait(piece)

    def touch(self) -> None:
        """Count the session as active: audio was sent."""
        self._active = time.monotonic()

    def fail(self, error: Exception) -> None:
        """End the session because of a piece."""
        self.error = error
        self.on_failure()

    async def read(self) -> TextPiece:
        """The next piece.

        Raises:
            SessionIdle: none came in time.
        """
        while (left := self._active + self._idle_seconds - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    return await self._pieces.get()
        raise SessionIdle(f"nothing was written for {self._idle_seconds:g} s, so the session was closed")


class TextSessions:
    """The open sessions by id. Clients choose the ids; random ones keep them apart.

    Args:
        idle_seconds: see `TextSession`.
    """

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._open: dict[int | str, TextSession] = {}
        self._failed: deque[int | str] = deque(maxlen=REMEMBERED_IDS)

    def open(self, id: int | str, first: TextPiece) -> TextSession:
        """Begin a session with its first piece.

        Raises:
            InvalidInput: another one has this id, or the piece is too long.
        """
        if id in self._open:
            raise InvalidInput("sequence_id", "is the id of a session that is open; choose ids at random")
        if id in self._failed:
            self._failed.remove(id)
        session = TextSession(self._idle_seconds)
        session.write(first)
        self._open[id] = session
        return session

    def find(self, id: int | str) -> TextSession:
        """The session that is open under this id.

        A session that has failed told its opening request why; pieces that were sent before that arrived are dropped.

        Raises:
            InvalidInput: there is none.
        """
        if id in self._failed:
            return TextSession(self._idle_seconds)
        if id not in self._open:
            raise InvalidInput("sequence_id", "names no open session: it ended, was closed or never started")
        return self._open[id]

    def close(self, id: int | str) -> None:
        """Forget a session."""
        del self._open[id]

    def close_failed(self, id: int | str) -> None:
        """Forget a failed session; pieces that are still on their way to it are dropped."""
        self.close(id)
        self._failed.append(id)
