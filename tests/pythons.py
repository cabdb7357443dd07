"""Run ``make demo`` and the smoke tests with every Python on this machine.

    python tests/pythons.py
    python tests/pythons.py --python /usr/bin/python3 --markdown

Each interpreter from 3.11 to 3.13 that is found (on PATH, the distribution's, pyenv's) gets a copy of the project in an
empty folder, with an empty home and nothing of its environment. Exit code 1 when one of them fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MINORS = (11, 12, 13)
STEPS = {"demo": "demo", "demo again": "demo", "server tests": "smoke"}
"""Steps, and their targets of `make`."""

ASK = "import sys; print(sys.executable, *sys.version_info[:3], sys.base_prefix == sys.prefix)"


@dataclass(frozen=True)
class Python:
    """An interpreter.

    Attributes:
        path: the executable itself, no link.
        version: such as ``3.12.1``.
    """

    path: Path
    version: str


def interpreters() -> list[Python]:
    """List the interpreters of this machine, each once, oldest first."""
    names = [f"python3.{minor}" for minor in MINORS]
    folders = [*map(Path, os.get_exec_path()), Path("/usr/bin"), Path("/usr/local/bin")]
    folders += Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin")
    found = {asked for folder in folders for name in names if (asked := ask(folder / name))}
    return sorted(found, key=lambda each: [*map(int, each.version.split(".")), str(each.path)])


def ask(path: Path) -> Python | None:
    """Describe an executable; None if it is not an interpreter of its own, or a shim without one."""
    if not os.access(path, os.X_OK):
        return None
    told = subprocess.run([path, "-c", ASK], capture_output=True, text=True).stdout.split()
    if len(told) != 5 or told[4] != "True":  # a virtual environment's
        return None
    return Python(Path(told[0]).resolve(), ".".join(told[1:4]))


def copy(folder: Path) -> None:
    """Copy the files that are tracked, or would be, to an empty folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def run(python: Python) -> list[str]:
    """Run each step; print its last lines to stderr if it fails."""
    cells = []
    with tempfile.TemporaryDirectory(prefix="pythons-") as scratch:
        project, home, bin = (Path(scratch) / name for name in ("project", "home", "bin"))
        home.mkdir()
        bin.mkdir()
        copy(project)
        # With a link the interpreter would not find its library.
        (bin / "python3").write_text(f'#!/bin/sh\nexec {python.path} "$@"\n')
        (bin / "python3").chmod(0o755)
        environ = {"HOME": str(home), "PATH": f"{bin}:/usr/local/bin:/usr/bin:/bin", "TERM": "dumb"}
        for step, target in STEPS.items():
            began = time.monotonic()
            done = subprocess.run(
                ["make", target], cwd=project, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            seconds = time.monotonic() - began
            lines = [line for line in done.stdout.splitlines() if line.strip()]
            told = f"ok, {seconds:.0f} s" if not done.returncode else f"failed after {seconds:.0f} s"
            if target == "smoke" and lines:
                told += f" ({lines[-1].strip('= ')})"
            print(f"Python {python.version} ({python.path}): {step}: {told}", flush=True)
            cells.append(told)
            if done.returncode:
                print("\n".join(lines[-40:]), file=sys.stderr, flush=True)
                break
    return cells + ["not run"] * (len(STEPS) - len(cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, action="append", help="only this interpreter; any number")
    parser.add_argument("--markdown", action="store_true", help="end with a table for docs/")
    options = parser.parse_args()
    asked = [ask(path) for path in options.python] if options.python else interpreters()
    pythons = [each for each in asked if each]
    if not pythons or len(pythons) < len(asked):
        print("error: no Python of 3.11 to 3.13 there", file=sys.stderr)
        return 1
    rows = [(python, run(python)) for python in pythons]
    if options.markdown:
        print(f"| Python | {' | '.join(STEPS)} |\n|---{'|---' * len(STEPS)}|")
        for python, cells in rows:
            print(f"| {python.version} | {' | '.join(cells)} |")
    return any(not cell.startswith("ok") for _, cells in rows for cell in cells)


if __name__ == "__main__":
    sys.exit(main())
