"""Audio files: reading a prompt, writing speech as it arrives."""

from __future__ import annotations

import sys
import wave
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cosyserve.limits import MAX_AUDIO_RATE, MAX_PROMPT_SECONDS, MAX_SOURCE_SECONDS
from cosyserve_client.errors import CosyServeClientError, invalid

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


def read_prompt(source: str | Path | BinaryIO) -> tuple[NDArray[np.float32], int]:
    """The audio of a file in any format that libsndfile knows, channels averaged: a voice to clone.

    Args:
        source: path of the file, or the file itself, open for reading.

    Returns:
        float32 [samples] in -1..1, and the sample rate in Hz.

    Raises:
        InvalidArgument: not readable, not audio, empty, or longer than `MAX_PROMPT_SECONDS`.
        CosyServeClientError: the package that reads audio is not installed.
    """
    return _read("prompt_audio", source, MAX_PROMPT_SECONDS)


def read_source(source: str | Path | BinaryIO) -> tuple[NDArray[np.float32], int]:
    """As `read_prompt`, up to `MAX_SOURCE_SECONDS`: speech to convert."""
    return _read("source_audio", source, MAX_SOURCE_SECONDS)


def _read(field: str, source: str | Path | BinaryIO, most: float) -> tuple[NDArray[np.float32], int]:
    try:
        import soundfile  # not among the dependencies of a server, which can say but has no prompt to read
    except ModuleNotFoundError:
        raise CosyServeClientError("reading audio files needs: pip install 'cosyserve[client]'") from None
    name = source if isinstance(source, str | Path) else "the file"
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise invalid(field, f"file {name} does not exist")
    try:
        with soundfile.SoundFile(source) as file:
            # The header says how much memory reading would take; at a high rate, seconds alone bound it little.
            if file.samplerate > MAX_AUDIO_RATE:
                raise invalid(field, f"{name} has {file.samplerate} Hz, maximum is {MAX_AUDIO_RATE}")
            if file.frames > most * file.samplerate:
                seconds = file.frames / file.samplerate
                raise invalid(field, f"{name} has {seconds:.1f} s, maximum is {most:.0f}")
            frames = file.read(dtype="float32", always_2d=True)
            rate = int(file.samplerate)
    except (OSError, soundfile.SoundFileError) as error:
        raise invalid(field, f"cannot read {name}: {getattr(error, 'error_string', error)}") from None
    if not len(frames):
        raise invalid(field, f"{name} has no samples")
    return frames.mean(axis=1, dtype=np.float32), rate


class WavWriter:
    """A mono 16-bit WAV file that is complete after each `write`; ``-`` is raw PCM, little-endian, to stdout.

    Args:
        path: of the file, replaced when it exists.
        sample_rate: in Hz.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str, sample_rate: int) -> None:
        self._files = ExitStack()
        self._wave: wave.Wave_write | None = None
        self._file: BinaryIO = sys.stdout.buffer
        if path != "-":
            # Opened here because `wave`, given a path that it cannot open, also fails in its destructor.
            self._file = self._files.enter_context(open(path, "wb"))  # noqa: SIM115
            self._wave = self._files.enter_context(wave.open(self._file, "wb"))  # noqa: SIM115
            self._wave.setnchannels(1)
            self._wave.setsampwidth(2)
            self._wave.setframerate(sample_rate)

    def write(self, pcm: NDArray[np.int16]) -> None:
        """Appends `pcm`, int16 [samples]."""
        data = pcm.astype("<i2", copy=False).tobytes()
        if self._wave is None:
            self._file.write(data)
        else:
            self._wave.writeframes(data)
        self._file.flush()

    def close(self) -> None:
        """Closes the file; stdout stays open."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
