"""The flow on the device: what crosses to the host are speech tokens, mu and mel."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from cosyserve.config import FlowConfig, expect
from cosyserve.errors import WeightsError
from cosyserve.flow.networks import EncodeJob, Float, SolveJob
from cosyserve.lazy import resolve
from cosyserve.networks.guided import CausalGuided
from cosyserve.runtimes.memory import flow_cache_bytes
from cosyserve.runtimes.torch.encoder import PagedConformer, PagedKind, PagedLookahead
from cosyserve.runtimes.torch.modules import DTYPES, fitting, load_module, prepare_device
from cosyserve.runtimes.torch.network import PagedNetwork
from cosyserve.runtimes.torch.paged_kv_cache import PagePool, PageTable
from cosyserve.runtimes.torch.solver import PagedSolver
from cosyserve.runtimes.torch.tensorrt_networks import Run, TensorrtSolver, load_engine
from cosyserve.settings import Settings
from cosyserve.weights import Weights


@dataclass(eq=False)
class TorchCache:
    """`FlowCache` in pages: a fork shares its origin's, each of which is freed with its last holder.

    Attributes:
        window: most pages of frames that a fork keeps besides; 0 keeps all.
    """

    page_bytes: tuple[int, int]
    window: int = 0
    tokens: PageTable = field(default_factory=PageTable)
    frames: PageTable = field(default_factory=PageTable)

    @property
    def nbytes(self) -> int:
        """See `FlowCache.nbytes`."""
        tokens, frames = self.page_bytes
        return self.tokens.own * tokens + self.frames.own * frames

    def fork(self) -> TorchCache:
        """See `FlowCache.fork`."""
        return TorchCache(self.page_bytes, self.window, self.tokens.fork(), self.frames.fork(self.window))


PROMPT_CHUNKS = (16, 4, 1)
"""Chunks of a prompt in one call: a voice of 5 s takes two calls instead of five."""


class TorchFlow:
    """`FlowNetworks` in torch.

    Args:
        encoder: in float32, on `device`.
        paged: keeps its past in pages.
        estimator: in float32, on `device`; changed to `dtype`.
        noise: fixed starting noise ``[mels, frames]``.
        cache_bytes: memory for pages, all taken at once. Recorded calls need more besides: a tenth of the pages that
            the largest one reads.
        dtype: precision of the estimator and its pages.
        plan: of the estimator, to run in its stead where it can.
        window: most frames of its own that a stream attends to besides the prompt, in whole chunks; 0 for all (exact).
        graphs: whether calls may be recorded.
    """

    def __init__(
        self,
        config: FlowConfig,
        encoder: nn.Module,
        paged: PagedKind,
        estimator: CausalGuided,
        noise: Float,
        cache_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
        plan: Run | None = None,
        window: int = 0,
        *,
        graphs: bool = True,
    ) -> None:
        self.config, self.noise = config, noise
        self._window = -(-window // config.frame_chunk)
        self._page_bytes = paged.page_bytes(config), PagedSolver.page_bytes(config, dtype)
        count = cache_bytes // sum(self._page_bytes)
        if count < 1:
            raise WeightsError(f"setting flow_cache_mib: one chunk takes {sum(self._page_bytes) / 2**20:.0f} MiB")
        self.encode = PagedNetwork[EncodeJob](
            paged(encoder, config, count, device),
            device,
            PagePool(count),
            config.chunk,
            lambda job: job.cache.tokens,
            lambda job: (job.tokens, job.context, job.context_valid),
            padded=1,
            graphs=graphs,
        )
        parts = estimator, config, count, dtype, device
        solver = TensorrtSolver(plan, *parts) if plan else PagedSolver(*parts)
        self.solve = PagedNetwork[SolveJob](
            solver,
            device,
            PagePool(count),
            config.frame_chunk,
            lambda job: job.cache.frames,
            lambda job: (job.mu, job.cond, job.noise, job.embedding),
            padded=3,
            masks=solver.masks,
            graphs=graphs,
        )

    chunks = PROMPT_CHUNKS
    """See `FlowNetworks.chunks`."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of cache for each mel frame of a stream."""
        tokens, frames = self._page_bytes
        return -(-tokens // (self.config.ratio * self.config.chunk)) + -(-frames // self.config.frame_chunk)

    def open(self) -> TorchCache:
        """See `FlowNetworks.open`."""
        return TorchCache(self._page_bytes, self._window)

    def record(self, streams: int) -> None:
        """Record the calls of up to this many streams, with the plan in them if there is one."""
        config, cache = self.config, self.open()
        ahead = config.lookahead
        tokens, context = np.zeros(config.chunk, np.int64), np.zeros(ahead, np.int64)
        frames, speaker = np.zeros((config.mels, config.frame_chunk), np.float32), np.zeros(config.speaker, np.float32)
        self.solve.record(SolveJob(cache, frames, frames, speaker, frames), streams, self.chunks)
        self.encode.record(EncodeJob(cache, tokens, context, np.zeros(ahead, np.float32)), streams, self.chunks)


PAGED_ENCODERS: dict[str, PagedKind] = {
    "CausalMaskedDiffWithXvec": PagedConformer,
    "CausalMaskedDiffWithDiT": PagedLookahead,
}


@fitting()
def load_flow(weights: Weights, settings: Settings) -> TorchFlow:
    """The flow with its weights, recorded for all streams that the settings allow."""
    config, device = expect(FlowConfig, weights.config.flow), prepare_device(settings)
    network = weights.version.flow
    encoder, estimator = (
        load_module(partial(resolve(name), config), weights, "flow", device) for name in network.modules
    )
    flow = TorchFlow(
        config,
        encoder,
        PAGED_ENCODERS[network.name],
        estimator,
        load_file(weights.file("flow.safetensors"))["noise"],
        flow_cache_bytes(weights, settings),
        DTYPES[settings.precision],
        device,
        load_engine(weights, "flow_estimator", settings),
        settings.flow_window,
        graphs=settings.records_graphs,
    )
    flow.record(settings.max_streams)
    return flow
