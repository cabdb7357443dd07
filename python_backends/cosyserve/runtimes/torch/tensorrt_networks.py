"""Networks in TensorRT plans: what a plan does not take, torch runs. Not verified on a GPU yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cosyserve.config import UNetFlowConfig
from cosyserve.errors import WeightsError
from cosyserve.networks.hift import Decoder
from cosyserve.networks.unet import GuidedFlow
from cosyserve.runtimes import registry
from cosyserve.runtimes.buckets import BATCH, BLOCKS, FRAMES
from cosyserve.runtimes.engine_files import find_engine
from cosyserve.runtimes.tensorrt import TensorrtGraph, load_tensorrt, this_gpu
from cosyserve.runtimes.torch.solver import PagedSolver, Velocity
from cosyserve.settings import Settings
from cosyserve.weights import Weights

Run = Callable[[dict[str, Any]], Mapping[str, Any]]
"""What `TensorrtGraph` is: tensors by name to tensors by name, numbered ones as lists."""

_log = logging.getLogger(__name__)


def load_engine(weights: Weights, graph: str, settings: Settings) -> TensorrtGraph | None:
    """The plan of a graph; None if the settings ask for no plans, or if there is none, which a warning explains."""
    runtime = registry.get(settings.runtime)
    if not runtime.plans:
        return None
    try:
        if settings.device not in runtime.devices:
            raise WeightsError(f"TensorRT needs device {' or '.join(runtime.devices)}")
        version = load_tensorrt().__version__
        return TensorrtGraph(find_engine(weights.folder, graph, this_gpu(), version, settings.precision))
    except WeightsError as error:
        _log.warning("%s; torch runs %s instead", error, graph)
        return None


class TensorrtSolver(PagedSolver):
    """`PagedSolver` whose steps run in a plan.

    Args:
        run: the plan of ``flow_estimator``; see `CausalGuided.forward` for what it takes and returns.
        module: for what it does not take: more past than the ladder has, and full attention.
    """

    def __init__(
        self, run: Run, module: GuidedFlow, config: UNetFlowConfig, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(module, config, pages, dtype, device)
        self._run = run

    def velocity(self, table: Tensor, count: Tensor, mu: Tensor, cond: Tensor, embedding: Tensor) -> Velocity:
        """See `PagedSolver.velocity`."""
        config = self._config
        (streams, _, new), room = mu.shape, table.shape[1]
        if new > config.unet_chunk or room > BLOCKS[-1]:
            return super().velocity(table, count, mu, cond, embedding)
        # The plan wants the valid frames first. A chain holds its prompt too, so the plan's own place for it is empty.
        order = (torch.arange(room, device=table.device) - count[:, None]) % room
        read = self.positions(table.gather(1, order))
        frame = 1, 2 * streams, config.unet_heads, config.unet_head_dim
        prompt = [torch.zeros(frame, dtype=self._dtype, device=table.device)] * config.attentions
        given = {
            "mu": mu,
            "cond": cond,
            "embedding": embedding,
            "prompt_length": torch.zeros_like(count),
            "length": config.unet_chunk * count,
            "prompt_k": prompt,
            "prompt_v": prompt,
        }

        def run(step: int, t: float, x: Tensor, tails: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
            keys, values = self.window(step, read, 2 * streams).chunk(2)
            times = torch.full((streams,), t, device=x.device)
            past = {"tails": tails, "past_k": list(keys), "past_v": list(values)}
            out = self._run(given | past | {"x": x, "t": times})
            return out["velocity"], torch.stack([*out["new_k"], *out["new_v"]]), out["new_tails"]

        return run


class TensorrtDecoder(nn.Module):
    """The vocoder's `Decoder` in a plan.

    Args:
        run: the plan of ``hift_decoder``.
        module: for windows that the ladder does not reach.
    """

    def __init__(self, run: Run, module: Decoder) -> None:
        super().__init__()
        self._run = run
        self._module = module

    def forward(self, mel: Tensor, source: Tensor) -> Tensor:
        """See `Decoder.forward`."""
        batch, _, frames = mel.shape
        planned = batch <= BATCH[-1] and FRAMES[0] <= frames <= FRAMES[-1]
        audio: Tensor = self._run({"mel": mel, "source": source})["audio"] if planned else self._module(mel, source)
        return audio
