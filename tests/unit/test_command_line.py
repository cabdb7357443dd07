"""Errors that a user can fix are one line on stderr, also for a package of an extra that is missing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cosyserve.command_line import EXTRAS, one_line_errors
from cosyserve.errors import CosyServeError, InvalidInput, ServeError

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]

BROUGHT_BY = {
    "yaml": "pyyaml",
    "grpc": "tritonclient",
    "prometheus_client": "prometheus-client",
    "llama_cpp": "llama-cpp-python",
    "opentelemetry": "opentelemetry-sdk",
}
"""Requirements that bring a package under another name."""


def requirements(extra: str) -> set[str]:
    """Names of all that an extra brings, with what its own extras bring."""
    names = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        if own := re.fullmatch(r"cosyserve\[(.+)\]", requirement):
            names |= set().union(*map(requirements, own[1].split(",")))
        else:
            names.add(re.split(r"[^\w-]", requirement)[0])
    return names


def told(error: Exception, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that raises this error, and return its stderr."""
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise error
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (1, "")
    return err


def run(command: str, *arguments: str, without: str = "", folder: Path | None = None) -> tuple[int, str]:
    """Exit code and stderr of a command that prints nothing else, on an installation without one package."""
    done = start(command, *arguments, without=without, folder=folder)
    assert done.stdout == ""
    return done.returncode, done.stderr


def start(
    command: str, *arguments: str, without: str = "", folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    module, _, function = PROJECT["scripts"][command].partition(":")
    hide = f"sys.modules[{without!r}] = None; " if without else ""
    code = f"import sys; {hide}from {module} import {function}; sys.exit({function}())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("error", [ServeError("no port"), CosyServeError("no port"), InvalidInput("port", "none")])
def test_an_error_of_ours_is_its_message(error: CosyServeError, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(error, capsys) == f"error: {error}\n"


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("torch", "torch", "build"),
        ("torch.nn.functional", "torch", "build"),
        ("starlette.types", "starlette", "gateway"),
        ("pocketsphinx", "pocketsphinx", "judge"),
        ("of_nobody", "of_nobody", "cpu"),
        ("wetext", "wetext", "cpu"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    name: str, package: str, extra: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ModuleNotFoundError(f"No module named {name!r}", name=name)
    assert told(error, capsys) == f"error: {package} is not installed: pip install 'cosyserve[{extra}]'\n"


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'cosyserve.pypeline'", name="cosyserve.pypeline"),
        ModuleNotFoundError("No module named 'cosyserve_build.x'", name="cosyserve_build.x"),
        ImportError("cannot import name", name="torch"),
        ValueError("a fault of ours"),
    ],
    ids=repr,
)
def test_an_unexpected_error_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, one_line_errors():
        raise error
    assert caught.value is error


def test_without_an_error_nothing_happens() -> None:
    with one_line_errors():
        pass


@pytest.mark.parametrize(("package", "extra"), [*EXTRAS.items(), ("wetext", "cpu"), ("onnxruntime", "cpu")])
def test_each_extra_brings_its_package(package: str, extra: str) -> None:
    assert BROUGHT_BY.get(package, package) in requirements(extra)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("cosyserve", ("serve", "--weights", "NOPE")),
        ("cosyserve", ("demo", "--weights", "NOPE")),
        ("cosyserve", ("unpack", "NOPE", "OUT")),
        ("cosyserve-build", ("prepare", "NOPE", "OUT")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_folder_that_is_missing_is_one_line(command: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    if command == "cosyserve-build":
        pytest.importorskip("torch")
    assert run(command, *arguments, folder=tmp_path) == (1, "error: NOPE does not exist\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "arguments", "package"),
    [
        ("cosyserve", ("say", "Hi."), "grpc"),
        ("cosyserve-build", ("prepare", "NOPE", "OUT"), "torch"),
        ("cosyserve-gateway", (), "starlette"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_command_without_its_extra_is_one_line(
    command: str, arguments: tuple[str, ...], package: str, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    line = f"error: {package} is not installed: pip install 'cosyserve[{EXTRAS[package]}]'\n"
    assert run(command, *arguments, without=package, folder=tmp_path) == (1, line)


def test_the_doctor_comes_where_packages_are_missing() -> None:
    told = start("cosyserve", "doctor", without="grpc").stdout
    assert told.startswith("ok      CosyServe")
    assert "\nnext:   " in told
