"""``cosyserve``: serve, and speak."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from cosyserve.errors import CosyServeError
from cosyserve.serve import PROFILES, Server
from cosyserve.weights import Weights
from cosyserve_client.cli import say

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.command()(say)

RANDOM = "random weights: this is noise, see README to use CosyVoice2-0.5B"


@app.command()
def serve(
    weights: Annotated[Path, typer.Option(help="folder written by cosyserve-build prepare")],
    profile: Annotated[str, typer.Option(help="cpu or gpu")] = "cpu",
    host: Annotated[str, typer.Option(help="address to bind")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="gRPC port")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="metrics port")] = 8002,
    log: Annotated[Path | None, typer.Option(help="file for the log of Triton")] = None,
) -> None:
    """Run Triton on the model repository until interrupted."""
    if profile not in PROFILES:
        raise typer.BadParameter(f"one of {', '.join(PROFILES)}", param_hint="--profile")
    server = Server(weights, profile, host, grpc_port, metrics_port, log=log)
    # Both signals leave through the same door, so that Triton is stopped too; a background shell job ignores SIGINT.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)
    try:
        if Weights(weights).random:
            print(RANDOM, file=sys.stderr)
        with server.running() as process:
            print(f"ready: gRPC on {host}:{grpc_port}, metrics on http://{host}:{metrics_port}/metrics", flush=True)
            code = process.wait()
        print(f"error: tritonserver ended with code {code}", file=sys.stderr)
        raise typer.Exit(1)
    except CosyServeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(128 + signal.SIGINT) from None
