"""The language model in llama.cpp, in the same server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live import Live, running

from cosyserve_build.prepare import prepare
from cosyserve_client import Client

BUNDLE = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny" / "bundle"
LONG = "It was a long day, and there was more to tell of it than anybody at the table had the patience to hear. " * 2

pytest.importorskip("llama_cpp", reason="the gguf extra is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("llama")
    prepare(BUNDLE, folder / "weights", llm_gguf="f32")
    with running(folder / "weights", folder / "triton.log", llm_runtime="gguf") as live:
        yield live


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[Client]:
    with Client(server.url, stream_timeout=120) as client:
        yield client


def test_the_same_seed_gives_the_same_samples(client: Client) -> None:
    first, again = (client.synthesize("Hello there.", seed=7).pcm for _ in range(2))
    assert np.abs(first).max() > 0
    np.testing.assert_array_equal(first, again)


def test_leaving_frees_the_row(client: Client, server: Live) -> None:
    with client.stream(LONG, seed=1) as stream:
        next(stream)
    server.wait_idle()
    assert client.synthesize("Hello there.", seed=7).pcm.size
