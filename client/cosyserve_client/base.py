"""What the blocking and the asyncio client share: everything but I/O.

Each algorithm is a coroutine, written once. The asyncio client's I/O suspends it. The blocking client's does not, so
that `cosyserve_client.sync.run` takes it to its end in one step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

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
    from typing_extensions import Unpack

    from cosyserve_client.types import SpeechOptions


class BaseStream(ABC):
    """The state of one utterance: its retries, its chunks, how it ended."""

    def __init__(self, client: BaseClient[Any, Any], request: SpeechRequest, delays: Iterator[float]) -> None:
        self._client = client
        self._request = request
        self._delays = delays
        self._call: Any = None
        self._reader: wire.Reader  # comes with each call
        self._closed = False
        self._error: CosyServeClientError | None = None

    async def _next(self) -> AudioChunk | None:
        """The next chunk; None behind the last one and once closed. An error closes the stream."""
        if self._closed:
            return None
        try:
            chunk = await self._next_of_any_try()
        except BaseException as error:
            self._error = error if isinstance(error, CosyServeClientError) else None
            self._finish()
            raise
        if chunk is None:
            self._finish()
        return chunk

    async def _next_of_any_try(self) -> AudioChunk | None:
        while True:
            try:
                return await self._receive()
            except Unavailable:
                delay = next(self._delays, None)
                if delay is None:
                    raise
                self._call = None
                await self._sleep(delay)

    async def _receive(self) -> AudioChunk | None:
        """The next chunk of this try, or None at the end of a complete stream."""
        if self._call is None:
            await self._open(iter([wire.infer_request(self._request)]), self._client._stream_timeout)
        try:
            response = await self._read()
        except grpc.RpcError as error:
            raise status_error(error) from None
        if response is None:
            self._reader.end()
            return None
        try:
            chunk = self._reader.chunk(response)
        except ServerError:
            await self._read_on()
            raise
        self._delays = iter(())
        return chunk

    async def _open(self, requests: Iterator[Any] | None, seconds: float | None) -> None:
        """Begins a call; without `requests` they are written to it."""
        self._reader = wire.Reader(self._request.sample_rate or await self._client._rate())
        self._call = self._client._connected().ModelStreamInfer(requests, timeout=seconds)
        if self._closed:  # meanwhile, when there was no call to cancel
            self._call.cancel()

    async def _read_on(self) -> None:
        """To the end that follows an error: Triton 2.51 loses count of a stream that is cancelled as it ends."""
        with suppress(grpc.RpcError):
            await self._read()

    def _finish(self) -> None:
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    @abstractmethod
    async def _read(self) -> Any:
        """The next response, or None at the end of the call; raises `grpc.RpcError`."""

    @abstractmethod
    async def _sleep(self, seconds: float) -> None:
        """Waits."""


class BaseSession(BaseStream):
    """The state of one utterance whose text is written while its chunks are iterated."""

    _not_open: str
    _requests: Iterator[Any] | None = None
    """Where the call takes its requests from; None: they are written to it."""

    def __init__(self, client: BaseClient[Any, Any], request: SpeechRequest, delays: Iterator[float]) -> None:
        super().__init__(client, request, delays)
        self._writer = wire.Writer()

    async def _start(self) -> None:
        # No deadline: a conversation may be long, and the server closes an idle one.
        await self._open(self._requests, None)
        try:
            await self._write(self._request)
        except BaseException:  # a context that was not entered is not left either
            self._finish()
            raise

    async def _write(self, piece: SpeechRequest, *, end: bool = False) -> None:
        if self._call is None:
            raise CosyServeClientError(self._not_open)
        message = self._writer.message(piece, end=end)
        if self._error is not None:
            raise self._error
        await self._send(message)
        if end:
            await self._done_writing()

    async def _read_on(self) -> None:
        """The end does not come before the text's."""

    @abstractmethod
    async def _send(self, message: Any) -> None:
        """Writes a request; raises the error of a call that is over."""

    @abstractmethod
    async def _done_writing(self) -> None:
        """Tells that no request follows."""


class SessionMethods(BaseSession):
    """What a session can do: methods of the asyncio client's, which the blocking one wraps."""

    async def push(self, text: str) -> None:
        """Writes the next piece of text, at most 4096 characters.

        A piece may end anywhere, but a word is only spoken when the beginning of the next one, `flush` or `end` shows
        that it is complete.

        Raises:
            InvalidArgument: not a text, or the session has been ended.
            ServerError: the server has closed the session, for instance because nothing was written for long.
        """
        await self._write(SpeechRequest(text=text))

    async def flush(self) -> None:
        """Speaks all text so far, as if no text followed; what follows is a new sentence.

        Raises:
            As `push`.
        """
        await self._write(SpeechRequest(flush=True))

    async def end(self) -> None:
        """Ends the text: the rest is spoken, and the iteration ends.

        Raises:
            As `push`.
        """
        await self._write(SpeechRequest(), end=True)


StreamT = TypeVar("StreamT", bound=BaseStream)
SessionT = TypeVar("SessionT", bound=BaseSession)


class BaseClient(ABC, Generic[StreamT, SessionT]):
    """A channel to a server, and what is known of it."""

    _stream_type: type[StreamT]
    _session_type: type[SessionT]
    _new_channel: Any
    _not_open: str

    def __init__(
        self,
        url: str,
        *,
        stream_timeout: float = wire.STREAM_TIMEOUT_SECONDS,
        retries: int = 0,
        keepalive: float = wire.KEEPALIVE_SECONDS,
    ) -> None:
        """Sends nothing yet.

        Args:
            url: ``host:port``, or any gRPC target such as ``dns:///name:port``.
            stream_timeout: seconds that one try of one utterance may take.
            retries: new tries when the server is full (`Unavailable`) and no audio has come yet.
            keepalive: seconds between pings on a silent connection.
        """
        self._url = url
        self._stream_timeout = stream_timeout
        self._retries = retries
        self._keepalive = keepalive
        self._sample_rate: int | None = None
        self._channel: Any = None
        self._stub: Any = None
        self._created()

    def stream(self, text: str | SpeechRequest | None = None, **options: Unpack[SpeechOptions]) -> StreamT:
        """Speaks `text`, or converts ``source_audio``; iterate for chunks, leave the loop early to cancel.

        Nothing is sent before the first iteration.

        Raises:
            InvalidArgument: a value has the wrong type; every other error comes from the iteration.
        """
        return self._stream_type(self, SpeechRequest.of(text, **options), wire.backoff(self._retries))

    def session(self, **options: Unpack[SpeechOptions]) -> SessionT:
        """Speaks text in pieces: a context with the methods of a session; iterate for chunks.

        Raises:
            InvalidArgument: a value has the wrong type; every other error comes from the session.
        """
        return self._session_type(self, SpeechRequest(**options), iter(()))

    def _created(self) -> None:
        """Called last by the constructor."""

    def _connect(self) -> None:
        self._channel = self._new_channel(self._url, options=wire.channel_options(self._keepalive))
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def _connected(self) -> Any:
        if self._stub is None:
            raise CosyServeClientError(self._not_open)
        return self._stub

    async def _unary(self, method: str, request: Any, seconds: float = wire.UNARY_TIMEOUT_SECONDS) -> Any:
        try:
            return await self._answer(getattr(self._connected(), method), request, seconds)
        except grpc.RpcError as error:
            raise status_error(error) from None

    async def _rate(self) -> int:
        if self._sample_rate is None:
            self._sample_rate = wire.sample_rate(await self._unary("ModelConfig", wire.config_request()))
        return self._sample_rate

    async def _voices(self, request: VoiceRequest) -> list[Voice]:
        return wire.voices(await self._unary("ModelInfer", wire.voices_request(request), wire.VOICE_TIMEOUT_SECONDS))

    @abstractmethod
    async def _answer(self, method: Any, request: Any, seconds: float) -> Any:
        """The answer to a unary call; raises `grpc.RpcError`."""


class ClientMethods(BaseClient[StreamT, SessionT]):
    """What a client can do that takes I/O: methods of the asyncio client, which the blocking one wraps."""

    async def ready(self) -> bool:
        """Returns whether the server is reachable and has model ``tts`` loaded."""
        try:
            response = await self._unary("ModelReady", wire.ready_request())
        except (ConnectFailed, DeadlineExceeded, NotFound, Unavailable):
            return False
        return bool(response.ready)

    async def sample_rate(self) -> int:
        """Returns the rate of the audio in Hz, which the server is asked once.

        Raises:
            CosyServeClientError: the server has no such setting or cannot be asked.
        """
        return await self._rate()

    async def synthesize(self, text: str | SpeechRequest | None = None, **options: Unpack[SpeechOptions]) -> Speech:
        """Speaks `text` and returns the whole utterance; raises what `stream` raises."""
        stream = self.stream(text, **options)
        chunks = []
        while (chunk := await stream._next()) is not None:
            chunks.append(chunk)
        return Speech.join(chunks)

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
        """Returns all registered voices, sorted by name."""
        return await self._voices(VoiceRequest(action="list"))

    async def show_voice(self, name: str) -> Voice:
        """Returns one voice; `NotFound` if there is none of that name."""
        return (await self._voices(VoiceRequest(action="describe", voice=name)))[0]

    async def remove_voice(self, name: str) -> Voice:
        """Deletes and returns a voice; running streams of it go on. `NotFound` if there is none of that name."""
        return (await self._voices(VoiceRequest(action="delete", voice=name)))[0]


def closed() -> Cancelled:
    """The error for reading or writing a stream that has been closed."""
    return Cancelled("CANCELLED", "the stream was closed")


def status_error(error: Any) -> CosyServeClientError:
    """The error for a call that ended with a status."""
    return from_status(str(error.code()), error.details() or "")
