"""The flow's velocity field: a causal one-level U-Net of resnets and transformer blocks.

Source of the algorithm: upstream flow/decoder.py :: CausalConditionalDecoder. Parameter names are the keys of
``flow.pt``. What a call is given of the past is described in `guided`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosyserve.config import UNetFlowConfig
from cosyserve.networks.guided import Cache, CausalGuided, Estimator, mish
from cosyserve.networks.unet_layers import Stage, Surroundings, TimeMlp, joined

_TAIL = 2  # left padding of a causal convolution of kernel 3


class GuidedFlow(CausalGuided):
    """The velocity with classifier-free guidance; shapes as in `Guided`."""

    def __init__(self, config: UNetFlowConfig) -> None:
        super().__init__(config, UNet(config))


class UNet(Estimator):
    """The velocity of R independent rows (no guidance)."""

    def __init__(self, config: UNetFlowConfig) -> None:
        super().__init__()
        width = config.channels
        self.time_mlp = TimeMlp(4 * config.mels, 4 * width)
        self.down_blocks = nn.ModuleList([_stage(config, 4 * config.mels, _conv(width, width))])
        self.mid_blocks = nn.ModuleList(_stage(config, width) for _ in range(config.mid_blocks))
        self.up_blocks = nn.ModuleList([_stage(config, 2 * width, _conv(width, width))])
        self.final_block = _CausalBlock(width, width)
        self.final_proj = nn.Conv1d(width, config.mels, 1)

    @property
    def time(self) -> nn.Module:
        """See `Estimator.time`."""
        return self.time_mlp

    def forward(self, x: Tensor, mu: Tensor, t: Tensor, speaker: Tensor, cond: Tensor, cache: Cache) -> Tensor:
        """As `CausalGuided.forward` on R plain rows, with the projected ``speaker``, float [R, mels]."""
        time = self.time_mlp(t)
        h = joined(x, mu, speaker, cond)
        (down,), (up,) = self.down_blocks, self.up_blocks
        h, skip = down(h, time, cache)
        for mid in self.mid_blocks:
            h, _ = mid(h, time, cache)
        h, _ = up(torch.cat([h, skip], dim=1), time, cache)
        v: Tensor = self.final_proj(self.final_block(h, cache))
        return v


def _stage(config: UNetFlowConfig, inputs: int, conv: nn.Module | None = None) -> Stage:
    return Stage(_CausalBlock, config, inputs, config.channels, 4 * config.channels, conv)


class _CausalBlock(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        # Upstream keeps a parameterless transpose at index 1, so the norm's keys say 2.
        self.block = nn.ModuleDict({"0": _conv(inputs, width), "2": nn.LayerNorm(width, eps=1e-5)})

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        h = around.convolve(self.block["0"], x)
        return mish(self.block["2"](h.mT)).mT


def _conv(inputs: int, width: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, width, _TAIL + 1)
