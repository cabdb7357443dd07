"""The launcher: starts tritonserver on a model repository, and stops it when its own process ends."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cosyserve import repository
from cosyserve.contracts import Scheduling
from cosyserve.errors import ServeError
from cosyserve.limits import (
    EXIT_SECONDS,
    MAX_CONNECTION_SECONDS,
    MAX_STREAMS,
    READY_SECONDS,
    STOP_NOTICE_SECONDS,
    STOP_SECONDS,
)
from cosyserve.pipeline.admission import STOP
from cosyserve.triton_defects import FORWARDED_HEADERS, LOAD_ARGUMENT
from cosyserve.tritonserver import fetch, locate
from cosyserve.weights import Weights

HARDENING = (
    "--model-control-mode=none",
    "--disable-auto-complete-config",
    "--strict-readiness=true",
    "--exit-on-error=true",
    f"--exit-timeout-secs={EXIT_SECONDS}",
    LOAD_ARGUMENT,
    f"--grpc-max-connection-age={1000 * MAX_CONNECTION_SECONDS}",
    "--allow-http=false",
    "--allow-vertex-ai=false",
    "--allow-sagemaker=false",
    "--trace-config=level=off",
)

LOCKED = ("shared-memory", "model-repository", "statistics", "trace", "logging")
"""Triton's gRPC services that no caller needs: through them anyone could read another's tensors, have the log written
elsewhere, or learn how much others speak."""

UNLOCKABLE = ("statistics",)
"""Of these, what an operator may open: perf_analyzer and other tools need it. It shows how much is spoken."""


@dataclass(frozen=True)
class Server:
    """How to start one server.

    Attributes:
        weights: folder of prepared weights.
        profile: one of `repository.PROFILES`.
        host: address to bind; loopback unless asked otherwise.
        settings: values for `cosyserve.settings.Settings`, by field name.
        log: file for the log of Triton and its models; None leaves it on standard output.
        unlock: those of `UNLOCKABLE` that callers may use.
    """

    weights: Path
    profile: str = "cpu"
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    metrics_port: int = 8002
    settings: dict[str, str] = field(default_factory=dict)
    log: Path | None = None
    unlock: tuple[str, ...] = ()

    @property
    def processes(self) -> int:
        """Model processes that the server has."""
        models = repository.served(Weights(self.weights).config)
        return sum(model.scheduling is not Scheduling.ENSEMBLE for model in models)

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """A server that is ready; it is stopped on leaving, and dies with this process.

        Raises:
            ServeError: no tritonserver, a port in use, or the server died or was not ready in time.
            WeightsError: the weights folder cannot be used.
        """
        config = Weights(self.weights).config
        for port in (self.grpc_port, self.metrics_port):
            _check_free(self.host, port)
        triton = locate() or fetch(_tell)
        _sweep()
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=SCRATCH)))
            lock = stack.enter_context((scratch / LOCK).open("wb"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            shared_memory = f"{scratch.name}-"
            stack.callback(_remove_shared_memory, shared_memory)
            repository.write(scratch / "models", self.profile, config)
            arguments = [*self._arguments(scratch / "models"), *_python_backend(shared_memory)]
            (scratch / "lib").mkdir()
            environ = {"COSYSERVE_DRAIN_FILE": str(scratch / "drain"), **triton.environ(scratch / "lib")}
            environ |= self._environ()
            drain_file = Path(environ["COSYSERVE_DRAIN_FILE"])
            # Left from a server that was stopped before; a container that starts again keeps its /tmp.
            drain_file.unlink(missing_ok=True)
            out = stack.enter_context(self.log.open("wb")) if self.log else None
            process = subprocess.Popen(
                triton.arguments(arguments),
                env=environ,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_die_with_parent,
                pass_fds=[lock.fileno()],  # held as long as any process of the server lives
            )
            stack.callback(_stop, process, drain_file)
            self._wait(process)
            yield process

    def _arguments(self, models: Path) -> list[str]:
        return [
            f"--model-repository={models}",
            f"--grpc-address={self.host}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={self.host}",
            f"--metrics-port={self.metrics_port}",
            *HARDENING,
            f"--grpc-header-forward-pattern=^({'|'.join(FORWARDED_HEADERS)})$",
            # Nobody knows the key, not even this process a moment later.
            f"--grpc-restricted-protocol={','.join(each for each in LOCKED if each not in self.unlock)}"
            f":admin-key={secrets.token_hex(32)}",
        ]

    def _environ(self) -> dict[str, str]:
        values = {"weights": str(self.weights.resolve()), **self.settings}
        return {f"COSYSERVE_{name.upper()}": value for name, value in values.items()}

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServeError(f"tritonserver ended with code {process.returncode}: {self._reason()}")
            if self._ready():
                return
            time.sleep(0.1)
        raise ServeError(f"tritonserver was not ready in {READY_SECONDS:.0f} s: {self._reason()}")

    def _reason(self) -> str:
        """The line of the log that says why: the first error, else the last line."""
        if self.log is None:
            return "see its log"
        lines = [line.strip() for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        for marker in ("WeightsError:", "Address already in use", "failed to start", "error:", "Error:"):
            for line in lines:
                if marker in line:
                    # Triton writes a traceback into the line, its line ends spelled out.
                    return line[line.find(marker) if marker.endswith("Error:") else 0 :].split("\\n")[0]
        return lines[-1] if lines else "no output"

    def _ready(self) -> bool:
        import tritonclient.grpc as grpc_client
        from tritonclient.utils import InferenceServerException

        try:
            with grpc_client.InferenceServerClient(f"{self.host}:{self.grpc_port}") as client:
                ready = bool(client.is_server_ready(client_timeout=2))
        except InferenceServerException:
            return False
        # Triton opens the port of its metrics a moment later.
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.metrics_port), timeout=2):
            return ready
        return False


def watch(process: subprocess.Popen[bytes], processes: int) -> None:
    """Wait until the server ends, or one of its model processes: Triton stays ready without it, and useless.

    What is under way waits for it in vain, so Triton is not asked to end then, which would wait with it, but killed.

    Args:
        processes: see `Server.processes`.

    Raises:
        ServeError: always; it says which of the two happened.
    """
    with contextlib.ExitStack() as stack:
        living = []
        for pid in (process.pid, *_children(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                living.append(os.pidfd_open(pid))
                stack.callback(os.close, living[-1])
        # One that has ended before it was looked for is missed.
        if len(living) > processes:
            select.select(living, [], [])
    if process.poll() is None:
        process.kill()
        raise ServeError("a model process of tritonserver ended; its log says why")
    raise ServeError(f"tritonserver ended with code {process.wait()}")


def _children(pid: int) -> list[int]:
    """Living child processes (Linux)."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(status.parent.name))
    return found


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check_free(host: str, port: int) -> None:
    # Another server on the port would answer in the name of ours.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServeError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _die_with_parent() -> None:
    # Linux: ask for SIGTERM when the parent dies, however it dies.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _python_backend(shared_memory: str) -> list[str]:
    """Options of Triton's Python backend.

    A BLS call and a response each hold one thread of the parent for a moment; the default of 32 threads is fewer than
    the streams. Shared memory gets a name of our own, so that what a hard stop leaves behind can be removed.
    """
    options = {"thread-pool-size": 4 * MAX_STREAMS, "shm-region-prefix-name": shared_memory}
    return [f"--backend-config=python,{name}={value}" for name, value in options.items()]


SCRATCH, LOCK = "cosyserve-", "lock"
"""Prefix of a server's folder for temporary files, and the file in it that is locked while the server lives."""


def _sweep() -> None:
    """Remove what servers have left that were killed together with their launcher."""
    for lock in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*/{LOCK}"):
        with contextlib.suppress(OSError), lock.open("wb") as file:  # of a living server, or of another user
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_shared_memory(f"{lock.parent.name}-")
            shutil.rmtree(lock.parent)


def _remove_shared_memory(prefix: str) -> None:
    for path in Path("/dev/shm").glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stop(process: subprocess.Popen[bytes], drain_file: Path) -> None:
    """Stop the server and every stub of its session, after its callers got the error."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            drain_file.write_text(STOP, "utf-8")
            time.sleep(STOP_NOTICE_SECONDS)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
