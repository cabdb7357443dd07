"""What the three commands share: errors in one line, also about packages that an extra would bring."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from cosyserve.doctor import tell
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
    "llama_cpp": "gguf",
    "opentelemetry": "tracing",
    "websockets": "gateway",
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
        return
    except CosyServeError as error:
        problem = str(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package.startswith("cosyserve"):
            raise  # a fault of ours
        problem = f"{package} is not installed: pip install 'cosyserve[{EXTRAS.get(package, 'cpu')}]'"
        if package in sys.stdlib_module_names:
            problem = f"this Python was built without its module {package}: {sys.executable}"
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(1)


def cosyserve() -> None:
    """``cosyserve``; its `doctor` works where packages are missing, which is when it is asked."""
    if sys.argv[1:] == ["doctor"]:
        sys.exit(not tell())
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
