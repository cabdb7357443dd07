"""Networks in TensorRT plans: what a plan does not take, torch runs. Not verified on a GPU yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from cosyserve.config import FlowConfig
from cosyserve.errors import WeightsError
from cosyserve.networks.guided import CausalGuided
from cosyserve.networks.hift import Decoder
from cosyserve.runtimes import registry
from cosyserve.runtimes.buckets import BATCH, BLOCKS, FRAMES
from cosyserve.runtimes.engine_files import TENSORRT, find_engine
from cosyserve.runtimes.tensorrt import TensorrtGraph, installed_flavours, load_tensorrt, this_gpu
from cosyserve.runtimes.torch.network import Places
from cosyserve.runtimes.torch.solver import PagedSolver, Velocity
from cosyserve.settings import Settings
from cosyserve.weights import Weights

Run = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""What `TensorrtGraph` is: tensors by name to tensors by name, stacked as `cosyserve.runtimes.stacking` says."""


def load_engine(weights: Weights, graph: str, settings: Settings) -> TensorrtGraph | None:
    """The plan of a graph; None if the settings ask for no plans.

    Raises:
        WeightsError: they do, and there is none that fits, or TensorRT cannot run here.
    """
    runtime = registry.get(settings.runtime)
    if not runtime.plans:
        return None
    try:
        flavour = next(iter(installed_flavours()), TENSORRT)
        version = load_tensorrt(flavour).__version__
        path = find_engine(weights.folder, graph, this_gpu(), version, settings.precision, flavour)
        return TensorrtGraph(path, flavour)
    except WeightsError as error:
        raise WeightsError(f"setting runtime: {error}; torch runs without plans") from None


class TensorrtSolver(PagedSolver):
    """`PagedSolver` whose steps run in a plan.

    Args:
        run: the plan of ``flow_estimator``; see `CausalGuided.forward` for what it takes and returns.
        module: for what it does not take: more past than the ladder has, and full attention.
    """

    masks = False

    def __init__(
        self, run: Run, module: CausalGuided, config: FlowConfig, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(module, config, pages, dtype, device)
        self._run = run

    def velocity(self, places: Places, mu: Tensor, cond: Tensor, embedding: Tensor, chunks: int) -> Velocity:
        """See `PagedSolver.velocity`."""
        config = self._config
        table, count = places.table, places.filled
        (streams, _, new), room = mu.shape, table.shape[1]
        if new > config.frame_chunk or room > BLOCKS[-1]:
            return super().velocity(places, mu, cond, embedding, chunks)
        # The plan wants the valid frames first. A chain holds its prompt too, so the plan's own place for it is empty.
        order = (torch.arange(room, device=table.device) - count[:, None]) % room
        read = self.positions(table.gather(1, order))
        frame = 1, 2 * streams, self._heads, self._head_dim
        prompt = torch.zeros(2 * self._layers, *frame, dtype=self._dtype, device=table.device)
        given = {
            "mu": mu,
            "cond": cond,
            "embedding": embedding,
            "prompt_length": torch.zeros_like(count),
            "length": config.frame_chunk * count,
            "prompt": prompt,
        }
        if config.positions:
            given["position"] = config.frame_chunk * places.position

        def run(step: int, t: float, x: Tensor, tails: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            times = torch.full((streams,), t, device=x.device)
            past = self.window(step, read, 2 * streams)
            out = self._run(given | {"x": x, "t": times, "tails": tails, "past": past})
            return out["velocity"], out["new"], out["new_tails"]

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
