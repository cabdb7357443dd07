"""``POST /v1/audio/speech``."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from cosyserve_client import AsyncClient, AsyncSpeechStream, CosyServeClientError, SpeechRequest
from cosyserve_gateway.auth import CALLER, StreamSlots
from cosyserve_gateway.encode import FORMATS, SAMPLE_RATE, Encoder
from cosyserve_gateway.errors import MODEL_NOT_FOUND, UNSUPPORTED_MEDIA_TYPE, api_error, parse
from cosyserve_gateway.metrics import Metrics, SpeechTelemetry
from cosyserve_gateway.middleware import NOTES, origin

MODELS = ("cosyvoice", "tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""Names of the one model: its own, and those that programs for OpenAI use."""


class VoiceId(BaseModel):
    """A voice as an object, an alternative form of OpenAI's clients."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: str


class SpeechBody(BaseModel):
    """Body of a request; the server checks the limits of texts, voices and numbers.

    Attributes:
        model: required: `cosyvoice`, `tts-1`, `tts-1-hd` or `gpt-4o-mini-tts`, all the same.
        input: required: the text.
        voice: a registered voice, as a string or `{"id": ...}`; the oldest one if absent.
        instructions: how to speak.
        response_format: `mp3` (default), `opus` (in Ogg), `aac`, `flac`, `wav`, `pcm` (int16, little-endian); 24 kHz.
        speed: 0.5 to 2.
        stream_format: `audio` (default), or `sse`: events `speech.audio.delta` (`audio` in base64), `speech.audio.done`
            (`usage`), `error`.
        seed: an extension of OpenAI's API: same text, voice and seed, same samples.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    input: str
    voice: str | VoiceId | None = None
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float | None = Field(default=None, allow_inf_nan=False)
    stream_format: Literal["audio", "sse"] = "audio"
    seed: int | None = None

    def request(self) -> SpeechRequest:
        """Converts the body to a request of the server."""
        return SpeechRequest(
            text=self.input,
            voice=self.voice.id if isinstance(self.voice, VoiceId) else self.voice,
            instruct=self.instructions,
            speed=self.speed,
            seed=self.seed,
            sample_rate=SAMPLE_RATE,
        )


class Speech:
    """OpenAI's speech endpoint.

    It sends the status with the first audio: an earlier failure is an error of HTTP. A later one closes the connection
    before the end of the response, or is an event in `sse`.
    """

    def __init__(self, server: AsyncClient, places: StreamSlots, metrics: Metrics) -> None:
        self._server = server
        self._places = places
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        utterance = SpeechTelemetry(self._metrics)
        request = Request(scope, receive)
        # A page elsewhere can post any other type without asking its browser's leave.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise UNSUPPORTED_MEDIA_TYPE("the body must be application/json")
        body = parse(SpeechBody, await request.body())
        if body.model not in MODELS:
            raise MODEL_NOT_FOUND(f"no model {body.model[:64]!r}; see /v1/models", param="model")
        with self._places.taken(scope[CALLER]), utterance.noted(scope[NOTES]):
            async with self._server.stream(body.request(), **origin(scope)) as stream:
                audio = _encoded(FORMATS[body.response_format].encoder(), stream, utterance)
                if body.stream_format == "sse":
                    await _send("text/event-stream", _events(audio, len(body.input), utterance), send)
                else:
                    await _send(FORMATS[body.response_format].media_type, audio, send)


async def _encoded(encoder: Encoder, stream: AsyncSpeechStream, utterance: SpeechTelemetry) -> AsyncIterator[bytes]:
    """Yields the file in pieces; a piece is empty if the encoder waits for more audio."""
    async for chunk in stream:
        # In a thread: others are not held up while a second of audio is compressed.
        yield await asyncio.to_thread(encoder.encode, chunk.pcm)
        utterance.chunk_sent(chunk)
    yield await asyncio.to_thread(encoder.end)


async def _events(audio: AsyncIterator[bytes], characters: int, utterance: SpeechTelemetry) -> AsyncIterator[bytes]:
    begun = False
    try:
        async for data in audio:
            yield _event("speech.audio.delta", audio=base64.b64encode(data).decode()) if data else b""
            begun = True
    except CosyServeClientError as error:
        if not begun:
            raise
        yield _event("error", **api_error(error).envelope())
        return
    usage = {"input_tokens": characters, "output_tokens": utterance.tokens}
    yield _event("speech.audio.done", usage=usage | {"total_tokens": sum(usage.values())})


def _event(kind: str, **fields: object) -> bytes:
    return b"data: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


async def _send(media_type: str, parts: AsyncIterator[bytes], send: Send) -> None:
    headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    begun = False
    async for part in parts:
        if not begun:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            begun = True
        if part:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
