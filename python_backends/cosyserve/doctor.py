"""What this machine can do for CosyServe, and what to type next: ``cosyserve doctor``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cosyserve import __version__
from cosyserve.errors import CosyServeError
from cosyserve.supported import machine_problem, python_problem
from cosyserve.tritonserver import FETCHED_VERSION, WHEEL_MEGABYTES, locate

SHARED_MEMORY_MIB = 256
"""Room in /dev/shm that a server with 16 streams may take; Docker gives 64 unless asked."""

MEMORY_GIB = 4
"""Memory that the demo voice serves in with room to spare; CosyVoice2-0.5B in float32 takes some 6."""

PORTS = {8001: "gRPC", 8002: "metrics", 8080: "gateway"}

PACKAGES = ("numpy", "onnxruntime", "tritonclient", "grpcio", "tokenizers", "wetext", "soxr", "soundfile")
"""What a server cannot start or speak without."""

OPTIONAL = {
    "torch": "prepare bundles, or serve on a GPU",
    "tensorrt": "TensorRT plans",
    "pocketsphinx": "check the speech of the demo",
    "av": "the gateway's formats",
}
"""Packages of further roles, and what they are for."""


class State(Enum):
    """How a finding bears on serving."""

    OK = "ok"
    NOTE = "note"  # something is not there, and not needed to serve
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One fact about this machine.

    Attributes:
        text: one line; of a problem, with what to do about it.
    """

    name: str
    state: State
    text: str

    def __str__(self) -> str:
        return f"{self.state.value:8}{self.name:14}{self.text}"


def tell() -> bool:
    """Print all findings and what to type next; False when one is a problem."""
    found = []
    for finding in findings():
        print(finding, flush=True)
        found.append(finding)
    print(f"next:   {next_step(found)}")
    return not any(finding.state is State.PROBLEM for finding in found)


def findings() -> Iterator[Finding]:
    """All there is to tell; never raises."""
    for name, look in _LOOKS.items():
        try:
            yield Finding(name, *look())
        except Exception as error:  # a bug report needs the other lines all the more
            yield Finding(name, State.PROBLEM, f"unknown: {type(error).__name__}: {error}")


def next_step(found: list[Finding]) -> str:
    """What to type next."""
    for finding in found:
        if finding.state is State.PROBLEM:
            return f"mend {finding.name}: {finding.text}"
    profile = " --profile gpu" if any(f.name == "GPU" and f.state is State.OK for f in found) else ""
    return f"cosyserve serve --weights DIR{profile}  (or `make demo` in a checkout, which brings a voice)"


def _python() -> tuple[State, str]:
    if problem := python_problem():
        return State.PROBLEM, problem
    return State.OK, f"{platform.python_version()}, {sys.executable}"


def _system() -> tuple[State, str]:
    text = f"{platform.platform()}, {' '.join(platform.libc_ver())}"
    return (State.OK if sys.platform.startswith("linux") else State.PROBLEM), text


def _triton() -> tuple[State, str]:
    try:
        found = locate()
    except CosyServeError as error:
        return State.PROBLEM, str(error)
    if found is None:
        if problem := machine_problem():
            return State.PROBLEM, problem
        return State.NOTE, f"none yet; `cosyserve serve` fetches {FETCHED_VERSION} ({WHEEL_MEGABYTES} MB)"
    try:
        found.check()
    except CosyServeError as error:
        return State.PROBLEM, str(error)
    return State.OK, f"{found.version or 'of unknown version'}, {found.origin}, {found.binary}"


def _cores() -> tuple[State, str]:
    cores = len(os.sched_getaffinity(0))
    info = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").is_file() else ""
    lines = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    flags = [f for f in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if f in facts.get("flags", "").split()]
    quota = _cgroup("cpu.max").split()
    limit = f", limited to {int(quota[0]) / int(quota[1]):g}" if quota and quota[0] != "max" else ""
    return State.OK, f"{cores}{limit}, {facts.get('model name', platform.machine())}, {' '.join(flags) or 'no AVX2'}"


def _memory() -> tuple[State, str]:
    lines = (line.split() for line in Path("/proc/meminfo").read_text("utf-8").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) / 2**20 for words in lines}
    available, limit = sizes["MemAvailable"], _cgroup("memory.max")
    text = f"{available:.1f} of {sizes['MemTotal']:.1f} GiB available"
    if limit.isdecimal():
        available = min(available, int(limit) / 2**30)
        text += f", limited to {int(limit) / 2**30:.1f} GiB"
    return (State.OK if available >= MEMORY_GIB else State.NOTE), text


def _shared_memory() -> tuple[State, str]:
    usage = shutil.disk_usage("/dev/shm")
    text = f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free"
    if usage.free < SHARED_MEMORY_MIB * 2**20:
        return State.PROBLEM, f"{text}, {SHARED_MEMORY_MIB} are needed: in Docker, `--shm-size=1g`"
    return State.OK, text


def _gpu() -> tuple[State, str]:
    if shutil.which("nvidia-smi") is None:
        return State.NOTE, "none (no nvidia-smi)"
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode or not lines or "," not in lines[0]:
        return State.NOTE, f"none: nvidia-smi says {lines[0] if lines else f'nothing, exit code {done.returncode}'}"
    return State.OK, "; ".join(lines)


def _torch() -> tuple[State, str]:
    """What the runtimes of GPUs find, where there is a GPU."""
    state, _ = _gpu()
    if state is not State.OK:
        return State.NOTE, "no GPU to serve on"
    if importlib.util.find_spec("torch") is None:
        return State.PROBLEM, "no torch, and profile gpu needs it: `pip install 'cosyserve[gpu]'`"
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        return State.PROBLEM, f"torch {torch.__version__} (CUDA {built}) sees no GPU: is the driver new enough for it?"
    free, total = torch.cuda.mem_get_info()
    mps = "MPS" if os.environ.get("CUDA_MPS_PIPE_DIRECTORY") else "no MPS: the models take turns"
    plans = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)]
    memory = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    text = f"torch {torch.__version__} on {torch.cuda.get_device_name()}, {memory}"
    return State.OK, f"{text}; {mps}; plans by {' or '.join(plans) or 'nothing'}"


def _packages() -> tuple[State, str]:
    missing = [name for name in PACKAGES if not _version(name)]
    if missing:
        return State.PROBLEM, f"{', '.join(missing)} missing: `pip install 'cosyserve[cpu]'`"
    return State.OK, ", ".join(f"{name} {_version(name)}" for name in PACKAGES)


def _providers() -> tuple[State, str]:
    if importlib.util.find_spec("onnxruntime") is None:
        return State.NOTE, "onnxruntime is missing"
    import onnxruntime

    return State.OK, ", ".join(onnxruntime.get_available_providers())


def _optional() -> tuple[State, str]:
    found = [f"{name} {_version(name)}" for name in OPTIONAL if _version(name)]
    missing = [f"no {name} ({use})" for name, use in OPTIONAL.items() if not _version(name)]
    return (State.NOTE if missing else State.OK), ", ".join([*found, *missing])


def _ports() -> tuple[State, str]:
    taken = []
    for port, use in PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(f"{port} ({use})")
    if taken:
        return State.NOTE, f"in use: {', '.join(taken)}; choose others with --grpc-port, --metrics-port, --port"
    return State.OK, f"{', '.join(map(str, PORTS))} are free"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _cgroup(name: str) -> str:
    """A limit of the container that this runs in (cgroup v2), or an empty string."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text("utf-8").strip()
    except OSError:
        return ""


_LOOKS = {
    "CosyServe": lambda: (State.OK, __version__),
    "Python": _python,
    "system": _system,
    "Triton": _triton,
    "cores": _cores,
    "memory": _memory,
    "/dev/shm": _shared_memory,
    "GPU": _gpu,
    "torch": _torch,
    "packages": _packages,
    "onnxruntime": _providers,
    "optional": _optional,
    "ports": _ports,
}
