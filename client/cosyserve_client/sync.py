"""The blocking client: the twin of `aio`, on the blocking gRPC stub, so that it also works under gevent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2_grpc

from cosyserve_client import wire
from cosyserve_client.errors import (
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


class Client:
    """A connection to a CosyServe server, for any number of threads, each with its own streams.

        with Client("127.0.0.1:8001") as client:
            for chunk in client.stream("Hello", voice="anna"):
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
        self._channel = grpc.insecure_channel(url, options=wire.channel_options(keepalive))
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._stream_timeout = stream_timeout
        self._retries = retries
        self._sample_rate: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; streams in progress are cancelled."""
        self._stub = None
        self._channel.close()

    def ready(self) -> bool:
        """Whether the server is reachable and has model ``tts`` loaded."""
        try:
            response = self._unary("ModelReady", wire.ready_request())
        except (ConnectFailed, DeadlineExceeded, NotFound, Unavailable):
            return False
        return bool(response.ready)

    def sample_rate(self) -> int:
        """Rate of the audio in Hz, asked of the server once.

        Raises:
            CosyServeClientError: the server has no such setting or cannot be asked.
        """
        if self._sample_rate is None:
            self._sample_rate = wire.sample_rate(self._unary("ModelConfig", wire.config_request()))
        return self._sample_rate

    def stream(self, text: str | SpeechRequest | None = None, **options: Unpack[SpeechOptions]) -> SpeechStream:
        """Speaks `text`, or converts ``source_audio``; iterate the result for its chunks.

        Nothing is sent before the first iteration.

        Raises:
            InvalidArgument: a value has the wrong type; every other error comes from the iteration.
        """
        return SpeechStream(self, SpeechRequest.of(text, **options), wire.backoff(self._retries))

    def session(self, **options: Unpack[SpeechOptions]) -> Session:
        """An utterance whose text is written while it is spoken, for ``with``; see `Session`.

        Raises:
            InvalidArgument: a value has the wrong type; every other error comes from the session.
        """
        return Session(self, SpeechRequest(**options), iter(()))

    def synthesize(self, text: str | SpeechRequest | None = None, **options: Unpack[SpeechOptions]) -> Speech:
        """All the audio of `text`; raises what `stream` raises."""
        return Speech.join(list(self.stream(text, **options)))

    def add_voice(
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
        return self._voices(request)[0]

    def list_voices(self) -> list[Voice]:
        """All registered voices, sorted by name."""
        return self._voices(VoiceRequest(action="list"))

    def show_voice(self, name: str) -> Voice:
        """One voice; `NotFound` when there is none of that name."""
        return self._voices(VoiceRequest(action="describe", voice=name))[0]

    def remove_voice(self, name: str) -> Voice:
        """Deletes a voice, and tells what it was; speech in progress goes on. `NotFound` when there is none."""
        return self._voices(VoiceRequest(action="delete", voice=name))[0]

    def _voices(self, request: VoiceRequest) -> list[Voice]:
        message = wire.voices_request(request)
        return wire.voices(self._unary("ModelInfer", message, wire.VOICE_TIMEOUT_SECONDS))

    def _open(self, requests: Iterator[Any]) -> Any:
        return self._connected().ModelStreamInfer(requests, timeout=self._stream_timeout)

    def _open_session(self, pieces: Iterator[Any]) -> Any:
        # No deadline: a conversation may be long, and the server closes one that nobody writes to.
        return self._connected().ModelStreamInfer(pieces)

    def _unary(self, method: str, request: Any, seconds: float = wire.UNARY_TIMEOUT_SECONDS) -> Any:
        try:
            return getattr(self._connected(), method)(request, timeout=seconds)
        except grpc.RpcError as error:
            raise _error(error) from None

    def _connected(self) -> Any:
        if self._stub is None:
            raise CosyServeClientError("the client is closed")
        return self._stub


class SpeechStream:
    """The chunks of one utterance, in order, each an `AudioChunk`; the last one has ``final`` set.

    Leaving the iteration early cancels the utterance on the server: ``break`` when the loop holds the only reference
    (as in ``for chunk in client.stream(...)``; gRPC cancels a call that nothing refers to any more), `close` (from any
    thread) or ``with`` otherwise.
    """

    def __init__(self, client: Client, request: SpeechRequest, delays: Iterator[float]) -> None:
        self._client = client
        self._request = request
        self._delays = delays
        self._call: Any = None
        self._reader: wire.Reader  # comes with each call
        self._closed = False
        self._error: CosyServeClientError | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> AudioChunk:
        if self._closed:
            raise StopIteration
        try:
            chunk = self._next()
        except BaseException as error:
            self._error = error if isinstance(error, CosyServeClientError) else None
            self.close()
            raise
        if chunk is None:
            self.close()
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Cancels the utterance unless it is complete; a second call does nothing."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> AudioChunk | None:
        while True:
            try:
                return self._receive()
            except Unavailable:
                delay = next(self._delays, None)
                if delay is None:
                    raise
                self._call = None
                time.sleep(delay)

    def _receive(self) -> AudioChunk | None:
        """The next chunk, or None at the end of a complete stream."""
        if self._call is None:
            self._reader = wire.Reader(self._request.sample_rate or self._client.sample_rate())
            self._call = self._client._open(iter([wire.infer_request(self._request)]))
            if self._closed:
                self._call.cancel()
        try:
            response = next(self._call, None)
        except grpc.RpcError as error:
            raise _error(error) from None
        if response is None:
            self._reader.end()
            return None
        try:
            chunk = self._reader.chunk(response)
        except ServerError:
            self._read_on()
            raise
        self._delays = iter(())
        return chunk

    def _read_on(self) -> None:
        """To the end that follows an error: Triton 2.51 loses count of a stream that is cancelled as it ends."""
        with suppress(grpc.RpcError):
            next(self._call, None)


class Session(SpeechStream):
    """An utterance whose text is written piece by piece while its chunks are iterated, usually in two threads.

        with client.session(voice="anna") as session:
            threading.Thread(target=write, args=(session,)).start()  # calls push and, at last, end
            for chunk in session:
                play(chunk.pcm)

    Leaving the context cancels what has not been spoken. A piece may end anywhere, but a word is only spoken when the
    beginning of the next one, `flush` or `end` shows that it is complete.
    """

    def __init__(self, client: Client, request: SpeechRequest, delays: Iterator[float]) -> None:
        super().__init__(client, request, delays)
        self._writer = wire.Writer()
        self._pieces: SimpleQueue[Any] = SimpleQueue()

    def _read_on(self) -> None:
        """The end does not come before the text's."""

    def push(self, text: str) -> None:
        """Writes the next piece of text, at most 4096 characters.

        Raises:
            InvalidArgument: not a text, or the session has been ended.
            ServerError: the server has closed the session, for instance because nothing was written for long.
        """
        self._write(SpeechRequest(text=text))

    def flush(self) -> None:
        """Has all that was written spoken to its end now, as if no text followed; what follows is a new sentence.

        Raises:
            As `push`.
        """
        self._write(SpeechRequest(flush=True))

    def end(self) -> None:
        """No text follows: the rest is spoken, and the iteration ends.

        Raises:
            As `push`.
        """
        self._write(SpeechRequest(), end=True)
        self._pieces.put(None)

    def close(self) -> None:
        """Cancels what has not been spoken; a second call does nothing."""
        super().close()
        self._pieces.put(None)  # gRPC waits for the next piece in a thread of its own

    def __enter__(self) -> Self:
        self._reader = wire.Reader(self._request.sample_rate or self._client.sample_rate())
        self._call = self._client._open_session(iter(self._pieces.get, None))
        self._write(self._request)
        return self

    def _write(self, piece: SpeechRequest, *, end: bool = False) -> None:
        if self._call is None:
            raise CosyServeClientError("the session is not open: use it in `with`")
        message = self._writer.message(piece, end=end)
        if self._error is not None:
            raise self._error
        if not self._call.is_active():  # its status says why
            raise _error(self._call)
        self._pieces.put(message)


def _error(error: Any) -> CosyServeClientError:
    return from_status(str(error.code()), error.details() or "")
