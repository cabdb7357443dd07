"""Speech to measure, from a server or from a source voice of the demo voice."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosyserve.errors import CosyServeError
from cosyserve_client import Client, CosyServeClientError, SpeechRequest


@dataclass(frozen=True, eq=False)
class Speech:
    """One utterance with its audio.

    Attributes:
        text: of the request.
        pcm: mono int16 [n].
        rate: Hz.
        joins: offset of the first sample of each chunk except the first.
        first_audio: seconds from the request to the first samples; None without streaming.
    """

    text: str
    pcm: NDArray[np.int16]
    rate: int
    joins: tuple[int, ...] = ()
    first_audio: float | None = None


def from_server(
    url: str, texts: Sequence[str], *, voice: str | None = None, stream: bool = True, seed: int = 0, at_once: int = 1
) -> Iterator[Speech]:
    """Yield what a running server says, in order; utterance i has seed `seed` + i.

    Args:
        url: gRPC ``host:port``.
        voice: name of a registered voice; None for the server's first.
        stream: False for full attention.
        at_once: maximum number of utterances in progress.

    Raises:
        CosyServeError: the server is unreachable, refuses a request, or ends a stream early.
    """
    requests = [
        SpeechRequest(text=text, voice=voice, seed=seed + index, stream=stream) for index, text in enumerate(texts)
    ]

    def speak(request: SpeechRequest) -> Speech:
        began, first_audio, chunks = time.perf_counter(), None, []
        for chunk in client.stream(request):
            if len(chunk.pcm):
                first_audio = first_audio or time.perf_counter() - began
                chunks.append(chunk)
        pcm = np.concatenate([chunk.pcm for chunk in chunks] or [np.zeros(0, np.int16)])
        joins = tuple(chunk.sample_offset for chunk in chunks[1:])
        return Speech(str(request.text), pcm, client.sample_rate(), joins, first_audio)

    with Client(url) as client, ThreadPoolExecutor(at_once) as pool:
        try:
            yield from pool.map(speak, requests)
        except CosyServeClientError as error:
            raise CosyServeError(str(error)) from error


def from_flite(voice: str, texts: Sequence[str]) -> Iterator[Speech]:
    """Yield what a source voice of the demo voice says.

    Raises:
        CosyServeError: flite or a Python package is missing, or the voice is unknown.
    """
    from cosyserve_build.demo_voice.source import SAMPLE_RATE, SPEAKERS, speak

    speakers = {speaker.name: speaker for speaker in SPEAKERS}
    if voice not in speakers:
        raise CosyServeError(f"source: {voice!r}, must be one of {', '.join(speakers)}")
    for text in texts:
        try:
            yield Speech(text, speak(text, speakers[voice]).wave, SAMPLE_RATE)
        except ModuleNotFoundError as error:
            raise CosyServeError(f"source: {error.name} is missing: pip install 'cosyserve[voice]'") from None
        except FileNotFoundError:
            raise CosyServeError("source: flite is missing: apt-get install flite") from None
        except subprocess.CalledProcessError as error:
            raise CosyServeError(f"source: flite failed: {error.stderr.strip()}") from None
