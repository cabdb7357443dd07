"""WebSocket ``/v1/audio/speech/stream``: text in pieces from the client, audio from the gateway.

Messages are JSON objects with ``type``. Clients send the models below, the gateway the typed dicts; their docstrings
are the API documentation. A connection has one utterance at a time. The gateway answers any other message with an
error and closes the connection.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from cosyserve_client import AsyncClient, AsyncSession, AudioChunk, CosyServeClientError, SpeechOptions
from cosyserve_gateway.auth import CALLER, StreamSlots
from cosyserve_gateway.encode import SAMPLE_RATE
from cosyserve_gateway.errors import IDLE_TIMEOUT, ApiError, ClientLeft, api_error, invalid, refusal
from cosyserve_gateway.limits import SOCKET_IDLE_SECONDS
from cosyserve_gateway.metrics import Metrics, SpeechTelemetry
from cosyserve_gateway.middleware import NOTES, origin

_POLICY_VIOLATION = 1008


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Config(_Message):
    """Options of the utterances that follow; refused while one is in progress."""

    type: Literal["config"] = "config"
    voice: str | None = None
    instructions: str | None = None
    speed: float | None = Field(default=None, allow_inf_nan=False)
    seed: int | None = None
    sample_rate: int = SAMPLE_RATE
    timestamps: bool = False
    audio: Literal["base64", "binary"] = "base64"

    def options(self) -> SpeechOptions:
        """Converts the message to options of the server."""
        return {
            "voice": self.voice,
            "instruct": self.instructions,
            "speed": self.speed,
            "seed": self.seed,
            "sample_rate": self.sample_rate,
            "timestamps": self.timestamps,
        }


class Text(_Message):
    """The next piece of text; the first one begins an utterance."""

    type: Literal["text"]
    text: str


class Flush(_Message):
    """Speak all text so far."""

    type: Literal["flush"]


class End(_Message):
    """No more text; speak the rest."""

    type: Literal["end"]


class Cancel(_Message):
    """Stop speaking at once."""

    type: Literal["cancel"]


class Ready(TypedDict):
    """The connection is open."""

    type: Literal["ready"]
    sample_rate: int


class Audio(TypedDict):
    """The next samples, int16 and little-endian in base64; with `binary` a binary frame instead: `sample_offset` as
    int64, little-endian, then the samples."""

    type: Literal["audio"]
    audio: str
    sample_offset: int
    sample_rate: int
    segment: int


class Words(TypedDict):
    """With `timestamps`: `text` and `start` in seconds of the words that begin in the audio just sent."""

    type: Literal["words"]
    words: list[dict[str, Any]]


class Done(TypedDict):
    """The whole utterance was sent, with this many samples; another may begin."""

    type: Literal["done"]
    samples: int


class Cancelled(TypedDict):
    """The utterance was cancelled after this many samples; another may begin."""

    type: Literal["cancelled"]
    samples: int


class Error(TypedDict):
    """As over HTTP; the utterance is over, and its text is dropped until `end`, `cancel` or `config`."""

    type: Literal["error"]
    error: dict[str, str | None]


RECEIVED = (Config, Text, Flush, End, Cancel)
SENT = (Ready, Audio, Words, Done, Cancelled, Error)

_MESSAGES: TypeAdapter[Config | Text | Flush | End | Cancel] = TypeAdapter(
    Annotated[Config | Text | Flush | End | Cancel, Field(discriminator="type")]
)


class Conversation:
    """WebSocket for text in pieces, one utterance at a time."""

    def __init__(self, server: AsyncClient, places: StreamSlots, metrics: Metrics) -> None:
        self._server = server
        self._places = places
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        # A client that left gets nothing more.
        with contextlib.suppress(ClientLeft, WebSocketDisconnect):
            await self._converse(socket)

    async def _converse(self, socket: WebSocket) -> None:
        await socket.send_json(Ready(type="ready", sample_rate=SAMPLE_RATE))
        turn = Turn(self._server, self._places, self._metrics, socket, Config())
        try:
            while True:
                message = await _next(socket, turn)
                match message:
                    case Config():
                        if turn.speaking:
                            raise invalid("config", "an utterance is in progress")
                        turn = turn.another(message)
                    case Cancel():
                        await turn.cancel()
                        turn = turn.another()
                    case Text() | Flush() | End():
                        if turn.over and (turn.ended or not turn.failed):
                            turn = turn.another()
                        await turn.write(message)
        except ApiError as error:
            await turn.stop()
            await socket.send_json(Error(type="error", error=error.envelope()["error"]))
            await socket.close(_POLICY_VIOLATION)
        finally:
            await turn.stop()


async def _next(socket: WebSocket, turn: Turn) -> Config | Text | Flush | End | Cancel:
    while True:
        try:
            async with asyncio.timeout(SOCKET_IDLE_SECONDS):
                received = await socket.receive()
            break
        except TimeoutError:
            if not turn.speaking:
                raise IDLE_TIMEOUT(f"no message arrived for {SOCKET_IDLE_SECONDS:g} s") from None
    if received["type"] == "websocket.disconnect":
        raise WebSocketDisconnect
    if (text := received.get("text")) is None:
        raise invalid("type", "messages must be JSON in text frames")
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        raise refusal(error, depth=1) from None


class Turn:
    """One utterance, which begins with its first text.

    Attributes:
        ended: whether all its text was written.
        failed: whether it ended with an error; what still comes of its text is dropped.
    """

    def __init__(
        self, server: AsyncClient, places: StreamSlots, metrics: Metrics, socket: WebSocket, config: Config
    ) -> None:
        self._server = server
        self._places = places
        self._metrics = metrics
        self._socket = socket
        self._config = config
        self._utterance = SpeechTelemetry(metrics)
        self._task: asyncio.Task[None] | None = None
        self._session: AsyncSession
        self._opened = asyncio.Event()
        self.ended = False
        self.failed = False

    @property
    def over(self) -> bool:
        """Whether the utterance is complete or has failed."""
        return self._task is not None and self._task.done()

    @property
    def speaking(self) -> bool:
        """Whether the utterance is in progress."""
        return self._task is not None and not self._task.done()

    def another(self, config: Config | None = None) -> Turn:
        """Returns the next turn."""
        return Turn(self._server, self._places, self._metrics, self._socket, config or self._config)

    async def write(self, message: Text | Flush | End) -> None:
        """Passes a message on; `ApiError` if the utterance has been ended."""
        if self.ended:
            raise invalid(message.type, "the utterance has ended: wait for done, or cancel it")
        if isinstance(message, Text) and self._task is None:
            self._utterance = SpeechTelemetry(self._metrics)
            self._task = asyncio.create_task(self._speak())
        if self._task is None:  # there is nothing to flush, or to end
            if isinstance(message, End):
                await self._done()
            return
        self.ended = isinstance(message, End)
        await self._opened.wait()
        # The reader of the audio reports an error.
        with contextlib.suppress(CosyServeClientError):
            if self.speaking:
                await self._pass_on(message)

    async def cancel(self) -> None:
        """Cancels the utterance, and confirms it to the client."""
        await self.stop()
        await self._socket.send_json(Cancelled(type="cancelled", samples=self._utterance.samples))

    async def stop(self) -> None:
        """Cancels the utterance, and returns when its slot is free."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _pass_on(self, message: Text | Flush | End) -> None:
        match message:
            case Text():
                await self._session.push(message.text)
            case Flush():
                await self._session.flush()
            case End():
                await self._session.end()

    async def _speak(self) -> None:
        scope = self._socket.scope
        options: SpeechOptions = self._config.options() | origin(scope)
        try:
            with self._places.taken(scope[CALLER]), self._utterance.noted(scope[NOTES]):
                async with self._server.session(**options) as self._session:
                    self._opened.set()
                    async for chunk in self._session:
                        await self._send(chunk)
            await self._done()
        except (ApiError, CosyServeClientError) as error:
            self.failed = True
            with contextlib.suppress(ClientLeft, WebSocketDisconnect):
                await self._socket.send_json(Error(type="error", error=api_error(error).envelope()["error"]))
        except (ClientLeft, WebSocketDisconnect):
            self.failed = True
        finally:
            self._opened.set()

    async def _send(self, chunk: AudioChunk) -> None:
        self._utterance.chunk_sent(chunk)
        pcm = chunk.pcm.astype("<i2", copy=False).tobytes()
        if self._config.audio == "binary" and pcm:
            await self._socket.send_bytes(struct.pack("<q", chunk.sample_offset) + pcm)
        elif pcm:
            await self._socket.send_json(
                Audio(
                    type="audio",
                    audio=base64.b64encode(pcm).decode(),
                    sample_offset=chunk.sample_offset,
                    sample_rate=chunk.sample_rate,
                    segment=chunk.segment,
                )
            )
        if chunk.words:
            await self._socket.send_json(Words(type="words", words=[asdict(word) for word in chunk.words]))

    async def _done(self) -> None:
        await self._socket.send_json(Done(type="done", samples=self._utterance.samples))
