"""Fixtures of several test folders: prepared weights, objects loaded from them, and one running server."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from live import Live, running

from cosyserve.packed import unpack
from cosyserve_client import Client, SpeechOptions, read_prompt

ROOT = Path(__file__).parents[1]
TINY = Path(__file__).parent / "data" / "cosyvoice2-tiny"
TINY1 = TINY.with_name("cosyvoice1-tiny")
TINY3 = TINY.with_name("cosyvoice3-tiny")

# pytest puts this folder on the path, where torch would import the folder `triton` as the compiler of that name.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]


BUILDERS = ("torch", "onnx", "onnxscript", "gguf")
"""Packages of the extra `build`. If a Python has no CPU build of torch, none of them is installed."""


def pytest_configure() -> None:
    """Let torch compute in one thread, here and in all processes that tests start.

    The recorded networks are so small that a second thread mostly waits: comparing a recorded set takes
    fifteen times the processor time with two, and fifteen times as long on a busy machine. torch
    is not imported yet, and reads this at its import.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class _Module(pytest.Module):
    """A test file, skipped with the reason if it needs packages of the extra `build` that are not installed."""

    def _getobj(self) -> ModuleType:
        try:
            return super()._getobj()
        except self.CollectError as error:
            if missing := re.search(rf"No module named '({'|'.join(BUILDERS)})", str(error)):
                pytest.skip(f"{missing[1]} is not installed", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    module: pytest.Module = _Module.from_parent(parent, path=module_path)
    return module


def _prepared(recorded: Path) -> Path:
    """Prepare weights of a recorded set's bundle; they are kept across runs until the code that makes them changes."""
    pytest.importorskip("torch", reason="torch is not installed")
    from cosyserve_build.prepare import TOOLS, prepare

    sources = sorted(_sources("cosyserve_build.prepare", {}).values())
    parts = [*map(_code, sources), (recorded / "manifest.json").read_bytes()]
    parts += [version(tool).encode() for tool in TOOLS]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    folder = ROOT / ".cache" / "tests" / f"weights-{digest[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One of several workers prepares them, and the others wait.
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            prepare(recorded / "bundle", folder)
    return folder


@pytest.fixture(scope="session")
def weights() -> Path:
    """Prepared weights of the recorded CosyVoice2 bundle."""
    return _prepared(TINY)


@pytest.fixture(scope="session")
def demo_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of ``make demo``."""
    folder = tmp_path_factory.mktemp("demo") / "weights"
    unpack(ROOT / "demo" / "voice.tar.xz", folder)
    return folder


@pytest.fixture(scope="session")
def weights1() -> Path:
    """Prepared weights of the recorded CosyVoice 1 bundle."""
    return _prepared(TINY1)


@pytest.fixture(scope="session")
def set3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded set of CosyVoice3, its vocabulary filled up so that special tokens have their official ids."""
    folder = tmp_path_factory.mktemp("sets") / TINY3.name
    shutil.copytree(TINY3, folder)
    path = folder / "bundle" / "CosyVoice-BlankEN" / "vocab.json"
    vocab = json.loads(path.read_text("utf-8"))
    vocab |= {f"<unused_{index}>": index for index in range(len(vocab), 151643)}
    path.write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    return folder


@pytest.fixture(scope="session")
def weights3(set3: Path) -> Path:
    """Prepared weights of that set's bundle."""
    return _prepared(set3)


@pytest.fixture(scope="session")
def server(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Server with these weights."""
    with running(demo_weights, tmp_path_factory.mktemp("server") / "triton.log") as live:
        yield live


@pytest.fixture(scope="session")
def client(server: Live) -> Iterator[Client]:
    with Client(server.url, stream_timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def prompt() -> SpeechOptions:
    """Voice to clone, with its transcript."""
    samples, rate = read_prompt(str(TINY / "prompt.wav"))
    transcript = (TINY / "prompt.txt").read_text("utf-8")
    return {"prompt_audio": samples, "prompt_sample_rate": rate, "prompt_text": transcript}


def _code(path: Path) -> bytes:
    """What a file does: without comments, layout and documentation."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_string(each)]
    return ast.dump(tree).encode()


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _sources(module: str, seen: dict[str, Path]) -> dict[str, Path]:
    """List the files of a module and of all modules of this project that it imports."""
    stem = module.replace(".", "/")
    paths = [ROOT / home / f"{stem}.py" for home in ("python_backends", "build")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None or module in seen:
        return seen
    seen[module] = path
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                _sources(name, seen)
    return seen
