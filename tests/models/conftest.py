"""Fixtures of the model tests: networks of the prepared weights, and what was recorded from the original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve.flow.networks import FlowNetworks
from cosyserve.flow.stream import FlowVoice
from cosyserve.hift.stream import HiftNetworks
from cosyserve.llm.graph_decoder import LlmNetworks
from cosyserve.load.flow import load_flow_networks
from cosyserve.load.hift import load_hift_networks
from cosyserve.runtimes.onnx.llm import load_llm_networks
from cosyserve.settings import Settings
from cosyserve.weights import Weights

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"
Vectors = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="session")
def torch_weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The recorded bundle prepared for the torch runtime alone."""
    pytest.importorskip("torch", reason="torch is not installed")
    from cosyserve_build.prepare import prepare

    folder = tmp_path_factory.mktemp("torch") / "weights"
    prepare(TINY / "bundle", folder, runtimes=["torch"])
    return Weights(folder)


@pytest.fixture(scope="session")
def settings(weights: Path) -> Settings:
    return Settings(weights=str(weights))


@pytest.fixture(scope="session")
def llm_networks(settings: Settings) -> LlmNetworks:
    return load_llm_networks(Weights(settings.folder), settings)


@pytest.fixture(scope="session")
def flow_networks(settings: Settings) -> FlowNetworks:
    return load_flow_networks(settings)


@pytest.fixture(scope="session")
def hift_networks(settings: Settings) -> HiftNetworks:
    return load_hift_networks(settings)


@pytest.fixture(scope="session")
def flow_vectors() -> Vectors:
    return _vectors("flow")


@pytest.fixture(scope="session")
def e2e_vectors() -> Vectors:
    return _vectors("e2e")


@pytest.fixture(scope="session")
def flow_voice(flow_vectors: Vectors) -> FlowVoice:
    """The voice of the recorded flow runs: 93 prompt tokens."""
    return FlowVoice(
        flow_vectors["prompt_token"][0].astype(np.int32), flow_vectors["prompt_feat"][0], flow_vectors["spk_raw"][0]
    )


def _vectors(name: str) -> Vectors:
    with np.load(TINY / "vectors" / f"{name}.npz") as archive:
        return dict(archive.items())
