"""Whether this server still speaks: one tiny real utterance through every stage, within a deadline.

Triton's own health answers stay good when a stage has hung. Exit code 0: it spoke, or refused because it is full or
about to stop; 1: it did not.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from cosyserve_client import Client, CosyServeClientError, Unavailable

RATE = 16_000  # Hz
PROMPT = (0.1 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)).astype(np.float32)
"""A voice of its own, 1 s of a tone: weights may have none registered. The server keeps what it heard in it."""


def main() -> None:
    """Exits with what `__doc__` says, and a line on stderr when it is 1."""
    arguments = parser().parse_args()
    try:
        with Client(arguments.url, stream_timeout=arguments.seconds) as client:
            # With the rate given, the client asks for nothing else first, and the deadline is that of all.
            speech = client.synthesize("Yes.", prompt_audio=PROMPT, prompt_sample_rate=RATE, sample_rate=24_000, seed=1)
    except Unavailable:
        return
    except CosyServeClientError as error:
        sys.exit(f"error: {error}")
    if not len(speech.pcm):
        sys.exit("error: no audio")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's gRPC host:port")
    parser.add_argument("--seconds", type=float, default=30.0, help="deadline")
    return parser


if __name__ == "__main__":
    main()
