"""The blocking client: the I/O of `cosyserve_client.base` on the blocking gRPC stub, so that it works under gevent."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Coroutine, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import grpc

from cosyserve_client import base
from cosyserve_client.types import AudioChunk, SpeechRequest

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

P = ParamSpec("P")
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine whose I/O blocks, so that it never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the I/O of the blocking client must not suspend")


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """A method of `cosyserve_client.base` as one that blocks, with its signature and documentation."""

    @functools.wraps(method)
    def wrapper(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(self, *args, **kwargs))

    return wrapper


class SpeechStream(base.BaseStream):
    """The chunks of one utterance, in order, each an `AudioChunk`; the last one has ``final`` set.

    Leaving the iteration early cancels the utterance on the server: ``break`` when the loop holds the only reference
    (as in ``for chunk in client.stream(...)``; gRPC cancels a call that nothing refers to any more), `close` (from any
    thread) or ``with`` otherwise.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> AudioChunk:
        chunk = run(self._next())
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Cancels what has not been spoken yet, from any thread; a second call does nothing."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()

    async def _read(self) -> Any:
        return next(self._call, None)

    async def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - no event loop runs this coroutine


class Session(SpeechStream, base.BaseSession):
    """An utterance whose text is written piece by piece while its chunks are iterated, usually in two threads.

        with client.session(voice="anna") as session:
            threading.Thread(target=write, args=(session,)).start()  # calls push and, at last, end
            for chunk in session:
                play(chunk.pcm)

    Leaving the context cancels what has not been spoken.
    """

    _not_open = "the session is not open: use it in `with`"

    push = blocking(base.SessionMethods.push)
    flush = blocking(base.SessionMethods.flush)
    end = blocking(base.SessionMethods.end)

    def __init__(self, client: Client, request: SpeechRequest, delays: Iterator[float]) -> None:
        super().__init__(client, request, delays)
        self._pieces: SimpleQueue[Any] = SimpleQueue()
        self._requests = iter(self._pieces.get, None)

    def __enter__(self) -> Self:
        run(self._start())
        return self

    async def _send(self, message: Any) -> None:
        if not self._call.is_active():  # its status says why
            raise base.status_error(self._call)
        self._pieces.put(message)

    async def _done_writing(self) -> None:
        self._pieces.put(None)

    def _finish(self) -> None:
        super()._finish()
        self._pieces.put(None)  # gRPC waits for the next piece in a thread of its own


class Client(base.BaseClient[SpeechStream, Session]):
    """A connection to a CosyServe server, for any number of threads, each with its own streams.

    with Client("127.0.0.1:8001") as client:
        for chunk in client.stream("Hello", voice="anna"):
            play(chunk.pcm)
    """

    _stream_type = SpeechStream
    _session_type = Session
    _new_channel = staticmethod(grpc.insecure_channel)
    _not_open = "the client is closed"

    ready = blocking(base.ClientMethods.ready)
    sample_rate = blocking(base.ClientMethods.sample_rate)
    synthesize = blocking(base.ClientMethods.synthesize)
    add_voice = blocking(base.ClientMethods.add_voice)
    list_voices = blocking(base.ClientMethods.list_voices)
    show_voice = blocking(base.ClientMethods.show_voice)
    remove_voice = blocking(base.ClientMethods.remove_voice)

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

    def _created(self) -> None:
        self._connect()

    async def _answer(self, method: Any, request: Any, seconds: float) -> Any:
        return method(request, timeout=seconds)
