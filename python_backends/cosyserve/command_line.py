"""What the three commands share: errors in one line, also about packages that an extra would bring."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from cosyserve.errors import CosyServeError

EXTRAS = {
    "torch": "build",
    "onnx": "build",
    "onnxscript": "build",
    "gguf": "build",
    "yaml": "build",
    "starlette": "gateway",
    "uvicorn": "gateway",
    "av": "gateway",
    "pydantic": "gateway",
    "prometheus_client": "gateway",
    "pocketsphinx": "judge",
    "pyworld": "voice",
    "matplotlib": "loadtest",
    "soundfile": "client",
    "grpc": "client",
    "tritonclient": "client",
}
"""The extra that brings each package which not every installation has; `cpu` brings all others."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the command with one line on stderr and exit code 1 when something is wrong that its user can mend."""
    try:
        yield
    except CosyServeError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        if (package := (error.name or "").partition(".")[0]).startswith("cosyserve"):
            raise  # a fault of ours
        sys.exit(f"error: {package} is not installed: pip install 'cosyserve[{EXTRAS.get(package, 'cpu')}]'")


def cosyserve() -> None:
    """``cosyserve``."""
    _run("cosyserve.cli")


def cosyserve_build() -> None:
    """``cosyserve-build``."""
    _run("cosyserve_build.cli")


def cosyserve_gateway() -> None:
    """``cosyserve-gateway``."""
    _run("cosyserve_gateway.cli")


def _run(module: str) -> None:
    with one_line_errors():
        import_module(module).app()
