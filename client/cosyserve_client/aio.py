"""The asyncio client: the I/O of `cosyserve_client.base` that awaits."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from cosyserve_client import base
from cosyserve_client.errors import from_status
from cosyserve_client.types import AudioChunk, SpeechRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self


class AsyncSpeechStream(base.BaseStream):
    """The chunks of one utterance, in order, each an `AudioChunk`; the last one has ``final`` set.

    Leaving the iteration early cancels the utterance on the server: ``break`` when the loop holds the only reference
    (as in ``async for chunk in client.stream(...)``), `aclose` or ``async with`` otherwise, a cancelled task always.
    """

    def __init__(self, client: AsyncClient, request: SpeechRequest, delays: Iterator[float]) -> None:
        super().__init__(client, request, delays)
        client._streams.add(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AudioChunk:
        chunk = await self._next()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Cancels what has not been spoken yet; a second call does nothing."""
        self._finish()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()

    def __del__(self) -> None:
        # An asyncio call refers to itself while it runs, so it would wait for the cycle collector.
        self._finish()

    async def _read(self) -> Any:
        with self._closed_elsewhere():
            response = await self._call.read()
        return None if response is grpc.aio.EOF else response

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @contextmanager
    def _closed_elsewhere(self) -> Iterator[None]:
        """gRPC raises the same for a call cancelled by `aclose` in another task as for this task's own cancellation."""
        try:
            yield
        except asyncio.CancelledError:
            if self._closed:
                raise base.closed() from None
            raise


class AsyncSession(AsyncSpeechStream, base.SessionMethods):
    """An utterance whose text is written piece by piece while its chunks are iterated, usually in two tasks.

        async with client.session(voice="anna") as session:
            async def write():
                async for text in agent:
                    await session.push(text)
                await session.end()
            writing = asyncio.create_task(write())
            async for chunk in session:
                play(chunk.pcm)

    Leaving the context cancels what has not been spoken.
    """

    _not_open = "the session is not open: use it in `async with`"

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def _send(self, message: Any) -> None:
        try:
            with self._closed_elsewhere():
                await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call is over; its status says why
            raise from_status(str(await self._call.code()), await self._call.details() or "") from None

    async def _done_writing(self) -> None:
        await self._call.done_writing()


class AsyncClient(base.ClientMethods[AsyncSpeechStream, AsyncSession]):
    """A connection to a CosyServe server, for any number of utterances at once in one event loop.

    async with AsyncClient("127.0.0.1:8001") as client:
        async for chunk in client.stream("Hello", voice="anna"):
            play(chunk.pcm)
    """

    _stream_type = AsyncSpeechStream
    _session_type = AsyncSession
    _new_channel = staticmethod(grpc.aio.insecure_channel)
    _not_open = "the client is not open: use it in `async with`"

    async def __aenter__(self) -> Self:
        self._connect()  # not before, because an asyncio channel belongs to the running event loop
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in tuple(self._streams):
            stream._finish()
        self._stub = None
        await self._channel.close()

    def _created(self) -> None:
        self._streams: weakref.WeakSet[AsyncSpeechStream] = weakref.WeakSet()

    async def _answer(self, method: Any, request: Any, seconds: float) -> Any:
        return await method(request, timeout=seconds)
