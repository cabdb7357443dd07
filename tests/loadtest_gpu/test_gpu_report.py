"""The GPU report, run on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

SCRIPT = Path(__file__).parents[2] / "loadtest" / "gpu_report.py"
CALLS = ["flow solve, chunk 13", "hift f0", "hift decoder, 96 frames", "llm step"]


def test_every_part_is_filled_or_says_why_not(tmp_path: Path) -> None:
    options = "--size tiny --device cpu --threads 1 --streams 1,2 --rates 2 --runs 1 --requests 2 --flow-cache-mib 256"
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out"), *options.split()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())

    for version in (2, 3):
        check({part.partition(": ")[2]: rows for part, rows in report.items() if f"CosyVoice{version}, torch" in part})
    assert {row["served"] for row in report["Summary"]} == {"CosyVoice2, torch", "CosyVoice3, torch"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(f"## {part}" in text for part in report)


def check(report: dict[str, Any]) -> None:
    """The parts of one version on one runtime."""
    differences = report["difference from the CPU in float32"]
    assert [row["output"] for row in differences] == ["flow: mel", "hift: audio", "llm: logits"]
    # The report's own precision is fp16; vocoder and language model stay in float32.
    assert all(row["finite"] and row["relative error"] < 0.05 for row in differences)
    assert differences[0]["relative error"] > 1e-5
    assert differences[1]["relative error"] < 1e-6
    assert differences[2]["relative error"] < 1e-6

    times = report["time of one call"]
    assert [row["call"] for row in times] == CALLS
    assert all(row[f"{streams} streams, ms"] > 0 for row in times for streams in (1, 2))
    assert {row["call"] for row in report["where it goes with 2 streams"]} == set(CALLS)

    assert [row["load"] for row in report["what listeners hear"]] == ["1 streams", "2 streams", "2 a second"]


def test_weights_without_the_networks_are_a_skipped_part_with_the_command(weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--weights", str(weights), "--device", "cpu"]
    run = subprocess.run([*command, "--streams", "1"], capture_output=True, text=True, timeout=240, check=False)
    assert "skipped: flow.torch.safetensors is not in the weights folder" in run.stdout
    assert "cosyserve-build prepare BUNDLE OUT --runtime torch" in run.stdout
