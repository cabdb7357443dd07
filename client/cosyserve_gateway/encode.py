"""Incremental encoding of speech to audio files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast

import av
import numpy as np
from numpy.typing import NDArray

from cosyserve_gateway.limits import OPUS_PAGE_MICROSECONDS

SAMPLE_RATE = 24_000
"""Rate of all answers over HTTP in Hz, which OpenAI's clients assume for raw PCM. The server resamples if needed."""

_UNKNOWN = 0xFFFFFFFF  # a length in a WAV header that is written before the audio is known


class Encoder(Protocol):
    """Encoder of one file."""

    def encode(self, pcm: NDArray[np.int16]) -> bytes:
        """Returns the bytes that `pcm`, int16 [samples], adds; possibly none yet."""

    def end(self) -> bytes:
        """Returns the bytes after the last samples."""


class Pcm:
    """Raw samples: int16, little-endian."""

    def encode(self, pcm: NDArray[np.int16]) -> bytes:
        return pcm.astype("<i2", copy=False).tobytes()

    def end(self) -> bytes:
        return b""


class Wav(Pcm):
    """Raw samples after a header of unknown length."""

    def __init__(self) -> None:
        fmt = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
        self._header = (
            struct.pack("<4sI8s", b"RIFF", _UNKNOWN, b"WAVEfmt ") + fmt + struct.pack("<4sI", b"data", _UNKNOWN)
        )

    def encode(self, pcm: NDArray[np.int16]) -> bytes:
        header, self._header = self._header, b""
        return header + super().encode(pcm)


@dataclass
class _Sink:
    """Output of FFmpeg that cannot seek, so that no format changes its header afterwards."""

    parts: list[bytes] = field(default_factory=list)

    def write(self, data: bytes) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self.parts)
        self.parts.clear()
        return data


class Compressed:
    """A format of FFmpeg.

    Args:
        container: its muxer.
        codec: its encoder.
        samples: FFmpeg's name of the sample format that the encoder takes.
        options: of the muxer.
    """

    def __init__(self, container: str, codec: str, samples: str, **options: str) -> None:
        self._sink = _Sink()
        self._output = av.open(self._sink, "w", format=container, options=options)
        self._stream = cast(av.AudioStream, self._output.add_stream(codec, rate=SAMPLE_RATE, layout="mono"))
        self._stream.codec_context.format = samples
        self._position = 0

    def encode(self, pcm: NDArray[np.int16]) -> bytes:
        if len(pcm):
            frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            frame.pts = self._position
            self._position += len(pcm)
            self._output.mux(self._stream.encode(frame))
        return self._sink.take()

    def end(self) -> bytes:
        self._output.mux(self._stream.encode(None))
        self._output.close()
        return self._sink.take()


@dataclass(frozen=True, slots=True)
class Format:
    """A ``response_format``: its media type and its encoder."""

    media_type: str
    encoder: Callable[[], Encoder]


FORMATS = {
    # Neither a tag nor a frame with the length, which is not known yet.
    "mp3": Format("audio/mpeg", lambda: Compressed("mp3", "libmp3lame", "s16p", write_xing="0", id3v2_version="0")),
    "opus": Format("audio/ogg", lambda: Compressed("ogg", "libopus", "s16", page_duration=str(OPUS_PAGE_MICROSECONDS))),
    "aac": Format("audio/aac", lambda: Compressed("adts", "aac", "fltp")),
    "flac": Format("audio/flac", lambda: Compressed("flac", "flac", "s16")),
    "wav": Format("audio/wav", Wav),
    "pcm": Format("audio/pcm", Pcm),
}
