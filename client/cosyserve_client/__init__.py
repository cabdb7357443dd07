"""Client of a CosyServe server: speech as it is made, blocking (`Client`) or asyncio (`AsyncClient`)."""

from cosyserve_client.aio import AsyncClient, AsyncSession, AsyncSpeechStream
from cosyserve_client.audio import WavWriter, read_prompt, read_source
from cosyserve_client.errors import (
    AlreadyExists,
    Cancelled,
    ConnectFailed,
    CosyServeClientError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ServerError,
    StreamTruncated,
    Unavailable,
    Unimplemented,
)
from cosyserve_client.sync import Client, Session, SpeechStream
from cosyserve_client.types import AudioChunk, Speech, SpeechOptions, SpeechRequest, Voice, Word

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "AsyncSession",
    "AsyncSpeechStream",
    "AudioChunk",
    "Cancelled",
    "Client",
    "ConnectFailed",
    "CosyServeClientError",
    "DeadlineExceeded",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "ServerError",
    "Session",
    "Speech",
    "SpeechOptions",
    "SpeechRequest",
    "SpeechStream",
    "StreamTruncated",
    "Unavailable",
    "Unimplemented",
    "Voice",
    "WavWriter",
    "Word",
    "read_prompt",
    "read_source",
]
