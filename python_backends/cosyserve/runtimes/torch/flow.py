"""The flow on the device: what crosses to the host are speech tokens, mu and mel."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors.numpy import load_file

from cosyserve.config import UNetFlowConfig, expect
from cosyserve.errors import WeightsError
from cosyserve.flow.networks import EncodeJob, Float, SolveJob
from cosyserve.networks.flow_encoder import FlowEncoder
from cosyserve.networks.unet import GuidedFlow
from cosyserve.runtimes.torch.encoder import PagedEncoder
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


class TorchFlow:
    """`FlowNetworks` in torch.

    Args:
        encoder: in float32, on `device`.
        estimator: likewise; changed to `dtype`.
        noise: fixed starting noise ``[mels, frames]``.
        cache_bytes: memory for pages, all taken at once. Recorded calls need more besides: a tenth of the pages that
            the largest one reads.
        dtype: precision of the estimator and its pages.
        plan: of the estimator, to run in its stead where it can.
        window: most frames of its own that a stream attends to besides the prompt, in whole chunks; 0 for all (exact).
    """

    def __init__(
        self,
        config: UNetFlowConfig,
        encoder: FlowEncoder,
        estimator: GuidedFlow,
        noise: Float,
        cache_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
        plan: Run | None = None,
        window: int = 0,
    ) -> None:
        self.config, self.noise = config, noise
        self._window = -(-window // config.unet_chunk)
        self._plan = plan
        self._page_bytes = PagedEncoder.page_bytes(config), PagedSolver.page_bytes(config, dtype)
        count = cache_bytes // sum(self._page_bytes)
        if count < 1:
            raise WeightsError(f"setting flow_cache_mib: one chunk takes {sum(self._page_bytes) / 2**20:.0f} MiB")
        self.encode = PagedNetwork[EncodeJob](
            PagedEncoder(encoder, config, count, device),
            device,
            PagePool(count),
            config.chunk,
            lambda job: job.cache.tokens,
            lambda job: (job.tokens, job.context, job.context_valid),
        )
        parts = estimator, config, count, dtype, device
        self.solve = PagedNetwork[SolveJob](
            TensorrtSolver(plan, *parts) if plan else PagedSolver(*parts),
            device,
            PagePool(count),
            config.unet_chunk,
            lambda job: job.cache.frames,
            lambda job: (job.mu, job.cond, job.noise, job.embedding),
        )

    @property
    def frame_bytes(self) -> int:
        """Bytes of cache for each mel frame of a stream."""
        tokens, frames = self._page_bytes
        return -(-tokens // (self.config.ratio * self.config.chunk)) + -(-frames // self.config.unet_chunk)

    def open(self) -> TorchCache:
        """See `FlowNetworks.open`."""
        return TorchCache(self._page_bytes, self._window)

    def record(self, streams: int) -> None:
        """Record the calls of up to this many streams; a plan is one launch as it is."""
        config, cache = self.config, self.open()
        ahead = config.lookahead
        tokens, context = np.zeros(config.chunk, np.int64), np.zeros(ahead, np.int64)
        frames, speaker = np.zeros((config.mels, config.unet_chunk), np.float32), np.zeros(config.speaker, np.float32)
        if self._plan is None:
            self.solve.record(SolveJob(cache, frames, frames, speaker, frames), streams)
        self.encode.record(EncodeJob(cache, tokens, context, np.zeros(ahead, np.float32)), streams)


@fitting()
def load_flow(weights: Weights, settings: Settings) -> TorchFlow:
    """The flow with its weights, recorded for all streams that the settings allow."""
    config, device = expect(UNetFlowConfig, weights.config.flow), prepare_device(settings)
    flow = TorchFlow(
        config,
        load_module(lambda: FlowEncoder(config), weights, "flow", device),
        load_module(lambda: GuidedFlow(config), weights, "flow", device),
        load_file(weights.file("flow.safetensors"))["noise"],
        settings.flow_cache_mib * 2**20,
        DTYPES[settings.precision],
        device,
        load_engine(weights, "flow_estimator", settings),
        settings.flow_window,
    )
    flow.record(settings.max_streams)
    return flow
