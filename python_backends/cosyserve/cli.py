"""``cosyserve``: serve, and speak."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cosyserve import __version__, repository
from cosyserve.command_line import one_line_errors
from cosyserve.doctor import tell
from cosyserve.packed import unpack as unpack_weights
from cosyserve.repository import PROFILES
from cosyserve.serve import UNLOCKABLE, Server, free_port, watch
from cosyserve.tritonserver import fetch
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


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cosyserve {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Serve CosyVoice text-to-speech, and speak."""


RANDOM = "random weights: this is noise, see README to use CosyVoice2-0.5B"


SENTENCE = "Hello, how are you today? The next train to London leaves in twenty minutes."
SEED = 1  # the demo always says it alike


def _known_profile(profile: str) -> str:
    if profile not in PROFILES:
        raise typer.BadParameter(f"one of {', '.join(PROFILES)}", param_hint="--profile")
    return profile


Profile = Annotated[str, typer.Option(help="cpu or gpu", callback=_known_profile)]


@app.command()
def serve(
    weights: Annotated[Path, typer.Option(help="folder written by cosyserve-build prepare")],
    profile: Profile = "cpu",
    host: Annotated[str, typer.Option(help="address to bind")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="gRPC port")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="metrics port")] = 8002,
    log: Annotated[str, typer.Option(help="file for the log; - is standard output")] = "",
    unlock: Annotated[
        list[str] | None, typer.Option(help="service of Triton that callers may use: statistics (for perf_analyzer)")
    ] = None,
) -> None:
    """Run Triton on the model repository until interrupted."""
    if not set(unlock or ()) <= set(UNLOCKABLE):
        raise typer.BadParameter(f"one of {', '.join(UNLOCKABLE)}", param_hint="--unlock")
    server = Server(weights, profile, host, grpc_port, metrics_port, unlock=tuple(unlock or ()))
    path = None if log == "-" else Path(log) if log else _temporary_log(grpc_port)
    with one_line_errors(), _server(replace(server, log=path)) as process:
        where = f", log in {path}" if path else ""
        print(f"ready: gRPC on {host}:{grpc_port}, metrics on http://{host}:{metrics_port}/metrics{where}", flush=True)
        watch(process, server.processes)


@app.command()
def demo(
    weights: Annotated[Path, typer.Option(help="folder written by cosyserve-build prepare")],
    output: Annotated[str, typer.Option("-o", "--output", help="WAV file")] = "demo.wav",
    text: Annotated[str, typer.Argument(help="what to say")] = SENTENCE,
) -> None:
    """Start a server on free loopback ports, say one sentence, stop the server."""
    port = free_port()
    server = Server(weights, grpc_port=port, metrics_port=free_port(), log=_temporary_log(port))
    with one_line_errors(), _server(server):
        print(f"saying: {text}", flush=True)
        say(text, output=output, url=f"{server.host}:{server.grpc_port}", seed=SEED)
        if not Weights(weights).random:
            print(_heard(Path(output)))
    print(NEXT.format(cosyserve=sys.argv[0]))


NEXT = """next:
  a page that speaks: make serve, in another terminal make gateway, then http://127.0.0.1:8080
  your own text:      make serve, in another terminal {cosyserve} say "Your own text." -o mine.wav
  real weights:       README.md, Serve CosyVoice"""


def _heard(wave: Path) -> str:
    """One line with the words that a recogniser finds in a file; it knows those that the demo voice was taught."""
    try:
        from cosyserve_build.judge.recogniser import Recogniser
    except ModuleNotFoundError as error:
        return f"no recogniser listened: {error.name} is not installed (pip install 'cosyserve[judge]')"
    from cosyserve_client.audio import read_source

    return f"a recogniser heard: {' '.join(Recogniser().hear(*read_source(wave)))}"


@app.command()
def render_repository(
    out: Annotated[Path, typer.Argument(help="new folder, for `tritonserver --model-repository`")],
    weights: Annotated[Path, typer.Option(help="folder written by cosyserve-build prepare")],
    profile: Profile = "gpu",
) -> None:
    """Write the model repository that `serve` would run, for those who start tritonserver themselves."""
    with one_line_errors():
        repository.write(out, profile, Weights(weights).config)
    print(f"{out}: ready; run it with COSYSERVE_WEIGHTS={weights.resolve()} in the environment of tritonserver")


@app.command()
def doctor() -> None:
    """Tell what this machine can do and what to type next; paste the output into bug reports."""
    if not tell():
        raise typer.Exit(1)


@app.command()
def fetch_triton() -> None:
    """Fetch the tritonserver that `serve` runs where none is on PATH; for images, and before going offline."""
    with one_line_errors():
        found = fetch(print)
    print(f"Triton {found.version}: {found.binary}")


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(help="the demo voice: demo/voice.tar.xz")],
    out: Annotated[Path, typer.Argument(help="folder for its prepared weights, replaced")],
) -> None:
    """Take the prepared weights of the demo voice out of its archive."""
    with one_line_errors():
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
