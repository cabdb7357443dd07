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

DATA = Path(__file__).parents[1] / "data"
TINY = DATA / "cosyvoice2-tiny"
Vectors = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="session")
def torch_weights(torch_weights2: Weights) -> Weights:
    return torch_weights2


@pytest.fixture(scope="session")
def torch_weights2(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The recorded bundle of CosyVoice2, prepared for the torch runtime alone."""
    pytest.importorskip("torch", reason="torch is not installed")
    from cosyserve_build.prepare import prepare

    folder = tmp_path_factory.mktemp("torch") / "weights"
    prepare(TINY / "bundle", folder, runtimes=["torch"])
    return Weights(folder)


@pytest.fixture(scope="session")
def torch_weights3(set3: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The recorded bundle of CosyVoice3 in the same form."""
    pytest.importorskip("torch", reason="torch is not installed")
    from cosyserve_build.prepare import prepare

    folder = tmp_path_factory.mktemp("torch3") / "weights"
    prepare(set3 / "bundle", folder, runtimes=["torch"])
    return Weights(folder)


@pytest.fixture(scope="session", params=[2, 3], ids=str)
def any_version(request: pytest.FixtureRequest) -> int:
    """Each version that the torch runtime runs."""
    version: int = request.param
    return version


@pytest.fixture(scope="session")
def any_torch_weights(any_version: int, request: pytest.FixtureRequest) -> Weights:
    """Its weights."""
    found: Weights = request.getfixturevalue({2: "torch_weights2", 3: "torch_weights3"}[any_version])
    return found


@pytest.fixture(scope="session")
def any_weights(any_version: int, request: pytest.FixtureRequest) -> Path:
    """The same weights as ONNX graphs."""
    found: Path = request.getfixturevalue({2: "weights", 3: "weights3"}[any_version])
    return found


@pytest.fixture(scope="session")
def any_flow_vectors(any_version: int) -> Vectors:
    return _vectors(any_version, "flow")


@pytest.fixture(scope="session")
def any_flow_voice(any_flow_vectors: Vectors) -> FlowVoice:
    return _voice(any_flow_vectors)


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
    return _vectors(2, "flow")


@pytest.fixture(scope="session")
def e2e_vectors() -> Vectors:
    return _vectors(2, "e2e")


@pytest.fixture(scope="session")
def flow_voice(flow_vectors: Vectors) -> FlowVoice:
    """The voice of the recorded flow runs: 93 prompt tokens."""
    return _voice(flow_vectors)


def _vectors(version: int, name: str) -> Vectors:
    with np.load(DATA / f"cosyvoice{version}-tiny" / "vectors" / f"{name}.npz") as archive:
        return dict(archive.items())


def _voice(vectors: Vectors) -> FlowVoice:
    return FlowVoice(vectors["prompt_token"][0].astype(np.int32), vectors["prompt_feat"][0], vectors["spk_raw"][0])
