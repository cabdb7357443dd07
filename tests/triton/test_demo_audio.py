"""What ``make demo`` prints and what its audio sounds like, as far as a number can tell."""

from __future__ import annotations

import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve_client import Client

SENTENCE = "Hello from CosyServe, streaming chunk by chunk."
CLIPPED = 32440
"""The vocoder's limit, 0.99 of full scale."""


@pytest.fixture(scope="module")
def demo(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, NDArray[np.float64]]:
    """Standard output, standard error, and the samples of the file."""
    output = tmp_path_factory.mktemp("demo") / "demo.wav"
    command = [str(Path(sys.executable).parent / "cosyserve"), "demo", "--weights", str(demo_weights)]
    ended = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True, timeout=120, check=True)
    with wave.open(str(output)) as file:
        assert file.getframerate() == 24_000
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return ended.stdout, ended.stderr, samples.astype(np.float64)


def test_it_tells_what_it_says_and_how_fast(demo: tuple[str, str, NDArray[np.float64]]) -> None:
    stdout, stderr, samples = demo
    assert f"saying: {SENTENCE}" in stdout
    found = re.search(r"([\d.]+) s of audio, first audio (\d+) ms, real-time factor ([\d.]+)", stdout)
    assert found is not None
    assert float(found[1]) == pytest.approx(len(samples) / 24_000, abs=0.01)
    assert "random weights: this is noise" in stderr
    assert "Traceback" not in stderr


def test_it_is_audible(demo: tuple[str, str, NDArray[np.float64]]) -> None:
    samples = demo[2] / 32768
    assert len(samples) > 12_000
    assert np.sqrt(np.mean(samples**2)) > 0.01
    assert abs(np.mean(samples)) < np.std(samples) / 2


def test_it_is_not_clipped(demo: tuple[str, str, NDArray[np.float64]]) -> None:
    assert np.mean(np.abs(demo[2]) >= CLIPPED) < 0.001


def test_there_is_no_click_where_chunks_meet(client: Client) -> None:
    joins: list[float] = []
    elsewhere: list[NDArray[np.float64]] = []
    for seed in range(4):
        chunks = [chunk for chunk in client.stream(SENTENCE, seed=seed) if len(chunk.pcm)]
        jumps = np.abs(np.diff(np.concatenate([chunk.pcm for chunk in chunks]).astype(np.float64)))
        at = [chunk.sample_offset - 1 for chunk in chunks[1:]]
        joins.extend(jumps[at])
        elsewhere.append(np.delete(jumps, at))
    assert len(joins) >= 4
    assert max(joins) <= 1.5 * np.percentile(np.concatenate(elsewhere), 99.9)
