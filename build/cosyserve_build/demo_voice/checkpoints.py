"""Write the demo voice's checkpoints in float16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from cosyserve_build.bundles.bundle import StateDict
from cosyserve_build.synth_weights import split_weight_norm


def write_checkpoints(out: Path, states: Mapping[str, StateDict]) -> None:
    """Write ``llm.pt``, ``flow.pt`` and ``hift.pt`` from the modules' state dicts, rounded to float16.

    The gains of weight norm keep their precision, so that folding them yields the rounded weights.
    """
    for network, state in states.items():
        rounded = {name: value.detach().cpu().half().clone() for name, value in state.items()}
        if network == "hift":
            split = split_weight_norm({name: value.float() for name, value in rounded.items()})
            rounded = {name: value if name.endswith("original0") else value.half() for name, value in split.items()}
        if network == "llm":
            rounded["llm.model.lm_head.weight"] = rounded["llm.model.model.embed_tokens.weight"]
        torch.save(rounded, out / f"{network}.pt")
