"""Each stage over the ONNX graphs of its version, which says what they are run in."""

from __future__ import annotations

from typing import Any

from cosyserve.lazy import resolve
from cosyserve.settings import Settings
from cosyserve.weights import Weights


def load_llm(weights: Weights, settings: Settings) -> Any:
    """The language model's decoder."""
    return resolve(weights.version.llm.onnx)(weights, settings)


def load_flow(weights: Weights, settings: Settings) -> Any:
    """The flow's networks."""
    return resolve(weights.version.flow.onnx)(weights, settings)


def load_hift(weights: Weights, settings: Settings) -> Any:
    """The vocoder's networks."""
    return resolve(weights.version.hift.onnx)(weights, settings)
