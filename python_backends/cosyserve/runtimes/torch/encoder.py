"""The flow's encoder over pages."""

from __future__ import annotations

import torch
from torch import Tensor

from cosyserve.config import UNetFlowConfig
from cosyserve.networks.flow_encoder import FlowEncoder
from cosyserve.runtimes.torch.paged_kv_cache import EMPTY, RESERVED


class PagedEncoder:
    """`FlowEncoder` that keeps a whole chunk's keys, values and convolution tails in a page.

    Always float32: its page is small beside the estimator's.

    Args:
        module: on its device.
        pages: to make room for, besides the reserved ones.
    """

    def __init__(self, module: FlowEncoder, config: UNetFlowConfig, pages: int, device: torch.device) -> None:
        self._module = module
        self._chunk = config.chunk
        room, width, dim = pages + RESERVED, config.width, config.width // config.heads
        positions = [config.chunk] * config.blocks + [config.ratio * config.chunk] * config.up_blocks
        shapes = [(room, config.heads, n, dim) for n in positions]
        tails = [(room, width, 2), (room, width, 2 * config.ratio)]
        # Keys of each layer, then values, then the two tails.
        self._memory = [torch.empty(shape, device=device) for shape in [*shapes, *shapes, *tails]]
        for part in self._memory:
            part[EMPTY] = 0

    @staticmethod
    def page_bytes(config: UNetFlowConfig) -> int:
        """Bytes of one page, its tails left out."""
        return 4 * 2 * config.width * config.chunk * (config.blocks + config.ratio * config.up_blocks)

    def __call__(
        self,
        table: Tensor,
        count: Tensor,
        last: Tensor,
        fresh: Tensor,
        tokens: Tensor,
        context: Tensor,
        context_valid: Tensor,
    ) -> tuple[Tensor]:
        """mu [B, mels, ratio * n]; see `PagedNetwork` for the first four and `FlowEncoder.forward` for the others."""
        *layers, conv_tail, up_tail = self._memory
        past = [layer[table].transpose(1, 2).flatten(2, 3) for layer in layers]
        half = len(layers) // 2
        mu, conv_tail_out, up_tail_out, new_k, new_v = self._module(
            tokens,
            context,
            context_valid,
            self._chunk * count,
            conv_tail[last],
            up_tail[last],
            past[:half],
            past[half:],
        )
        if tokens.shape[1] == self._chunk:
            for part, new in zip(self._memory, [*new_k, *new_v, conv_tail_out, up_tail_out], strict=True):
                part.index_copy_(0, fresh, new)
        return (mu,)
