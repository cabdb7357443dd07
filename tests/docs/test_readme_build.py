"""The commands of the README and of the page on tuning that compute and serve nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from readme_commands import COMMANDS, ROOT, TINY, TUNING, run

pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.parametrize("command", [c for c in TUNING if c.startswith("cosyserve-build export")])
def test_export(tmp_path: Path, command: str) -> None:
    shutil.copytree(TINY / "bundle", tmp_path / "CosyVoice2-0.5B")
    run(command, tmp_path)
    assert (tmp_path / command.split()[-1]).exists()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("cosyserve-build verify")])
def test_verify(command: str) -> None:
    run(command, ROOT)


def test_the_commands_of_the_figures_run(tmp_path: Path) -> None:
    """At size tiny, and measuring nothing: full size takes ten minutes."""
    (synth,) = (c for c in TUNING if c.startswith("cosyserve-build synth-bundle"))
    run(synth.replace("--size full", "--size tiny"), tmp_path)
    for script in ("measure", "soak", "llm_rate"):
        run(f"python loadtest/lab/{script}.py --help", ROOT)
