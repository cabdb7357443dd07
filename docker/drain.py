"""Before the container is told to stop: no utterance begins any more, and the running ones are waited for.

Triton's own exit cuts them off. Exit code 0: none is left; 1: the time was over first.
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
"""Between two looks at the gauge."""

QUIET_LOOKS = 3
"""Looks in a row that must find no utterance: what an ended one said still has to leave for its client."""


def main() -> None:
    """Exits with what `__doc__` says."""
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
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", default="http://127.0.0.1:8002/metrics", help="the server's metrics")
    parser.add_argument("--seconds", type=float, default=600.0, help="longest wait")
    return parser


def active_streams(url: str) -> float:
    """Utterances in progress in all models; none when nobody listens any more, and some when the answer takes long."""
    try:
        with urllib.request.urlopen(url, timeout=LOOK_SECONDS) as page:
            lines = page.read().decode().splitlines()
    except OSError as error:
        return 0 if isinstance(getattr(error, "reason", None), ConnectionRefusedError) else 1
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{ACTIVE_STREAMS.name}{{"))


if __name__ == "__main__":
    main()
