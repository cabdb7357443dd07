"""``cosyserve``: serve, and speak."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cosyserve.errors import CosyServeError
from cosyserve.packed import unpack as unpack_weights
from cosyserve.serve import PROFILES, Server, free_port, watch
from cosyserve.weights import Weights
from cosyserve_client.bench.command import bench
from cosyserve_client.cli import say
from cosyserve_client.plan import plan
from cosyserve_client.voice_cli import voice

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.command()(say)
app.command()(bench)
app.command()(plan)
app.add_typer(voice, name="voice")

RANDOM = "random weights: this is noise, see README to use CosyVoice2-0.5B"


SENTENCE = "Hello, how are you today? The next train to London leaves in twenty minutes."
SEED = 1  # the demo always says it alike


@app.command()
def serve(
    weights: Annotated[Path, typer.Option(help="folder written by cosyserve-build prepare")],
    profile: Annotated[str, typer.Option(help="cpu or gpu")] = "cpu",
    host: Annotated[str, typer.Option(help="address to bind")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="gRPC port")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="metrics port")] = 8002,
    log: Annotated[str, typer.Option(help="file for the log; - is standard output")] = "",
) -> None:
    """Run Triton on the model repository until interrupted."""
    if profile not in PROFILES:
        raise typer.BadParameter(f"one of {', '.join(PROFILES)}", param_hint="--profile")
    path = None if log == "-" else Path(log) if log else _temporary_log(grpc_port)
    with _one_line_errors(), _server(Server(weights, profile, host, grpc_port, metrics_port, log=path)) as process:
        where = f", log in {path}" if path else ""
        print(f"ready: gRPC on {host}:{grpc_port}, metrics on http://{host}:{metrics_port}/metrics{where}", flush=True)
        watch(process)


@app.command()
def demo(
    weights: Annotated[Path, typer.Option(help="folder written by cosyserve-build prepare")],
    output: Annotated[str, typer.Option("-o", "--output", help="WAV file")] = "demo.wav",
    text: Annotated[str, typer.Argument(help="what to say")] = SENTENCE,
) -> None:
    """Start a server on free loopback ports, say one sentence, stop the server."""
    port = free_port()
    server = Server(weights, grpc_port=port, metrics_port=free_port(), log=_temporary_log(port))
    with _one_line_errors(), _server(server):
        print(f"saying: {text}", flush=True)
        say(text, output=output, url=f"{server.host}:{server.grpc_port}", seed=SEED)
        if not Weights(weights).random:
            print(f"a recogniser heard: {_heard(Path(output))}")


def _heard(wave: Path) -> str:
    """The words in a file, as far as they are words that the demo voice was taught."""
    from cosyserve_build.judge.recogniser import Recogniser
    from cosyserve_client.audio import read_source

    return " ".join(Recogniser().hear(*read_source(wave)))


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(help="the demo voice: demo/voice.tar.xz")],
    out: Annotated[Path, typer.Argument(help="folder for its prepared weights, replaced")],
) -> None:
    """Take the prepared weights of the demo voice out of its archive."""
    with _one_line_errors():
        unpack_weights(archive, out)
    print(f"{out}: ready")


@contextmanager
def _server(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    # Both signals leave through the same door, so that Triton is stopped too; a background shell job ignores SIGINT.
    _on_signals(_interrupt)
    try:
        if Weights(server.weights).random:
            print(RANDOM, file=sys.stderr)
        with server.running() as process:
            yield process
    except KeyboardInterrupt:
        raise typer.Exit(128 + signal.SIGINT) from None


def _interrupt(*_: object) -> None:
    _on_signals(signal.SIG_IGN)  # a second one must not stop the stopping half-way
    raise KeyboardInterrupt


def _on_signals(handler: Callable[..., None] | signal.Handlers) -> None:
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, handler)


def _temporary_log(port: int) -> Path:
    return Path(tempfile.gettempdir()) / f"cosyserve-{port}.log"


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except CosyServeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
