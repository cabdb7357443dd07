"""Memory of a GPU server at full size: the table of docs/gpu.md."""

from __future__ import annotations

import math
import tempfile
from functools import cache
from pathlib import Path

from cosyserve import versions
from cosyserve.config import ModelConfig
from cosyserve.repository import PROFILES
from cosyserve.runtimes.memory import GIB, DeviceMemory, device_memory
from cosyserve.settings import Settings
from cosyserve_build.bundles.layout import read_config
from cosyserve_build.bundles.shapes import expected_shapes
from cosyserve_build.synth_recipe import sizes, write_recipe

CARDS = {24: 4, 48: 16, 80: 32, 141: 64}
"""GiB of common cards, and the `max_streams` and `llm_slots` for each."""

VERSIONS = (2, 3)
"""CosyVoice versions that GPUs serve."""

PROMPT_FRAMES = 250
"""Mel frames of a prompt of 5 s that no other stream shares."""


@cache
def full_size(version: int) -> ModelConfig:
    """Return the sizes of the official bundle of a CosyVoice version."""
    with tempfile.TemporaryDirectory() as scratch:
        write_recipe(Path(scratch), version, sizes(version, "full"))
        return read_config(Path(scratch), versions.get(version))


def memory(version: int, card: int, streams: int) -> DeviceMemory:
    """Compute how profile ``gpu`` divides the memory of a card at full size.

    Args:
        streams: `max_streams` and `llm_slots`.
    """
    config = full_size(version)
    given = {name: value for model in PROFILES["gpu"].values() for name, value in model.items()}
    settings = Settings.read({**given, "max_streams": str(streams), "llm_slots": str(streams)}, {})
    parameters = {
        stage: 4 * sum(math.prod(shape) for shape in expected_shapes(config, stage).values())
        for stage in ("llm", "flow", "hift")
    }
    return device_memory(config, parameters, card * GIB, settings)
