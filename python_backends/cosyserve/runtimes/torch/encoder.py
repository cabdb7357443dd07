"""The flow's encoders over pages. Always float32: their pages are small beside the estimator's."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from cosyserve.config import DitFlowConfig, UNetFlowConfig
from cosyserve.networks.flow_encoder import FlowEncoder
from cosyserve.networks.lookahead import TAIL, LookaheadEncoder
from cosyserve.runtimes.torch.network import Places
from cosyserve.runtimes.torch.paged_kv_cache import EMPTY, RESERVED


class PagedEncoder(Protocol):
    """An encoder that keeps what a whole chunk leaves for the next in a page."""

    def __call__(
        self, places: Places, tokens: Tensor, context: Tensor, context_valid: Tensor, *, chunks: int
    ) -> tuple[Tensor]:
        """mu [B, mels, ratio * n]; see `FlowEncoder.forward` for the arrays."""
        ...


class PagedConformer:
    """`FlowEncoder` that keeps a whole chunk's keys, values and convolution tails in a page.

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
        self, places: Places, tokens: Tensor, context: Tensor, context_valid: Tensor, *, chunks: int
    ) -> tuple[Tensor]:
        """See `PagedEncoder`."""
        *layers, conv_tail, up_tail = self._memory
        past = [layer[places.table].transpose(1, 2).flatten(2, 3) for layer in layers]
        half = len(layers) // 2
        mu, conv_tail_out, up_tail_out, new_k, new_v = self._module(
            tokens,
            context,
            context_valid,
            self._chunk * places.filled,
            conv_tail[places.last],
            up_tail[places.last],
            past[:half],
            past[half:],
            places.valid,
            self._chunk if chunks > 1 else None,
        )
        if tokens.shape[1] == chunks * self._chunk:
            pages = places.fresh.flatten()
            for part, new in zip(layers, [*new_k, *new_v], strict=True):
                part.index_copy_(0, pages, new.unflatten(2, (chunks, -1)).transpose(1, 2).flatten(0, 1))
            # What goes on from here reads the tails of the last page only.
            conv_tail.index_copy_(0, places.fresh[:, -1], conv_tail_out)
            up_tail.index_copy_(0, places.fresh[:, -1], up_tail_out)
        return (mu,)


class PagedLookahead:
    """`LookaheadEncoder` that keeps a whole chunk's convolution tail in a page; see `PagedConformer`."""

    def __init__(self, module: LookaheadEncoder, config: DitFlowConfig, pages: int, device: torch.device) -> None:
        self._module = module
        self._chunk = config.chunk
        self._tails = torch.zeros(pages + RESERVED, config.lookahead_channels, TAIL, device=device)

    @staticmethod
    def page_bytes(config: DitFlowConfig) -> int:
        """Bytes of one page."""
        return 4 * config.lookahead_channels * TAIL

    def __call__(
        self, places: Places, tokens: Tensor, context: Tensor, context_valid: Tensor, *, chunks: int
    ) -> tuple[Tensor]:
        """See `PagedEncoder`."""
        mu, tail = self._module(tokens, context, context_valid, self._tails[places.last], places.valid)
        if tokens.shape[1] == chunks * self._chunk:
            self._tails.index_copy_(0, places.fresh[:, -1], tail)
        return (mu,)


class PagedKind(Protocol):
    """The class of a `PagedEncoder`."""

    def __call__(self, module: Any, config: Any, pages: int, device: torch.device, /) -> PagedEncoder:
        """An encoder with its pages."""
        ...

    def page_bytes(self, config: Any, /) -> int:
        """Bytes of one page."""
        ...
