"""``cosyserve say``: speak a text into a file, from the command line."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Console

from cosyserve_client.audio import WavWriter, read_prompt, read_source
from cosyserve_client.errors import CosyServeClientError, invalid
from cosyserve_client.sync import Client
from cosyserve_client.types import SpeechRequest

_INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C


@dataclass(slots=True)
class Progress:
    """What one utterance has received so far."""

    sample_rate: int
    started: float = field(default_factory=time.perf_counter)
    samples: int = 0
    first_audio: float | None = None
    elapsed: float = 0.0

    def add(self, samples: int) -> None:
        """Counts a chunk of `samples` that has just arrived."""
        self.elapsed = time.perf_counter() - self.started
        if samples and self.first_audio is None:
            self.first_audio = self.elapsed
        self.samples += samples

    def __str__(self) -> str:
        seconds = self.samples / self.sample_rate
        if self.first_audio is None:
            return f"{seconds:.2f} s of audio"
        factor = self.elapsed / seconds
        return f"{seconds:.2f} s of audio, first audio {self.first_audio * 1000:.0f} ms, real-time factor {factor:.2f}"


def say(
    text: Annotated[str | None, typer.Argument(help="Text to speak; - reads standard input")] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="WAV file to write; - writes raw 16-bit PCM to standard output")
    ] = "out.wav",
    voice: Annotated[str | None, typer.Option(help="Name of a registered voice")] = None,
    prompt_wav: Annotated[str | None, typer.Option(help="Audio file with the voice to clone")] = None,
    prompt_text: Annotated[str | None, typer.Option(help="Transcript of the prompt audio")] = None,
    instruct: Annotated[str | None, typer.Option(help="Instruction on how to speak")] = None,
    source_wav: Annotated[
        str | None, typer.Option(help="Audio file to convert to the voice, instead of a text")
    ] = None,
    speed: Annotated[float | None, typer.Option(help="Speaking rate, 0.5 to 2; 1 is as generated")] = None,
    sample_rate: Annotated[
        int | None, typer.Option(help="Sample rate in Hz: 8000, 16000, 24000, 48000 or the model's")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed; the same seed gives the same samples")] = None,
    stream: Annotated[bool, typer.Option(help="Stream the audio, or wait for full-attention quality")] = True,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Print each word with its estimated start time")
    ] = False,
    url: Annotated[str, typer.Option(help="gRPC address of the server, host:port")] = "127.0.0.1:8001",
) -> None:
    """Speak TEXT, or convert the speech of --source-wav, into a WAV file that grows as the audio arrives."""
    try:
        prompt_audio, rate = read_prompt(prompt_wav) if prompt_wav is not None else (None, None)
        source_audio, source_rate = read_source(source_wav) if source_wav is not None else (None, None)
        request = SpeechRequest(
            text=_standard_input() if text == "-" else text,
            voice=voice,
            prompt_audio=prompt_audio,
            prompt_sample_rate=rate,
            prompt_text=prompt_text,
            instruct=instruct,
            source_audio=source_audio,
            source_sample_rate=source_rate,
            speed=speed,
            sample_rate=sample_rate,
            seed=seed,
            stream=stream,
            timestamps=timestamps or None,
        )
        progress = _speak(request, output, url)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    except (CosyServeClientError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{output}: {progress}", err=output == "-")


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise invalid("text", "standard input is not UTF-8") from None


def _speak(request: SpeechRequest, output: str, url: str) -> Progress:
    console = Console(stderr=True)
    with ExitStack() as stack:
        client = stack.enter_context(Client(url))
        progress = Progress(request.sample_rate or client.sample_rate())
        status = stack.enter_context(console.status("waiting for audio")) if console.is_terminal else None
        chunks = stack.enter_context(client.stream(request))
        writer = None
        for chunk in chunks:
            progress.add(len(chunk.pcm))
            # Opened late, so that a refused request leaves an existing file alone.
            writer = writer or stack.enter_context(WavWriter(output, progress.sample_rate))
            writer.write(chunk.pcm)
            for word in chunk.words:
                typer.echo(f"{word.start:8.2f} {word.text}", err=output == "-")
            if status is not None:
                status.update(str(progress))
    return progress
