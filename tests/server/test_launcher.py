"""``cosyserve`` as a process: start, failures to start, exit, and kills."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import grpc
import psutil
import pytest
from live import PATIENCE, Live, alive, free_port, wait_until
from measure import model_name
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cosyserve.triton_defects import LOAD_ARGUMENT
from cosyserve_client import Client, Unavailable

COSYSERVE = str(Path(sys.executable).parent / "cosyserve")
NOTICE = "random weights: "


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COSYSERVE, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)


def serve_arguments(weights: Path) -> list[str]:
    return ["serve", "--weights", str(weights), "--grpc-port", str(free_port()), "--metrics-port", str(free_port())]


def assert_one_clear_line(ended: subprocess.CompletedProcess[str], pattern: str) -> None:
    lines = [line for line in ended.stderr.splitlines() if not line.startswith(NOTICE)]
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert len(lines) == 1, ended.stderr
    assert re.fullmatch(f"error: .*{pattern}.*", lines[0])
    assert "Traceback" not in lines[0]
    assert ".py" not in lines[0]


def test_without_weights_it_says_what_to_do(tmp_path: Path) -> None:
    assert_one_clear_line(run(*serve_arguments(tmp_path)), "manifest.json.*cosyserve-build prepare")


DAMAGED = ("llm.onnx.data", "flow_encoder.onnx", "hift_decoder.onnx", "tokenizer.json")


@pytest.fixture(scope="module")
def ended(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """How servers end whose weights have a damaged file; two at a time, because each waits seconds for its Triton."""

    def serve(name: str) -> subprocess.CompletedProcess[str]:
        damaged = shutil.copytree(demo_weights, tmp_path_factory.mktemp("damaged") / "weights")
        content = bytearray((damaged / name).read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / name).write_bytes(content)
        return run(*serve_arguments(damaged))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(DAMAGED, pool.map(serve, DAMAGED), strict=True))


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(ended: dict[str, subprocess.CompletedProcess[str]], name: str) -> None:
    assert_one_clear_line(ended[name], f"{re.escape(name)} differs from its checksum")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["serve", "--weights", "nowhere/weights"], "nowhere/weights does not exist"),
        (["serve", "--weights", sys.executable], "is not a folder"),
        (["demo", "--weights", "nowhere/weights"], "nowhere/weights does not exist"),
        (["unpack", "nowhere.tar.xz", "out"], "nowhere.tar.xz does not exist"),
    ],
)
def test_what_does_not_exist_is_told_so(arguments: list[str], pattern: str) -> None:
    assert_one_clear_line(run(*arguments), pattern)


def test_the_version_is_told() -> None:
    assert run("--version").stdout == f"cosyserve {version('cosyserve')}\n"


def test_a_damaged_manifest_is_named(demo_weights: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(demo_weights, tmp_path / "damaged")
    (damaged / "manifest.json").write_text("{")
    assert_one_clear_line(run(*serve_arguments(damaged)), "manifest.json is not JSON")


@pytest.mark.parametrize("option", ["--grpc-port", "--metrics-port"])
def test_a_port_in_use_is_named(demo_weights: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_one_clear_line(run(*serve_arguments(demo_weights), option, port), port)


def test_an_unknown_profile_is_a_usage_error(demo_weights: Path) -> None:
    ended = run(*serve_arguments(demo_weights), "--profile", "tpu")
    assert ended.returncode == 2
    assert "--profile" in ended.stderr
    assert "Traceback" not in ended.stderr


Served = tuple[subprocess.Popen[str], list[psutil.Process]]
"""``cosyserve serve`` and all the processes below it."""


@contextmanager
def serving(weights: Path, *options: str) -> Iterator[Served]:
    """A server, once it is ready; killed at the end: Triton's exit takes seconds, and the next start cleans up."""
    process = subprocess.Popen(
        [COSYSERVE, *serve_arguments(weights), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    below: list[psutil.Process] = []
    try:
        assert process.stdout.readline().startswith("ready: ")
        below = psutil.Process(process.pid).children(recursive=True)
        yield process, below
    finally:
        for each in (process, *below):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.communicate()
        psutil.wait_procs(below, timeout=PATIENCE)


def grpc_port(process: subprocess.Popen[str]) -> str:
    """The port among the arguments of ``cosyserve serve``."""
    port: str = process.args[process.args.index("--grpc-port") + 1]  # type: ignore[union-attr, index]
    return port


def shared_memory(processes: list[psutil.Process]) -> set[Path]:
    """The files in shared memory that the processes have mapped."""
    maps = [line for process in processes for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()]
    return {Path(found[1]) for line in maps if (found := re.search(r"(/dev/shm/\S+)", line))}


LOCKED = {
    "ModelStatistics": service_pb2.ModelStatisticsRequest(),
    "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
    "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="tts"),
    "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="tts"),
    "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
    "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(name="a", key="/b", byte_size=8),
    "CudaSharedMemoryStatus": service_pb2.CudaSharedMemoryStatusRequest(),
    "TraceSetting": service_pb2.TraceSettingRequest(),
    "LogSettings": service_pb2.LogSettingsRequest(),
}


@pytest.mark.parametrize("method", LOCKED)
@pytest.mark.parametrize("key", [(), (("triton-grpc-protocol-admin-key", ""),)], ids=["no key", "empty key"])
def test_services_that_no_caller_needs_are_locked(server: Live, method: str, key: tuple[tuple[str, str], ...]) -> None:
    with grpc.insecure_channel(server.url) as channel:
        call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
        with pytest.raises(grpc.RpcError, match="restricted"):
            call(LOCKED[method], metadata=key, timeout=PATIENCE)


def test_sigterm_ends_everything_and_leaves_nothing(demo_weights: Path) -> None:
    with serving(demo_weights) as (process, below):
        regions = shared_memory(below)
        assert len(below) > 5
        assert len(regions) >= 5
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in errors
        assert "error" not in errors
        assert alive(below) == []
        assert not {region for region in regions if region.exists()}


def test_callers_are_told_at_once_when_the_server_stops(demo_weights: Path) -> None:
    """Triton alone would send another error, after its own exit timeout."""
    with serving(demo_weights) as (process, _):
        with Client(f"127.0.0.1:{grpc_port(process)}") as client, client.stream("One. " * 200, seed=1) as stream:
            next(stream)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(Unavailable, match="stops"):
                list(stream)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + signal.SIGINT


def test_what_a_killed_server_left_is_removed_by_the_next(demo_weights: Path) -> None:
    with serving(demo_weights) as (_, below):
        regions = shared_memory(below)
        os.kill(below[0].ppid(), signal.SIGKILL)
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(below, timeout=PATIENCE)
        assert all(region.exists() for region in regions)
    with serving(demo_weights) as (_, others):
        assert not any(region.exists() for region in regions)
        assert shared_memory(others)


def test_nothing_else_can_be_unlocked(demo_weights: Path) -> None:
    ended = run(*serve_arguments(demo_weights), "--unlock", "model-repository")
    assert ended.returncode == 2
    assert "--unlock" in ended.stderr


def test_killed_without_warning_it_takes_triton_along(demo_weights: Path) -> None:
    with serving(demo_weights) as (process, below):
        process.kill()
        _, alive = psutil.wait_procs(below, timeout=PATIENCE)
        assert not alive


def test_when_triton_dies_it_says_so_and_ends(demo_weights: Path) -> None:
    with serving(demo_weights) as (process, below):
        triton = next(child for child in below if child.ppid() == process.pid)
        triton.kill()
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert errors.splitlines()[-1].startswith("error: tritonserver ended")
        wait_until(lambda: not alive(below), lambda: "stubs live on")


def test_say_writes_a_file(server: Live, tmp_path: Path) -> None:
    output = tmp_path / "out.wav"
    ended = run("say", "Hello there.", "--seed", "1", "--url", server.url, "-o", str(output))
    assert ended.returncode == 0
    assert re.search(r"first audio \d+ ms, real-time factor \d", ended.stdout)
    with wave.open(str(output)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        assert file.getnframes() > 12_000


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["Hello.", "--voice", "nobody"], "NOT_FOUND no voice named 'nobody'"),
        (["..."], "INVALID_ARGUMENT text: "),
        (["Hello.", "--speed", "9"], "INVALID_ARGUMENT speed: "),
        (["Hello.", "--prompt-text", "alone"], "INVALID_ARGUMENT prompt_text: "),
        (["Hello.", "--prompt-wav", "missing.wav"], "missing.wav"),
    ],
)
def test_say_fails_with_one_line_and_no_file(server: Live, tmp_path: Path, arguments: list[str], pattern: str) -> None:
    output = tmp_path / "out.wav"
    assert_one_clear_line(run("say", *arguments, "--url", server.url, "-o", str(output)), pattern)
    assert not output.exists()


def test_say_without_a_server_fails_with_one_line(tmp_path: Path) -> None:
    ended = run("say", "Hello.", "--url", f"127.0.0.1:{free_port()}", "-o", str(tmp_path / "out.wav"))
    assert_one_clear_line(ended, "cannot reach a server")


@pytest.fixture(scope="module")
def unlocked(demo_weights: Path) -> Iterator[Served]:
    """A server of the tests that change nothing, with statistics for all."""
    with serving(demo_weights, "--unlock", "statistics") as served:
        yield served


def test_models_load_one_after_another(unlocked: Served) -> None:
    _, below = unlocked
    triton = next(process for process in below if model_name(process) == "tritonserver")
    assert LOAD_ARGUMENT in triton.cmdline()


def test_a_living_server_keeps_what_it_has_when_another_starts(demo_weights: Path, unlocked: Served) -> None:
    _, below = unlocked
    with serving(demo_weights):
        regions = shared_memory(below)
        assert regions
        assert all(region.exists() for region in regions)


def test_statistics_are_unlocked_when_asked(unlocked: Served) -> None:
    process, _ = unlocked
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port(process)}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        told = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="tts"), timeout=PATIENCE)
        assert [model.name for model in told.model_stats] == ["tts"]
        with pytest.raises(grpc.RpcError, match="restricted"):
            stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=PATIENCE)


def test_who_computes_lets_the_others_go_first(unlocked: Served) -> None:
    _, below = unlocked
    nice = {model_name(process): process.nice() for process in below}
    entry = min(nice[name] for name in ("frontend", "llm", "flow", "hift"))
    assert max(nice[name] for name in ("tritonserver", "tts", "cosyvoice2", "voices")) < entry
    assert "cosyvoice3" not in nice, "the weights are of another version"
