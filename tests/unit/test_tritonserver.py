"""Choice of the tritonserver, its environment and flags, and the download of one."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cosyserve import tritonserver
from cosyserve.errors import ServeError
from cosyserve.supported import machine_problem
from cosyserve.tritonserver import (
    FETCHED_VERSION,
    HASHES,
    LIBRARY,
    PACKAGE,
    PYTHON,
    SERVICES,
    STUB,
    WHEEL,
    WHEEL_VERSION,
    TritonServer,
    fetch,
    locate,
)

MAJOR, MINOR = PYTHON.split(".")
MANGLED = f"libpython{MAJOR}-419a3a08.{MINOR}.so.1.0"
OTHER = "3.12" if PYTHON != "3.12" else "3.13"
FLAGS = ("model-repository", "grpc-port", "grpc-restricted-protocol", *SERVICES)

fetching = pytest.mark.skipif(bool(machine_problem()), reason=machine_problem())


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n", "utf-8")
    path.chmod(0o755)
    return path


def telling(*flags: str) -> list[str]:
    """Lines of a script that prints a help text with these flags, the way Triton does: code 1, on stderr."""
    return [f"printf '  --%s <string>\\n\\tSays more.\\n' {' '.join(flags)} >&2", "exit 1"]


def stub_of(*names: str) -> bytes:
    return b"\x7fELF\0" + b"\0".join(name.encode() for name in names) + b"\0"


def installed(root: Path, stub: bytes | None = b"\x7fELF", lines: list[str] | None = None) -> TritonServer:
    """Fake installation in a separate folder."""
    binary = script(root / "bin" / "tritonserver", *(telling(*FLAGS) if lines is None else lines))
    backend = root / "backends" / "python"
    backend.mkdir(parents=True)
    if stub is not None:
        (backend / STUB).write_bytes(stub)
    return TritonServer(binary, root / "backends", "", "PATH")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache of downloads, with nothing on PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("TRITON_SERVER_VERSION", raising=False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return tmp_path / "cache" / "cosyserve" / f"{WHEEL}-{WHEEL_VERSION}"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shared library of this interpreter; a statically linked one has none."""
    path = tmp_path / "python" / LIBRARY
    path.parent.mkdir()
    path.write_bytes(b"library")
    monkeypatch.setattr(sysconfig, "get_config_vars", lambda *_: {"LIBDIR": str(path.parent)})
    return path


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the library on a machine without it."""
    monkeypatch.setattr(tritonserver, "LIBRARY", f"{PACKAGE}-of-nobody.so.1.0")
    return tritonserver.LIBRARY


def lay_out(wheel: Path) -> None:
    """The files of the wheel that matter."""
    server = wheel / "pytriton" / "tritonserver"
    for name, content in {
        "bin/tritonserver": b"\x7fELF",
        f"python_backend_stubs/{PYTHON}/{STUB}": stub_of(LIBRARY, MANGLED),
        f"python_backend_stubs/{OTHER}/{STUB}": stub_of(f"libpython{OTHER}.so.1.0"),
        "backends/python/libtriton_python.so": b"\x7fELF",
        "backends/python/triton_python_backend_utils.py": b"",
        "../../nvidia_pytriton.libs/libssl.so.3": b"\x7fELF",
    }.items():
        (server / name).parent.mkdir(parents=True, exist_ok=True)
        (server / name).write_bytes(content)


@dataclass
class Pip:
    """A pip that needs no network.

    Attributes:
        bring: writes what it has downloaded into a folder.
        asked: the requirements that it was given.
    """

    bring: Callable[[Path], None] = lay_out
    asked: list[str] = field(default_factory=list)

    def __call__(self, arguments: list[str]) -> None:
        given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        self.asked.append(Path(given["--requirement"]).read_text("utf-8"))
        self.bring(Path(given["--target"]))


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    made = Pip()
    monkeypatch.setattr(tritonserver, "_pip", made)
    return made


def test_without_a_tritonserver_none_is_found() -> None:
    assert locate() is None


def test_one_on_path_is_found_with_the_backends_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = installed(tmp_path / "triton")
    monkeypatch.setenv("PATH", str(there.binary.parent))
    assert locate() == there


def test_backends_are_looked_for_behind_a_link_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = installed(tmp_path / "triton")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").symlink_to(there.binary)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = locate()
    assert found is not None
    assert found.backends == there.backends


@fetching
@pytest.mark.usefixtures("library", "pip")
def test_one_on_path_is_preferred_to_the_fetched_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = fetch(print)
    assert locate() == fetched
    there = installed(tmp_path / "triton")
    monkeypatch.setenv("PATH", str(there.binary.parent))
    assert locate() == there


@pytest.mark.skipif(Path("/opt/tritonserver/backends/python").is_dir(), reason="NVIDIA's container")
def test_one_without_a_python_backend_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = installed(tmp_path / "triton")
    (there.backends / "python" / STUB).unlink()
    (there.backends / "python").rmdir()
    monkeypatch.setenv("PATH", str(there.binary.parent))
    with pytest.raises(ServeError, match=f"^{there.binary} has no Python backend: neither {there.backends} nor "):
        locate()


def test_the_version_is_read_beside_it_else_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = installed(tmp_path / "triton")
    monkeypatch.setenv("PATH", str(there.binary.parent))
    versions = []
    for change in (
        lambda: None,
        lambda: monkeypatch.setenv("TRITON_SERVER_VERSION", "2.70.0"),
        lambda: (tmp_path / "triton" / "TRITON_VERSION").write_text("2.71.0\n", "utf-8"),
    ):
        change()
        found = locate()
        assert found is not None
        versions.append(found.version)
    assert versions == ["", "2.70.0", "2.71.0"]


def test_known_flags_are_kept_in_order_behind_the_backends(tmp_path: Path) -> None:
    wanted = ["--grpc-port=8001", "--model-repository=/m=n", "--allow-http=false"]
    there = installed(tmp_path)
    assert there.arguments(wanted) == [str(there.binary), f"--backend-directory={there.backends}", *wanted]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_it_was_built_without_needs_no_flag(tmp_path: Path, service: str) -> None:
    there = installed(tmp_path, lines=telling(*(flag for flag in FLAGS if flag != service)))
    wanted = ["--grpc-port=8001", f"--{service}=false"]
    assert there.arguments(wanted)[2:] == ["--grpc-port=8001"]


def test_a_missing_flag_that_matters_is_named(tmp_path: Path) -> None:
    there = installed(tmp_path, lines=telling("grpc-port"))
    with pytest.raises(ServeError, match=f"^{there.binary} has no --grpc-restricted-protocol: it is too old"):
        there.arguments(["--grpc-port=8001", "--grpc-restricted-protocol=trace:admin-key=1"])


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["echo one >&2", "echo 'libcudart.so.12: cannot open shared object file' >&2", "exit 127"], "libcudart.so.12"),
        (["exit 3"], "exit code 3$"),
        (["echo 'Segmentation fault'"], "exit code 0$"),
    ],
)
def test_one_that_does_not_run_is_refused_with_the_reason(tmp_path: Path, lines: list[str], reason: str) -> None:
    there = installed(tmp_path, lines=lines)
    with pytest.raises(ServeError, match=f"^{there.binary} does not run: {reason}"):
        there.arguments([])


def test_one_for_another_processor_is_refused(tmp_path: Path) -> None:
    there = installed(tmp_path)
    there.binary.write_bytes(b"\x7fELF of something else")
    with pytest.raises(ServeError, match=f"^{there.binary} does not run: .*Exec format error"):
        there.arguments([])


def test_the_stub_meets_this_interpreter_first(tmp_path: Path) -> None:
    environ = installed(tmp_path).environ(tmp_path / "scratch")
    assert environ["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), os.environ["PATH"]]


def test_a_stub_for_another_python_is_refused_with_the_way_out(tmp_path: Path) -> None:
    there = installed(tmp_path, stub_of(f"libpython{OTHER}.so.1.0"))
    with pytest.raises(ServeError, match=f"is for Python {OTHER}, this is {PYTHON}: run cosyserve with python{OTHER}$"):
        there.environ(tmp_path)


def test_every_name_of_the_python_library_leads_to_the_interpreters_own(tmp_path: Path, library: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environ = installed(tmp_path, stub_of(LIBRARY, MANGLED, LIBRARY)).environ(scratch)
    assert {link.name: link.resolve() for link in scratch.iterdir()} == {LIBRARY: library, MANGLED: library}
    assert environ["LD_LIBRARY_PATH"] == str(scratch)


def test_the_callers_libraries_come_last(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/theirs:/more")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    there = installed(tmp_path, stub_of(library.name))
    fetched = TritonServer(there.binary, there.backends, "", "", (tmp_path / "libs",))
    assert fetched.environ(scratch)["LD_LIBRARY_PATH"] == f"{scratch}:{tmp_path / 'libs'}:/theirs:/more"


def test_a_stub_with_python_in_it_needs_nothing(tmp_path: Path, no_library: str) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert "LD_LIBRARY_PATH" not in installed(tmp_path).environ(scratch)
    assert not list(scratch.iterdir())


def test_a_missing_stub_is_named(tmp_path: Path) -> None:
    there = installed(tmp_path, stub=None)
    with pytest.raises(ServeError, match=f"for Python {PYTHON}: {there.stub} is missing$"):
        there.environ(tmp_path)


def test_without_the_python_library_the_way_to_get_it_is_told(tmp_path: Path, no_library: str) -> None:
    there = installed(tmp_path, stub_of(LIBRARY))
    with pytest.raises(ServeError, match=f"^{no_library} is missing: .*`apt-get install {PACKAGE}`$"):
        there.environ(tmp_path)


@fetching
@pytest.mark.usefixtures("library")
def test_what_is_fetched_is_one_wheel_known_by_its_hash(cache: Path, pip: Pip) -> None:
    told: list[str] = []
    found = fetch(told.append)
    assert pip.asked == [f"{WHEEL}=={WHEEL_VERSION} --hash=sha256:{HASHES[platform.machine()]}\n"]
    assert [str(cache) in line for line in told] == [True]
    assert [path.name for path in cache.iterdir()] == ["wheel"]
    assert found.version == FETCHED_VERSION


@fetching
def test_what_was_fetched_can_run(tmp_path: Path, library: Path, pip: Pip) -> None:
    found = fetch(print)
    assert os.access(found.binary, os.X_OK)
    assert os.access(found.stub, os.X_OK)
    assert found.stub.read_bytes() == stub_of(LIBRARY, MANGLED)
    assert {path.name for path in found.stub.parent.iterdir() if path.exists()} == {
        STUB,
        "libtriton_python.so",
        "triton_python_backend_utils.py",
    }
    assert [path.name for folder in found.libraries for path in folder.iterdir()] == ["libssl.so.3"]
    assert found.arguments(["--any=flag"])[2:] == ["--any=flag"]  # without a question
    (tmp_path / "scratch").mkdir()
    found.environ(tmp_path / "scratch")
    assert (tmp_path / "scratch" / MANGLED).resolve() == library


@fetching
@pytest.mark.usefixtures("library")
def test_nothing_is_fetched_twice(pip: Pip) -> None:
    told: list[str] = []
    first = fetch(print)
    assert fetch(told.append) == first
    assert (len(pip.asked), told) == (1, [])


@fetching
@pytest.mark.usefixtures("library")
def test_a_failed_download_is_one_line_and_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(ServeError, match=f"^cannot fetch {WHEEL} {WHEEL_VERSION}: No matching distribution [^\n]*$"):
        fetch(print)
    assert not list(cache.iterdir())
    assert locate() is None


@fetching
@pytest.mark.usefixtures("library")
def test_an_incomplete_wheel_is_refused(cache: Path, pip: Pip) -> None:
    pip.bring = Path.mkdir
    with pytest.raises(ServeError, match=f"{cache}.*No such file"):
        fetch(print)
    assert not list(cache.iterdir())
    pip.bring = lay_out
    assert fetch(print).stub.is_file()


@fetching
@pytest.mark.usefixtures("library")
def test_one_that_another_process_has_fetched_meanwhile_is_taken(cache: Path, pip: Pip) -> None:
    first = fetch(print)
    (cache / "wheel").rename(cache / "another")

    def late(wheel: Path) -> None:
        lay_out(wheel)
        (cache / "another").rename(cache / "wheel")

    pip.bring = late
    assert fetch(print) == first
    assert first.stub.is_file()


@fetching
@pytest.mark.usefixtures("library", "pip")
def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.parent.parent.write_text("a file", "utf-8")
    with pytest.raises(ServeError, match=f"^cannot write to {cache}: Not a directory$"):
        fetch(print)


def test_errors_name_what_this_machine_lacks(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ServeError, match="^no tritonserver on PATH, and .*riscv64"):
        fetch(print)
    assert not pip.asked


@pytest.fixture
def distribution(tmp_path: Path, no_library: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with fakes of Debian's tools that download and unpack the library's package."""
    tools = tmp_path / "tools"
    script(
        tools / "apt-get",
        f'[ "$*" = "-qq download {PACKAGE}" ] || exit 100',
        f"echo package > {PACKAGE}_3_amd64.deb",
    )
    script(
        tools / "dpkg-deb",
        '[ "$1" = -x ] && [ "$(cat "$2")" = package ] || exit 2',
        'mkdir -p "$3/usr/lib/somewhere"',
        f'echo library > "$3/usr/lib/somewhere/{no_library}"',
    )
    monkeypatch.setenv("PATH", f"{tools}:{os.defpath}")
    return tools


@fetching
def test_a_missing_python_library_is_taken_from_the_distribution(
    tmp_path: Path, no_library: str, cache: Path, pip: Pip, distribution: Path
) -> None:
    told: list[str] = []
    found = fetch(told.append)
    assert [PACKAGE in line for line in told] == [False, True]
    assert {path.name for path in cache.iterdir()} == {"wheel", no_library}
    (tmp_path / "scratch").mkdir()
    found.environ(tmp_path / "scratch")
    assert (tmp_path / "scratch" / LIBRARY).read_text("utf-8") == "library\n"
    fetch(told.append)
    assert (len(told), len(pip.asked)) == (2, 1)


@fetching
def test_the_fetched_one_is_not_found_before_it_has_its_library(
    no_library: str, pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServeError, match=f"^{no_library} is missing: .*`apt-get install {PACKAGE}`$"):
        fetch(print)  # no apt-get either
    assert [path.name for path in cache.iterdir()] == ["wheel"]
    assert locate() is None
    (cache / no_library).write_bytes(b"library")
    assert locate() == fetch(print)


@fetching
@pytest.mark.parametrize(
    ("tool", "lines", "reason"),
    [
        ("apt-get", ["echo 'W: old lists' >&2", "echo 'E: Unable to locate package' >&2", "exit 100"], "Unable to loc"),
        ("apt-get", [], "no such package"),
        ("dpkg-deb", ['mkdir "$3"'], ""),
    ],
    ids=["an unknown package", "no package", "a package without it"],
)
@pytest.mark.usefixtures("pip")
def test_a_distribution_without_the_library_is_one_line(
    no_library: str, distribution: Path, cache: Path, tool: str, lines: list[str], reason: str
) -> None:
    script(distribution / tool, *lines)
    with pytest.raises(ServeError, match=f"^{no_library} is missing: [^\n]*`apt-get install {PACKAGE}`[^\n]*{reason}"):
        fetch(print)
    assert [path.name for path in cache.iterdir()] == ["wheel"]
