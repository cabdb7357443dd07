"""NVIDIA's Multi-Process Service, started by the container's entrypoint; the daemon is a fake."""

from __future__ import annotations

import os
from pathlib import Path

import entrypoint
import pytest

FOLDERS = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    paths = [tmp_path / name for name in ("mps", "mps-log")]
    for name, path in zip(FOLDERS, paths, strict=True):
        monkeypatch.setenv(name, str(path))
    return paths


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (tmp_path / "bin").mkdir()
    daemon = tmp_path / "bin" / "nvidia-cuda-mps-control"
    daemon.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def test_the_daemon_is_started_with_its_folders(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As the daemon does, a child lives on with what it inherited.
    install(tmp_path, monkeypatch, 'echo "$1" > "$CUDA_MPS_PIPE_DIRECTORY/control"; sleep 20 &')
    entrypoint.start_mps()
    assert (folders[0] / "control").read_text("utf-8") == "-d\n"
    assert folders[1].is_dir()
    assert capsys.readouterr().err.startswith("MPS runs")


def test_where_it_may_not_run_a_line_says_so_and_the_models_do_not_look_for_it(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch, "echo 'Cannot find MPS control daemon process' >&2; exit 1")
    entrypoint.start_mps()
    assert "MPS could not be started" in (line := capsys.readouterr().err)
    assert "Cannot find MPS control daemon process" in line
    assert not set(FOLDERS) & set(os.environ)


@pytest.mark.usefixtures("folders")
def test_without_a_gpu_nothing_is_started(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    entrypoint.start_mps()
    assert capsys.readouterr().err == ""


def test_an_image_without_folders_for_it_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch, "exit 1")
    entrypoint.start_mps()
    assert capsys.readouterr().err == ""
