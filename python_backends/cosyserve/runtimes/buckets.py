"""The shapes that GPU runtimes prepare for: calls are padded up to the next rung, so that few shapes ever occur."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

from cosyserve.config import FlowConfig, ModelConfig, expect
from cosyserve.errors import WeightsError

BATCH = (1, 2, 4, 8, 16, 32)
"""Streams in one call."""

BLOCKS = (4, 8, 16, 32)
"""Chunks of the U-Net in a part of the estimator's past: 32 of them are 32 s, longer than any prompt."""

FRAMES = (64, 96, 128, 192, 320)
"""Mel frames in one call of the vocoder."""

SHORT_FRAMES = tuple(range(16, FRAMES[0], 2))
"""Those of utterances too short for the first of `FRAMES`, such as "Yes.": nothing may be added to them, so they are
recorded as they are, for one stream. A speech token is two frames."""

Axis = int | str
"""An axis of a graph as its manifest has it: a size, a name, or a product such as ``2*batch``."""

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
"""Least, usual and greatest shape of each input that varies."""


def bucket(ladder: Sequence[int], size: int) -> int:
    """The smallest step of the ladder that holds `size`; `size` itself above the last."""
    return next((step for step in ladder if step >= size), size)


def batches(streams: int) -> tuple[int, ...]:
    """The batch sizes to record for this many streams."""
    return tuple(step for step in BATCH if step < 2 * streams)


def axes(graph: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Sizes of each named axis of a graph, ascending.

    Raises:
        WeightsError: the graph has no ladder.
    """
    flow = expect(FlowConfig, config.flow)
    chunk = flow.frame_chunk
    # A part of the past that is empty is one masked frame; a last chunk is as short as one token.
    past = (1, *(chunk * blocks for blocks in BLOCKS))
    ladders: dict[str, dict[str, tuple[int, ...]]] = {
        "flow_estimator": {"batch": BATCH, "new": (flow.ratio, chunk), "prompt": past, "past": past},
        "hift_decoder": {
            "batch": BATCH,
            "frames": FRAMES,
            "samples": tuple(config.hift.frame * frames for frames in FRAMES),
        },
    }
    if graph not in ladders:
        raise WeightsError(f"{graph} has no shape ladder; there is one for {', '.join(ladders)}")
    return ladders[graph]


def profile(inputs: Mapping[str, Sequence[Axis]], sizes: Mapping[str, tuple[int, ...]]) -> Profile:
    """Least, usual (the middle rung) and greatest shape of each input that varies.

    Args:
        inputs: shape of each input as the manifest has it.
        sizes: rungs of each named axis, ascending.

    Raises:
        WeightsError: an axis has no rungs; the message names it and its input.
    """
    least, usual, greatest = (
        {axis: pick(rungs) for axis, rungs in sizes.items()}
        for pick in (min, lambda rungs: rungs[len(rungs) // 2], max)
    )
    return {
        name: (_shape(name, shape, least), _shape(name, shape, usual), _shape(name, shape, greatest))
        for name, shape in inputs.items()
        if any(isinstance(axis, str) for axis in shape)
    }


def digest(shapes: Profile) -> str:
    """Short hash of a profile: changes when the ladder or the graph's inputs do."""
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()[:12]


def _shape(name: str, shape: Sequence[Axis], sizes: Mapping[str, int]) -> Shape:
    try:
        return tuple(
            math.prod(int(factor) if factor.isdecimal() else sizes[factor] for factor in str(axis).split("*"))
            for axis in shape
        )
    except KeyError as error:
        raise WeightsError(f"input {name}: the ladder has no sizes for its axis {error.args[0]}") from None
