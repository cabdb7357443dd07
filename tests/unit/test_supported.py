"""Unsupported interpreters and machines get an error of one line, even with a very old Python."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cosyserve import supported
from cosyserve.supported import PYTHONS, machine_problem, main, python_problem, venv_problem

SCRIPT = Path(supported.__file__)
ROOT = Path(__file__).parents[2]
WANTED = "CosyServe needs CPython 3.11 to 3.13"

INTERPRETERS = [
    path
    for path in (*Path.home().glob(".pyenv/versions/*/bin/python"), Path("/usr/bin/python3"))
    if path.is_file() and re.fullmatch(r"[\d.]+|usr", path.parts[-3])  # no PyPy, no free-threaded build
]


def told(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def tritonserver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tritonserver on PATH, so that the machine does not matter."""
    (tmp_path / "tritonserver").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("python", INTERPRETERS, ids=str)
@pytest.mark.usefixtures("tritonserver")
def test_every_interpreter_here_says_whether_it_is_supported(python: Path) -> None:
    version = told(python, "import sys; print('.'.join(map(str, sys.version_info[:3])))")
    done = subprocess.run([python, SCRIPT], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    if not PYTHONS[0] <= tuple(map(int, version.split(".")[:2])) <= PYTHONS[1]:
        assert (done.returncode, len(lines)) == (1, 1)
        assert lines[0].startswith(f"error: {WANTED}, this is Python {version} (")
    elif told(python, "import importlib.util as u; print(all(map(u.find_spec, ('ensurepip', 'venv'))))") == "True":
        assert (done.returncode, lines) == (0, [])
    else:  # the distribution's, without a package of its own
        assert (done.returncode, len(lines)) == (1, 1)
        assert "python3-venv" in lines[0]
    assert done.stdout == ""


def test_the_package_asks_for_the_same_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (first, last), (_, beyond) = PYTHONS[0], (3, PYTHONS[1][1] + 1)
    assert project["requires-python"] == f">={first}.{last},<{first}.{beyond}"


def test_this_interpreter_is_supported() -> None:
    assert (python_problem(), venv_problem()) == ("", "")


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 9, 1), (3, 10, 99), (3, 14, 0), (4, 0, 0)])
def test_a_version_outside_is_named_with_a_way_out(
    version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    name = ".".join(map(str, version))
    assert (
        python_problem()
        == f"{WANTED}, this is Python {name} ({sys.executable}); name another with `make PYTHON=python3.13`"
    )


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 99), (3, 13, 0)])
def test_a_supported_version_is_no_problem(version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert python_problem() == ""


@pytest.mark.parametrize(
    ("owner", "name", "value", "problem"),
    [
        (platform, "python_implementation", lambda: "PyPy", ", this is PyPy"),
        (sys, "_is_gil_enabled", lambda: False, " with the global interpreter lock, this is a free-threaded build"),
        (sys, "abiflags", "t", " with the global interpreter lock, this is a free-threaded build"),
        (sys, "maxsize", 2**31 - 1, " of 64 bits, this is one of 32"),
    ],
    ids=["PyPy", "free-threaded", "free-threaded, its lock on again", "32 bit"],
)
def test_another_kind_of_python_is_named(
    owner: object, name: str, value: object, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, value, raising=False)
    assert python_problem() == WANTED + problem


@pytest.mark.parametrize("module", ["ensurepip", "venv"])
def test_a_python_without_venv_is_told_its_package(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert re.fullmatch("Python's venv module is missing: .*`apt-get install python3-venv`", venv_problem())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the downloaded tritonserver runs."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.35"))


@pytest.mark.usefixtures("machine")
def test_the_oldest_machine_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_problem() == ""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert machine_problem() == ""


@pytest.mark.parametrize("version", ["2.36", "2.100", "3.0", "2.39.9000"])
@pytest.mark.usefixtures("machine")
def test_a_newer_c_library_is_supported(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", version))
    assert machine_problem() == ""


@pytest.mark.usefixtures("machine")
def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine_problem() == "the server runs on Linux, this is darwin; run it in a container"


@pytest.mark.usefixtures("machine")
def test_another_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert re.fullmatch("no .* for riscv64, only for x86_64 and aarch64; put one on PATH", machine_problem())


@pytest.mark.parametrize(
    ("libc", "name"),
    [
        (("glibc", "2.31"), "glibc 2.31"),
        (("glibc", "2.9"), "glibc 2.9"),
        (("musl", "1.2.5"), "musl 1.2.5"),
        (("libc", ""), "libc"),
        (("", ""), "another C library"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_another_c_library_is_named(libc: tuple[str, str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    assert re.fullmatch(f".* needs glibc 2.35, this machine has {name}; use NVIDIA's container", machine_problem())


@pytest.mark.usefixtures("machine")
def test_the_machine_does_not_matter_with_a_tritonserver_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="^error: no tritonserver can be fetched for riscv64"):
        main()
    (tmp_path / "tritonserver").touch(0o755)
    main()


@pytest.mark.usefixtures("tritonserver")
def test_the_interpreter_matters_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_implementation", lambda: "PyPy")
    with pytest.raises(SystemExit, match=f"^error: {WANTED}, this is PyPy$"):
        main()
