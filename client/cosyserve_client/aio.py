"""The asyncio client."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2_grpc

from cosyserve_client import wire
from cosyserve_client.errors import (
    Cancelled,
    ConnectFailed,
    CosyServeClientError,
    DeadlineExceeded,
    NotFound,
    ServerError,
    Unavailable,
    from_status,
)
from cosyserve_client.types import AudioChunk, Speech, SpeechRequest, Voice, VoiceRequest

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from typing_extensions import Unpack

    from cosyserve_client.types import SpeechOptions


class AsyncClient:
    """A connection to a CosyServe server, for any number of utterances at once in one event loop.

        async with AsyncClient("127.0.0.1:8001") as client:
            async for chunk in client.stream("Hello", voice="anna"):
                play(chunk.pcm)

    Args:
        url: ``host:port``, or any gRPC target such as ``dns:///name:port``.
        stream_timeout: seconds that one try of one utterance may take.
        retries: new tries when the server is full (`Unavailable`) and no audio has come yet.
        keepalive: seconds between pings on a silent connection.
    """

    def __init__(
        self,
        url: str,
        *,
        stream_timeout: float = wire.STREAM_TIMEOUT_SECONDS,
        retries: int = 0,
        keepalive: float = wire.KEEPALIVE_SECONDS,
    ) -> None:
        self._url = url
        self._stream_timeout = stream_timeout
        self._retries = retries
        self._keepalive = keepalive
        self._channel: Any = None
        self._stub: Any = None
        self._sample_rate: int | None = None
        self._streams: weakref.WeakSet[AsyncSpeechStream] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        # Made here because an asyncio channel belongs to the running event loop.
        self._channel = grpc.aio.insecure_channel(self._url, options=wire.channel_options(self._keepalive))
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in tuple(self._streams):
            await stream.aclose()
        self._stub = None
        await self._channel.close()

    async def ready(self) -> bool:
        """Whether the server is reachable and has model ``tts`` loaded."""
        try:
            response = await self._unary("ModelReady", wire.ready_request())
        except (ConnectFailed, DeadlineExceeded, NotFound, Unavailable):
            return False
        return bool(response.ready)

    async def sample_rate(self) -> int:
        """Rate of the audio in Hz, asked of the server once.

        Raises:
            CosyServeClientError: the server has no such setting or cannot be asked.
        """
        if self._sample_rate is None:
            self._sample_rate = wire.sample_rate(await self._unary("ModelConfig", wire.config_request()))
        return self._sample_rate

    def stream(self, text: str | SpeechRequest | None = None, **options: Unpack[SpeechOptions]) -> AsyncSpeechStream:
        """Speaks `text`, or converts ``source_audio``; iterate the result for its chunks.

        Nothing is sent before the first iteration.

        Raises:
            InvalidArgument: a value has the wrong type; every other error comes from the iteration.
        """
        request = SpeechRequest.of(text, **options)
        stream = AsyncSpeechStream(self, request, wire.backoff(self._retries))
        self._streams.add(stream)
        return stream

    def session(self, **options: Unpack[SpeechOptions]) -> AsyncSession:
        """An utterance whose text is written while it is spoken, for ``async with``; see `AsyncSession`.

        Raises:
            InvalidArgument: a value has the wrong type; every other error comes from the session.
        """
        session = AsyncSession(self, SpeechRequest(**options), iter(()))
        self._streams.add(session)
        return session

    async def synthesize(self, text: str | SpeechRequest | None = None, **options: Unpack[SpeechOptions]) -> Speech:
        """All the audio of `text`; raises what `stream` raises."""
        return Speech.join([chunk async for chunk in self.stream(text, **options)])

    async def add_voice(
        self,
        name: str,
        prompt_audio: NDArray[np.float32],
        prompt_sample_rate: int,
        *,
        prompt_text: str | None = None,
        consent: str | None = None,
        replace: bool = False,
    ) -> Voice:
        """Registers a voice.

        Args:
            name: letters, digits and ``_``, with blanks, dots and hyphens between them.
            prompt_audio: mono float32 [samples] in -1..1.
            prompt_sample_rate: in Hz.
            prompt_text: what is said in it; without it the voice speaks as in mode cross_lingual.
            consent: a note on the speaker's consent.
            replace: whether it may take the place of another voice of that name.

        Raises:
            AlreadyExists, InvalidArgument, Unavailable (too many voices), Unimplemented (the folder is read-only).
        """
        request = VoiceRequest(
            action="register",
            voice=name,
            prompt_audio=prompt_audio,
            prompt_sample_rate=prompt_sample_rate,
            prompt_text=prompt_text,
            consent=consent,
            replace=replace,
        )
        return (await self._voices(request))[0]

    async def list_voices(self) -> list[Voice]:
        """All registered voices, sorted by name."""
        return await self._voices(VoiceRequest(action="list"))

    async def show_voice(self, name: str) -> Voice:
        """One voice; `NotFound` when there is none of that name."""
        return (await self._voices(VoiceRequest(action="describe", voice=name)))[0]

    async def remove_voice(self, name: str) -> Voice:
        """Deletes a voice, and tells what it was; speech in progress goes on. `NotFound` when there is none."""
        return (await self._voices(VoiceRequest(action="delete", voice=name)))[0]

    async def _voices(self, request: VoiceRequest) -> list[Voice]:
        message = wire.voices_request(request)
        return wire.voices(await self._unary("ModelInfer", message, wire.VOICE_TIMEOUT_SECONDS))

    def _open_session(self) -> Any:
        # No deadline: a conversation may be long, and the server closes one that nobody writes to.
        return self._connected().ModelStreamInfer()

    def _open(self, request: SpeechRequest) -> Any:
        return self._connected().ModelStreamInfer([wire.infer_request(request)], timeout=self._stream_timeout)

    async def _unary(self, method: str, request: Any, seconds: float = wire.UNARY_TIMEOUT_SECONDS) -> Any:
        try:
            return await getattr(self._connected(), method)(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None

    def _connected(self) -> Any:
        if self._stub is None:
            raise CosyServeClientError("the client is not open: use it in `async with`")
        return self._stub


class AsyncSpeechStream:
    """The chunks of one utterance, in order, each an `AudioChunk`; the last one has ``final`` set.

    Leaving the iteration early cancels the utterance on the server: ``break`` when the loop holds the only reference
    (as in ``async for chunk in client.stream(...)``), `aclose` or ``async with`` otherwise, a cancelled task always.
    """

    def __init__(self, client: AsyncClient, request: SpeechRequest, delays: Iterator[float]) -> None:
        self._client = client
        self._request = request
        self._delays = delays
        self._call: Any = None
        self._reader: wire.Reader  # comes with each call
        self._closed = False
        self._error: CosyServeClientError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AudioChunk:
        if self._closed:
            raise StopAsyncIteration
        try:
            chunk = await self._next()
        except asyncio.CancelledError:
            # gRPC raises the same for a call cancelled by `aclose` in another task as for this task's own cancellation.
            closed = self._closed
            self._finish()
            if closed:
                raise _closed() from None
            raise
        except BaseException as error:
            self._error = error if isinstance(error, CosyServeClientError) else None
            self._finish()
            raise
        if chunk is None:
            self._finish()
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Cancels the utterance unless it is complete; a second call does nothing."""
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

    async def _next(self) -> AudioChunk | None:
        while True:
            try:
                return await self._receive()
            except Unavailable:
                delay = next(self._delays, None)
                if delay is None:
                    raise
                self._call = None
                await asyncio.sleep(delay)

    async def _receive(self) -> AudioChunk | None:
        """The next chunk, or None at the end of a complete stream."""
        if self._call is None:
            self._reader = wire.Reader(self._request.sample_rate or await self._client.sample_rate())
            if self._closed:
                raise _closed()
            self._call = self._client._open(self._request)
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None
        if response is grpc.aio.EOF:
            self._reader.end()
            return None
        try:
            chunk = self._reader.chunk(response)
        except ServerError:
            await self._read_on()
            raise
        self._delays = iter(())
        return chunk

    async def _read_on(self) -> None:
        """To the end that follows an error: Triton 2.51 loses count of a stream that is cancelled as it ends."""
        with suppress(grpc.aio.AioRpcError):
            await self._call.read()

    def _finish(self) -> None:
        self._closed = True
        if self._call is not None:
            self._call.cancel()


class AsyncSession(AsyncSpeechStream):
    """An utterance whose text is written piece by piece while its chunks are iterated, usually in two tasks.

        async with client.session(voice="anna") as session:
            async def write():
                async for text in agent:
                    await session.push(text)
                await session.end()
            writing = asyncio.create_task(write())
            async for chunk in session:
                play(chunk.pcm)

    Leaving the context cancels what has not been spoken. A piece may end anywhere, but a word is only spoken when the
    beginning of the next one, `flush` or `end` shows that it is complete.
    """

    async def _read_on(self) -> None:
        """The end does not come before the text's."""

    async def push(self, text: str) -> None:
        """Writes the next piece of text, at most 4096 characters.

        Raises:
            InvalidArgument: not a text, or the session has been ended.
            ServerError: the server has closed the session, for instance because nothing was written for long.
        """
        await self._write(SpeechRequest(text=text))

    async def flush(self) -> None:
        """Has all that was written spoken to its end now, as if no text followed; what follows is a new sentence.

        Raises:
            As `push`.
        """
        await self._write(SpeechRequest(flush=True))

    async def end(self) -> None:
        """No text follows: the rest is spoken, and the iteration ends.

        Raises:
            As `push`.
        """
        await self._write(SpeechRequest(), end=True)
        await self._call.done_writing()

    async def __aenter__(self) -> Self:
        self._reader = wire.Reader(self._request.sample_rate or await self._client.sample_rate())
        self._call = self._client._open_session()
        self._writer = wire.Writer()
        try:
            await self._write(self._request)
        except BaseException:  # a task that is cancelled here never reaches `__aexit__`
            self._finish()
            raise
        return self

    async def _write(self, piece: SpeechRequest, *, end: bool = False) -> None:
        if self._call is None:
            raise CosyServeClientError("the session is not open: use it in `async with`")
        message = self._writer.message(piece, end=end)
        if self._error is not None:
            raise self._error
        try:
            await self._call.write(message)
        except asyncio.CancelledError:
            if self._closed:  # by another task
                raise _closed() from None
            raise
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call is over; its status says why
            raise from_status(str(await self._call.code()), await self._call.details() or "") from None


def _closed() -> Cancelled:
    return Cancelled("CANCELLED", "the stream was closed")


def _error(error: Any) -> CosyServeClientError:
    return from_status(str(error.code()), error.details() or "")
