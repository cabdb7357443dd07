"""``cosyserve doctor`` reports the problems of a machine and the next command."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cosyserve import __version__, doctor
from cosyserve.cli import app
from cosyserve.doctor import SHARED_MEMORY_MIB, Finding, State, findings, next_step
from cosyserve.tritonserver import STUB

GPU = "NVIDIA H200, 143771 MiB, 570.10, 9.0"


def script(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n", "utf-8")
    path.chmod(0o755)


def found(name: str) -> Finding:
    [finding] = [each for each in findings() if each.name == name]
    return finding


@pytest.fixture(autouse=True)
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, and empty; nothing has been fetched."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "bin"


@pytest.fixture
def tritonserver(bin: Path) -> Path:
    """Fake installation whose stub contains its Python; returns the folder of its backends."""
    script(bin / "tritonserver", "echo '  --grpc-port <integer>'")
    backends = bin.parent / "backends"
    (backends / "python").mkdir(parents=True)
    (backends / "python" / STUB).write_bytes(b"\x7fELF")
    return backends


@pytest.fixture
def little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's default size of shared memory."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64 * 2**20, used=0, free=64 * 2**20))


def test_each_finding_has_a_name_of_its_own_and_one_line() -> None:
    told = list(findings())
    assert len({each.name for each in told}) == len(told) > 1
    assert all(each.text.strip() and "\n" not in str(each) for each in told)
    assert told[0] == Finding("CosyServe", State.OK, __version__)


def test_a_check_that_fails_is_reported_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [each.name for each in findings()]

    def refuse(pid: int) -> set[int]:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    told = {each.name: each for each in findings()}
    assert list(told) == names
    assert told["cores"] == Finding("cores", State.PROBLEM, "unknown: PermissionError: not here")


def test_the_first_problem_gives_the_next_step() -> None:
    problems = [Finding(name, State.PROBLEM, f"no {name}") for name in ("Triton", "packages")]
    told = [Finding("Python", State.OK, ""), Finding("GPU", State.NOTE, "none"), *problems]
    assert next_step(told) == "mend Triton: no Triton"


def test_without_a_problem_serving_is_next() -> None:
    told = [Finding("Python", State.OK, ""), Finding("GPU", State.NOTE, "none")]
    assert next_step(told).startswith("cosyserve serve --weights DIR  (")


def test_without_a_gpu_none_is_reported() -> None:
    assert found("GPU").state is State.NOTE
    assert "--profile" not in next_step([found("GPU")])


def test_with_a_gpu_its_profile_is_reported(bin: Path) -> None:
    script(bin / "nvidia-smi", f"echo '{GPU}'", f"echo '{GPU}'")
    assert found("GPU") == Finding("GPU", State.OK, f"{GPU}; {GPU}")
    assert next_step([found("GPU")]).startswith("cosyserve serve --weights DIR --profile gpu ")


def test_a_gpu_whose_driver_fails_is_none(bin: Path) -> None:
    script(bin / "nvidia-smi", "echo 'cannot talk to the driver'", "echo more >&2", "exit 9")
    assert found("GPU") == Finding("GPU", State.NOTE, "none: nvidia-smi says cannot talk to the driver")


def test_a_tritonserver_on_path_is_reported_with_its_version(
    bin: Path, tritonserver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.71.0")
    assert found("Triton") == Finding("Triton", State.OK, f"2.71.0, PATH, {bin / 'tritonserver'}")


def test_a_tritonserver_that_does_not_run_is_a_problem(bin: Path, tritonserver: Path) -> None:
    script(bin / "tritonserver", "echo 'libcudart.so.12: not found' >&2", "exit 127")
    assert found("Triton").state is State.PROBLEM
    assert "libcudart.so.12" in found("Triton").text


def test_a_stub_for_another_python_is_a_problem(tritonserver: Path) -> None:
    (tritonserver / "python" / STUB).write_bytes(b"libpython3.10.so.1.0")
    assert found("Triton").state is State.PROBLEM
    assert "is for Python 3.10" in found("Triton").text


def test_a_gpu_query_without_an_answer_is_no_gpu(bin: Path) -> None:
    for lines in (["exit 9"], ["exit 0"], ["echo 'No devices were found'"]):
        script(bin / "nvidia-smi", *lines)
        assert found("GPU").state is State.NOTE


def test_a_tritonserver_without_a_stub_is_a_problem(tritonserver: Path) -> None:
    (tritonserver / "python" / STUB).unlink()
    assert found("Triton").state is State.PROBLEM
    assert str(tritonserver / "python" / STUB) in found("Triton").text


@pytest.mark.skipif(Path("/opt/tritonserver/backends/python").is_dir(), reason="NVIDIA's container")
def test_a_tritonserver_without_a_python_backend_is_a_problem(tritonserver: Path) -> None:
    shutil.rmtree(tritonserver)
    assert found("Triton").state is State.PROBLEM
    assert "no Python backend" in found("Triton").text


@pytest.mark.usefixtures("little_shared_memory")
def test_too_little_shared_memory_is_a_problem_with_a_way_out() -> None:
    assert found("/dev/shm").state is State.PROBLEM
    assert f"64 of 64 MiB free, {SHARED_MEMORY_MIB} are needed: in Docker, `--shm-size" in found("/dev/shm").text


def test_enough_shared_memory_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    size = SHARED_MEMORY_MIB * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=size, used=0, free=size))
    assert found("/dev/shm").state is State.OK


def test_ports_in_use_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        port, free = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        monkeypatch.setattr(doctor, "PORTS", {port: "gRPC", free: "gateway"})
        told = found("ports")
        assert told.state is State.NOTE
        assert told.text.startswith(f"in use: {port} (gRPC); ")
    assert found("ports") == Finding("ports", State.OK, f"{port}, {free} are free")


def test_missing_packages_are_named_with_the_extra_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("typer", "cosyserve-of-nobody", "another-of-nobody"))
    assert found("packages").state is State.PROBLEM
    assert found("packages").text.startswith("cosyserve-of-nobody, another-of-nobody missing: `pip install 'cosyserve[")


def command() -> tuple[int, list[str]]:
    done = CliRunner().invoke(app, ["doctor"])
    return done.exit_code, done.output.splitlines()


def test_the_command_prints_a_line_for_each_and_what_is_next() -> None:
    told = list(findings())
    code, lines = command()
    assert [line[:22] for line in lines[:-1]] == [f"{each.state.value:8}{each.name:14}" for each in told]
    assert lines[-1].startswith("next:   ")
    assert code == any(each.state is State.PROBLEM for each in told)


@pytest.mark.usefixtures("little_shared_memory", "tritonserver")
def test_the_command_fails_with_a_problem() -> None:
    code, lines = command()
    assert code == 1
    assert "next:   mend /dev/shm: 64 of 64 MiB free" in lines[-1]


@pytest.mark.usefixtures("tritonserver")
def test_notes_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**30, used=0, free=2**30))
    code, lines = command()
    assert "note    GPU           none (no nvidia-smi)" in lines
    assert (code, lines[-1].split("  (")[0]) == (0, "next:   cosyserve serve --weights DIR")
