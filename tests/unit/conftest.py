"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosyserve.weights import Weights

BUNDLE = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny" / "bundle"


@pytest.fixture(scope="session")
def torch_weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The recorded bundle prepared for the torch runtime alone."""
    pytest.importorskip("torch", reason="torch is not installed")
    from cosyserve_build.prepare import prepare

    folder = tmp_path_factory.mktemp("torch") / "weights"
    prepare(BUNDLE, folder, runtimes=["torch"])
    return Weights(folder)
