"""The commands of the README and of the page on tuning, and how the tests run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
TINY = ROOT / "tests" / "data" / "cosyvoice2-tiny"


def _commands(text: str) -> list[str]:
    """The lines of the shell blocks of a page."""
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]


COMMANDS = _commands(README)
TUNING = _commands((ROOT / "docs" / "tuning.md").read_text("utf-8"))


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
