"""A stage that runs networks, on the runtime that the settings choose for it."""

from __future__ import annotations

from typing import Any

from cosyserve.errors import WeightsError
from cosyserve.runtimes import registry
from cosyserve.settings import Settings
from cosyserve.weights import Weights


def load_stage(stage: str, weights: Weights, settings: Settings) -> Any:
    """What the stage runs.

    Raises:
        WeightsError: the runtime does not run the weights' version or on the device, or the weights lack what it takes.
    """
    name = (settings.llm_runtime if stage == "llm" else "") or settings.runtime
    load = registry.loader(stage, name, weights.version)
    devices = registry.get(name).devices
    if settings.device not in devices:
        raise WeightsError(f"setting device: {name} runs on {' or '.join(devices)}, not on {settings.device}")
    return load(weights, settings)
