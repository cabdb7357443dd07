"""The tritonserver that runs here: one on PATH, of any version, or the one that is fetched from a Python wheel.

The wheel is nvidia-pytriton, of which only the server's files are used: its own dependencies (numpy < 2 and more) bind
nobody here. They lie in a cache of the user, checked against `HASHES`, and several environments share them.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cosyserve.errors import ServeError
from cosyserve.supported import PYTHONS, machine_problem

WHEEL, WHEEL_VERSION, WHEEL_MEGABYTES = "nvidia-pytriton", "0.7.0", 55
HASHES = {
    "x86_64": "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    "aarch64": "f99e07ee56fe065337453956afba17d2673e02ec6a632c3de26ce6e7b32a0898",
}
"""SHA-256 of the wheel for each processor."""

FETCHED_VERSION = "2.51.0"
"""Of the tritonserver in the wheel."""

STUB = "triton_python_backend_stub"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PACKAGE = f"libpython{PYTHON}"
LIBRARY = f"{PACKAGE}.so.1.0"
_INSTALL_LIBRARY = f"install it, on Debian and Ubuntu with `apt-get install {PACKAGE}`"

SERVICES = ("allow-http", "allow-vertex-ai", "allow-sagemaker", "trace-config")
"""Flags that switch a service off: a build without the service lacks the flag, and needs none."""


@dataclass(frozen=True)
class TritonServer:
    """One installation.

    Attributes:
        binary: the executable.
        backends: folder of its backends, of which ``python`` is used.
        version: such as ``2.51.0``; empty where its files do not say.
        origin: where it was found, for messages.
        libraries: folders of shared libraries that it needs besides the loader's own.
    """

    binary: Path
    backends: Path
    version: str
    origin: str
    libraries: tuple[Path, ...] = field(default=())

    @property
    def stub(self) -> Path:
        """The executable that each Python model runs in."""
        return self.backends / "python" / STUB

    def check(self) -> None:
        """Whether it can run here.

        Raises:
            ServeError: the binary does not run, the stub is missing or for another Python, or this one's library is
                missing.
        """
        self._python_libraries()
        if not self.libraries:
            self._flags()

    def environ(self, scratch: Path) -> dict[str, str]:
        """The environment to start it in.

        Args:
            scratch: an empty folder that lives as long as the server.

        Raises:
            ServeError: the stub is for another Python, or the library of this one is missing.
        """
        environ = dict(os.environ)
        # The stub takes the packages of the first python3 on PATH, and nothing from PYTHONPATH.
        environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", "")])
        folders = [*map(str, self.libraries), *filter(None, [environ.get("LD_LIBRARY_PATH")])]
        if names := self._python_libraries():
            for name, library in names.items():
                (scratch / name).symlink_to(library)
            # A folder of its own: beside the interpreter's library may lie others that Triton must not take.
            folders.insert(0, str(scratch))
        if folders:
            environ["LD_LIBRARY_PATH"] = os.pathsep.join(folders)
        return environ

    def arguments(self, wanted: Iterable[str]) -> list[str]:
        """The command: the binary, its folder of backends, and the flags in `wanted` that it has.

        Raises:
            ServeError: it lacks a flag that matters.
        """
        command = [str(self.binary), f"--backend-directory={self.backends}"]
        if self.libraries:  # the fetched one
            return [*command, *wanted]
        known = self._flags()
        for argument in wanted:
            flag = argument.partition("=")[0].removeprefix("--")
            if flag in known:
                command.append(argument)
            elif flag not in SERVICES:
                raise ServeError(f"{self.binary} has no --{flag}: it is too old, or lacks a service that is needed")
        return command

    def _python_libraries(self) -> dict[str, Path]:
        """The names under which the stub loads Python's shared library, each with the library of this interpreter."""
        names = _library_names(self.stub)
        library = _python_library() if names else None
        if library is None and names:
            raise ServeError(f"{LIBRARY} is missing: {_INSTALL_LIBRARY}")
        return {name: library for name in names if library is not None}

    def _flags(self) -> set[str]:
        try:
            output = subprocess.run([self.binary, "--help"], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServeError(f"{self.binary} does not run: {error}") from None
        found = set(re.findall(r"^\s*--([\w-]+)", output.stdout + output.stderr, re.M))
        if not found:
            reason = (output.stderr.strip() or f"exit code {output.returncode}").splitlines()[-1]
            raise ServeError(f"{self.binary} does not run: {reason}")
        return found


def locate() -> TritonServer | None:
    """The tritonserver on PATH, else the one that was fetched; None without either.

    Raises:
        ServeError: the one on PATH has no Python backend.
    """
    if found := shutil.which("tritonserver"):
        return _on_path(Path(found))
    return _fetched() if (_cache() / "wheel").is_dir() and _python_library() is not None else None


def fetch(tell: Callable[[str], None]) -> TritonServer:
    """Fetch the wheel's tritonserver, unless it is there already.

    Args:
        tell: takes one line for each step that may take long.

    Raises:
        ServeError: none is built for this machine, or it cannot be downloaded.
    """
    if problem := machine_problem():
        raise ServeError(f"no tritonserver on PATH, and {problem}")
    cache = _cache()
    if not (cache / "wheel").is_dir():
        tell(f"fetching Triton {FETCHED_VERSION} ({WHEEL} {WHEEL_VERSION}, {WHEEL_MEGABYTES} MB) into {cache}")
        _install(cache)
    if _python_library() is None:
        tell(f"fetching {PACKAGE}, which the distribution's Python comes without, into {cache}")
        _install_python_library(cache)
    return _fetched()


def _cache() -> Path:
    """Where what is fetched lies; named by version, so that another one does not meet it."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "cosyserve" / f"{WHEEL}-{WHEEL_VERSION}"


def _install(cache: Path) -> None:
    """Take the wheel apart, with the stub of each Python in a folder of backends of its own."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            wheel = Path(scratch) / "wheel"
            requirement = Path(scratch) / "requirements.txt"
            requirement.write_text(f"{WHEEL}=={WHEEL_VERSION} --hash=sha256:{HASHES[platform.machine()]}\n", "utf-8")
            _pip(["--require-hashes", "--no-deps", "--no-compile", f"--target={wheel}", f"--requirement={requirement}"])
            server = wheel / "pytriton" / "tritonserver"
            (server / "bin" / "tritonserver").chmod(0o755)
            for stubs in (server / "python_backend_stubs").iterdir():
                backend = wheel / f"backends-{stubs.name}" / "python"
                backend.mkdir(parents=True)
                shutil.copy(stubs / STUB, backend / STUB)
                (backend / STUB).chmod(0o755)
                for file in (server / "backends" / "python").iterdir():
                    (backend / file.name).symlink_to(os.path.relpath(file, backend))
            wheel.rename(cache / "wheel")
    except OSError as error:
        if not (cache / "wheel").is_dir():  # else another process has fetched it meanwhile
            raise ServeError(f"cannot write to {cache}: {error.strerror}") from None


def _pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-user", "--only-binary=:all:"]
    done = subprocess.run([*command, *arguments], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        reason = reasons[-1].removeprefix("ERROR: ") if reasons else f"pip ended with code {done.returncode}"
        raise ServeError(f"cannot fetch {WHEEL} {WHEEL_VERSION}: {reason}")


def _fetched() -> TritonServer:
    wheel = _cache() / "wheel"
    server = wheel / "pytriton" / "tritonserver"
    return TritonServer(
        binary=server / "bin" / "tritonserver",
        backends=wheel / f"backends-{PYTHON}",
        version=FETCHED_VERSION,
        origin=f"{WHEEL} {WHEEL_VERSION}",
        libraries=(wheel / "nvidia_pytriton.libs",),
    )


def _on_path(binary: Path) -> TritonServer:
    root = binary.resolve().parents[1]
    backends = next(
        (f for f in (root / "backends", Path("/opt/tritonserver/backends")) if (f / "python").is_dir()), None
    )
    if backends is None:
        raise ServeError(f"{binary} has no Python backend: neither {root}/backends nor /opt/tritonserver has one")
    output = root / "TRITON_VERSION"
    version = output.read_text("utf-8").strip() if output.is_file() else os.environ.get("TRITON_SERVER_VERSION", "")
    return TritonServer(binary, backends, version, "PATH")


def _library_names(stub: Path) -> list[str]:
    """The file names under which a stub may ask for the Python library; none where it is part of the stub.

    Raises:
        ServeError: the stub is missing, or for another Python.
    """
    try:
        found = re.findall(rb"libpython(\d)(-\w+)?\.(\d+)([\w.]*)", stub.read_bytes())
    except OSError:
        raise ServeError(f"there is no Python stub of Triton for Python {PYTHON}: {stub} is missing") from None
    versions = {f"{major.decode()}.{minor.decode()}" for major, _, minor, _ in found}
    for version in versions - {PYTHON}:
        first, last = PYTHONS
        usable = first <= tuple(map(int, version.split("."))) <= last
        advice = f"run cosyserve with python{version}" if usable else f"it takes one for Python {PYTHON}"
        raise ServeError(f"{stub} is for Python {version}, this is {PYTHON}: {advice}")
    # A wheel's tools rename libraries, and leave the old name in the file.
    return sorted({f"libpython{a.decode()}{b.decode()}.{c.decode()}{d.decode()}" for a, b, c, d in found})


def _python_library() -> Path | None:
    """The shared library of the interpreter that runs this: beside it, the system's, or the one that was fetched."""
    config = sysconfig.get_config_vars()
    multiarch = config.get("MULTIARCH") or ""
    folders = [config.get("LIBDIR") or "", f"{sys.base_prefix}/lib", "/usr/lib", "/usr/lib64", "/usr/local/lib"]
    folders += [f"{folder}/{multiarch}" for folder in folders] + [str(_cache())]
    return next((path for folder in folders if (path := Path(folder) / LIBRARY).is_file()), None)


def _install_python_library(cache: Path) -> None:
    """Debian and Ubuntu link their interpreter statically and have its library in a package, which needs no root here.

    Raises:
        ServeError: there is no such package, or no way to get it.
    """
    problem = f"{LIBRARY} is missing: {_INSTALL_LIBRARY}"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ServeError(problem)
    reason = "no such package"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for package in (PACKAGE, f"{PACKAGE}t64"):  # Ubuntu's name since 24.04
            done = subprocess.run(["apt-get", "-qq", "download", package], cwd=folder, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip() or reason).splitlines()[-1].removeprefix("E: ")
        for deb in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, folder / "files"], capture_output=True)
        for library in (folder / "files").rglob(LIBRARY):
            try:
                cache.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, cache / f"{LIBRARY}.{os.getpid()}")
                (cache / f"{LIBRARY}.{os.getpid()}").rename(cache / LIBRARY)
            except OSError as error:
                raise ServeError(f"cannot write to {cache}: {error.strerror}") from None
            return
    raise ServeError(f"{problem} ({reason})")
