"""Output of ``make demo``, and figures of its audio."""

from __future__ import annotations

import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve.cli import SENTENCE
from cosyserve_build.judge.recogniser import word_errors
from cosyserve_build.judge.sentences import words


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
    said = re.search(r"a recogniser heard: (.*)", stdout)
    assert said is not None
    assert word_errors(words(SENTENCE), said[1].split()) <= 2
    assert "random weights" not in stderr
    assert "Traceback" not in stderr


def test_it_is_audible(demo: tuple[str, str, NDArray[np.float64]]) -> None:
    samples = demo[2] / 32768
    assert len(samples) > 12_000
    assert np.sqrt(np.mean(samples**2)) > 0.01
    assert abs(np.mean(samples)) < np.std(samples) / 2
