"""One server for all tests of this folder, with the demo weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, running

from cosyserve_client import Client, SpeechOptions, read_prompt

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "cosyvoice2-tiny"


@pytest.fixture(scope="session")
def server(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(demo_weights, tmp_path_factory.mktemp("server") / "triton.log") as live:
        yield live


@pytest.fixture(scope="session")
def server1(weights1: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with CosyVoice 1."""
    with running(weights1, tmp_path_factory.mktemp("server1") / "triton.log") as live:
        yield live


@pytest.fixture(scope="session")
def server3(weights3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with CosyVoice 3."""
    with running(weights3, tmp_path_factory.mktemp("server3") / "triton.log") as live:
        yield live


@pytest.fixture(scope="session")
def client(server: Live) -> Iterator[Client]:
    with Client(server.url, stream_timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def prompt() -> SpeechOptions:
    """A voice to clone, with its transcript."""
    samples, rate = read_prompt(str(TINY / "prompt.wav"))
    transcript = (TINY / "prompt.txt").read_text("utf-8")
    return {"prompt_audio": samples, "prompt_sample_rate": rate, "prompt_text": transcript}
