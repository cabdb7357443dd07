"""``cosyserve voice``: register voices, list, show and remove them, from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer

from cosyserve_client.audio import read_prompt
from cosyserve_client.errors import CosyServeClientError
from cosyserve_client.sync import Client

voice = typer.Typer(no_args_is_help=True, help="Manage registered voices.")

Name = Annotated[str, typer.Argument(help="Name of the voice")]
Url = Annotated[str, typer.Option(help="gRPC address of the server, host:port")]
_URL = "127.0.0.1:8001"


@voice.command()
def add(
    name: Name,
    prompt_wav: Annotated[str, typer.Option(help="Audio file with the voice, up to 30 s")],
    prompt_text: Annotated[str | None, typer.Option(help="Transcript of the audio file; improves the speech")] = None,
    consent: Annotated[str | None, typer.Option(help="Note on the speaker's consent")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing voice of that name")] = False,
    url: Url = _URL,
) -> None:
    """Register a voice."""
    with _client(url) as client:
        samples, rate = read_prompt(prompt_wav)
        added = client.add_voice(name, samples, rate, prompt_text=prompt_text, consent=consent, replace=replace)
        typer.echo(f"{added.name}: registered, {added.prompt_seconds:.2f} s of prompt")


@voice.command(name="list")
def list_voices(url: Url = _URL) -> None:
    """List all voices: name, seconds of prompt, registration time."""
    with _client(url) as client:
        for each in client.list_voices():
            typer.echo(f"{each.name}\t{each.prompt_seconds:.2f}\t{each.created or 'bundle'}")


@voice.command()
def show(name: Name, url: Url = _URL) -> None:
    """Show the details of a voice."""
    with _client(url) as client:
        for key, value in asdict(client.show_voice(name)).items():
            typer.echo(f"{key}: {value}")


@voice.command()
def rm(name: Name, url: Url = _URL) -> None:
    """Remove a voice."""
    with _client(url) as client:
        typer.echo(f"{client.remove_voice(name).name}: removed")


@contextmanager
def _client(url: str) -> Iterator[Client]:
    try:
        with Client(url) as client:
            yield client
    except CosyServeClientError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
