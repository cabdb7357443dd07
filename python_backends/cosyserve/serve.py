"""Starting tritonserver on the model repository, and stopping it with whoever started it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cosyserve.contracts import TTS
from cosyserve.errors import ServeError
from cosyserve.limits import EXIT_SECONDS, MAX_CONNECTION_SECONDS, MAX_STREAMS, READY_SECONDS, STOP_SECONDS
from cosyserve.weights import Weights

PROFILES = ("cpu", "gpu")

HARDENING = (
    "--model-control-mode=none",
    "--disable-auto-complete-config",
    "--strict-readiness=true",
    "--exit-on-error=true",
    f"--exit-timeout-secs={EXIT_SECONDS}",
    # Each Python model is forked off: while another loads, the fork may inherit a lock that nobody opens, and the start
    # hangs or aborts (twice in about thirty starts on busy cores). One after another takes no longer on few cores.
    "--model-load-thread-count=1",
    f"--grpc-max-connection-age={1000 * MAX_CONNECTION_SECONDS}",
    "--allow-http=false",
    "--allow-vertex-ai=false",
    "--allow-sagemaker=false",
    "--trace-config=level=off",
)

LOCKED = ("shared-memory", "model-repository", "statistics", "trace", "logging")
"""Triton's gRPC services that no caller needs: through them anyone could read another's tensors, have the log written
elsewhere, or learn who speaks how much."""


@dataclass(frozen=True)
class Server:
    """How to start one server.

    Attributes:
        weights: folder of prepared weights.
        profile: ``cpu`` or ``gpu``.
        host: address to bind; loopback unless asked otherwise.
        settings: values for `cosyserve.settings.Settings`, by field name.
        log: file for the log of Triton and its models; None leaves it on standard output.
    """

    weights: Path
    profile: str = "cpu"
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    metrics_port: int = 8002
    settings: dict[str, str] = field(default_factory=dict)
    log: Path | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """A server that is ready; it is stopped on leaving, and dies with this process.

        Raises:
            ServeError: no tritonserver, a port in use, or the server died or was not ready in time.
            WeightsError: the weights folder cannot be used.
        """
        rate = Weights(self.weights).config.sample_rate
        for port in (self.grpc_port, self.metrics_port):
            _check_free(self.host, port)
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cosyserve-")))
            binary, environ, extra = _tritonserver(scratch)
            environ |= self._environ()
            if drain_file := environ.get("COSYSERVE_DRAIN_FILE"):
                # Left by whoever stopped a server here before; a container that starts again keeps its /tmp.
                Path(drain_file).unlink(missing_ok=True)
            out = stack.enter_context(self.log.open("wb")) if self.log else None
            shared_memory = f"{scratch.name}-"
            stack.callback(_remove_shared_memory, shared_memory)
            process = subprocess.Popen(
                [binary, *self._arguments(_repository(scratch, rate)), *_python_backend(shared_memory), *extra],
                env=environ,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
            stack.callback(_stop, process)
            self._wait(process)
            yield process

    def _arguments(self, repository: Path) -> list[str]:
        flavour = ["--model-config-name=cpu"] if self.profile == "cpu" else []
        return [
            f"--model-repository={repository}",
            f"--grpc-address={self.host}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={self.host}",
            f"--metrics-port={self.metrics_port}",
            *HARDENING,
            # What a client's utterance is part of (W3C trace context) reaches the models as a parameter of its request.
            "--grpc-header-forward-pattern=^traceparent$",
            # Nobody knows the key, not even this process a moment later.
            f"--grpc-restricted-protocol={','.join(LOCKED)}:admin-key={secrets.token_hex(32)}",
            *flavour,
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
                return bool(client.is_server_ready(client_timeout=2))
        except InferenceServerException:
            return False


def watch(process: subprocess.Popen[bytes]) -> None:
    """Wait until the server ends, or one of its model processes: Triton stays ready without it, and useless.

    What is under way waits for it in vain, so Triton is not asked to end then, which would wait with it, but killed.

    Raises:
        ServeError: always; it says which of the two happened.
    """
    with contextlib.ExitStack() as stack:
        living = [os.pidfd_open(pid) for pid in (process.pid, *_children(process.pid))]
        for descriptor in living:
            stack.callback(os.close, descriptor)
        ended = select.select(living, [], [])[0]
    if living[0] not in ended and process.poll() is None:
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


def model_repository() -> Path:
    """The model repository: beside the source in a checkout, inside the package when installed."""
    here = Path(__file__).resolve().parent
    for folder in (here / "model_repository", here.parents[1] / "model_repository"):
        if folder.is_dir():
            return folder
    raise ServeError("the model repository is missing from this installation")


def _repository(scratch: Path, rate: int) -> Path:
    """The model repository; for weights of another rate than it promises to clients, a copy that promises theirs."""
    repository, name = model_repository(), f"{TTS.name}/configs/cpu.pbtxt"
    if _RATE.sub(rf"\g<1>{rate}", promised := (repository / name).read_text("utf-8")) == promised:
        return repository
    shutil.copytree(repository, scratch / "models")
    for config in (scratch / "models" / TTS.name).rglob("*.pbtxt"):
        config.write_text(_RATE.sub(rf"\g<1>{rate}", config.read_text("utf-8")), "utf-8")
    return scratch / "models"


_RATE = re.compile(r'(key: "sample_rate"\s+value \{\s+string_value: ")\d+')


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


def _tritonserver(scratch: Path) -> tuple[str, dict[str, str], list[str]]:
    """Binary, environment and extra arguments: the server on PATH, or the one in the nvidia-pytriton wheel."""
    environ = dict(os.environ)
    # The Python stub takes the packages of the first python3 on PATH, and nothing from PYTHONPATH.
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", "")])
    if found := shutil.which("tritonserver"):
        return found, environ, []
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServeError("no tritonserver: put one on PATH, or install it with `pip install 'cosyserve[cpu]'`")
    wheel = Path(spec.origin).parent
    backends = scratch / "backends"
    python = backends / "python"
    shutil.copytree(wheel / "tritonserver/backends/python", python)
    stub = python / "triton_python_backend_stub"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    built = wheel / "tritonserver/python_backend_stubs" / version / stub.name
    if not built.is_file():
        raise ServeError(f"nvidia-pytriton carries no Python stub for Python {version}")
    shutil.copy(built, stub)
    stub.chmod(0o755)
    libraries = [str(wheel.parent / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    environ["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, environ.get("LD_LIBRARY_PATH", "")])
    binary = scratch / "tritonserver"
    shutil.copy(wheel / "tritonserver/bin/tritonserver", binary)
    binary.chmod(0o755)
    return str(binary), environ, [f"--backend-directory={backends}"]


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


def _remove_shared_memory(prefix: str) -> None:
    for path in Path("/dev/shm").glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and every stub of its session."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
