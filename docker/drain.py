"""Drain the server before its container stops: refuse new utterances, and wait until the running ones have ended.

Triton itself would cancel them at exit. Exit code 0: no utterance is left; 1: the time ran out first.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import urllib.request
from pathlib import Path

from cosyserve.metrics import ACTIVE_STREAMS

LOOK_SECONDS = 0.5
"""Seconds between two reads of the gauge."""

QUIET_LOOKS = 3
"""Consecutive reads that must be zero: the last audio of an ended utterance has yet to reach its client."""


def main() -> None:
    """Drain, and exit with the code in the module's docstring."""
    arguments = parser().parse_args()
    deadline = time.monotonic() + arguments.seconds
    Path(os.environ["COSYSERVE_DRAIN_FILE"]).touch()
    quiet = 0
    while quiet < QUIET_LOOKS:
        if time.monotonic() > deadline:
            sys.exit(f"error: utterances still run after {arguments.seconds:g} s")
        time.sleep(LOOK_SECONDS)
        quiet = 0 if active_streams(arguments.metrics) else quiet + 1


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", default="http://127.0.0.1:8002/metrics", help="the server's metrics")
    parser.add_argument("--seconds", type=float, default=600.0, help="longest wait")
    return parser


def active_streams(url: str) -> float:
    """Read the utterances in progress in all models; zero if the port is closed, nonzero if the answer times out."""
    try:
        with urllib.request.urlopen(url, timeout=LOOK_SECONDS) as page:
            lines = page.read().decode().splitlines()
    except OSError as error:
        return 0 if isinstance(getattr(error, "reason", None), ConnectionRefusedError) else 1
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{ACTIVE_STREAMS.name}{{"))


if __name__ == "__main__":
    main()
