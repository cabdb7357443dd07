"""A stage that runs networks, on the runtime that the settings choose for it."""

from __future__ import annotations

from typing import Any

from cosyserve.runtimes import registry
from cosyserve.settings import Settings
from cosyserve.weights import Weights


def load_stage(stage: str, weights: Weights, settings: Settings) -> Any:
    """What the stage runs.

    Raises:
        WeightsError: the runtime does not run the weights' version, or the weights lack what it takes.
    """
    runtime = (settings.llm_runtime if stage == "llm" else "") or settings.runtime
    return registry.loader(stage, runtime, weights.version)(weights, settings)
