"""Liveness probe: one short utterance through every stage, within a deadline.

Triton's own health checks do not notice a stage that hangs. Exit code 0: the server answered with audio, or refused
because it is full or draining; 1: it did neither.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from cosyserve_client import Client, CosyServeClientError, Unavailable

RATE = 16_000  # Hz
PROMPT = (0.1 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)).astype(np.float32)
"""Prompt, 1 s of a tone, since the weights may have no voice. The server caches its features."""


def main() -> None:
    """Probe, and exit with the code in the module's docstring; print a line on stderr if it is 1."""
    arguments = parser().parse_args()
    try:
        with Client(arguments.url, stream_timeout=arguments.seconds) as client:
            # With `sample_rate` the client makes no other call first, so the deadline covers everything.
            speech = client.synthesize("Yes.", prompt_audio=PROMPT, prompt_sample_rate=RATE, sample_rate=24_000, seed=1)
    except Unavailable:
        return
    except CosyServeClientError as error:
        sys.exit(f"error: {error}")
    if not len(speech.pcm):
        sys.exit("error: no audio")


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's gRPC host:port")
    parser.add_argument("--seconds", type=float, default=30.0, help="deadline")
    return parser


if __name__ == "__main__":
    main()
