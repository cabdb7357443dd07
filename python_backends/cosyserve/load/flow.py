"""The flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cosyserve.flow.sequences import FlowFactory
from cosyserve.lazy import resolve
from cosyserve.load.stage import load_stage
from cosyserve.runtimes.memory import flow_cache_bytes
from cosyserve.settings import Settings
from cosyserve.weights import Weights


def load_flow_factory(settings: Settings, count_frames: Callable[[int], None]) -> FlowFactory:
    """Flow networks, and the memory that streams and voices share."""
    weights = Weights(settings.folder)
    networks = load_stage("flow", weights, settings)
    factory: FlowFactory = resolve(weights.version.flow.factory)(
        networks, flow_cache_bytes(weights, settings), count_frames
    )
    return factory


def load_flow_networks(settings: Settings) -> Any:
    """Encoder and estimator, and the noise where it is fixed: what the streams of the weights' version take."""
    return load_stage("flow", Weights(settings.folder), settings)
