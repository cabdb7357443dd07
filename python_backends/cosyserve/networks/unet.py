"""The flow's velocity field: a causal one-level U-Net of resnets and transformer blocks.

Source of the algorithm: upstream flow/decoder.py :: CausalConditionalDecoder. Parameter names are the keys of
``flow.pt``. What a call is given of the past is described in `guided`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import UNetFlowConfig
from cosyserve.networks.attention import Attend, Attention
from cosyserve.networks.guided import Cache, CausalGuided, mish, sinusoid

_TAIL = 2  # left padding of a causal convolution of kernel 3


class GuidedFlow(CausalGuided):
    """The velocity with classifier-free guidance; shapes as in `Guided`."""

    def __init__(self, config: UNetFlowConfig) -> None:
        super().__init__(config, UNet(config))


class UNet(nn.Module):
    """The velocity of R independent rows (no guidance)."""

    def __init__(self, config: UNetFlowConfig) -> None:
        super().__init__()
        width = config.channels
        self.time_mlp = TimeMlp(4 * config.mels, 4 * width)
        self.down_blocks = nn.ModuleList([_Stage(config, 4 * config.mels, tail_conv=True)])
        self.mid_blocks = nn.ModuleList(_Stage(config, width, tail_conv=False) for _ in range(config.mid_blocks))
        self.up_blocks = nn.ModuleList([_Stage(config, 2 * width, tail_conv=True)])
        self.final_block = _CausalBlock(width, width)
        self.final_proj = nn.Conv1d(width, config.mels, 1)

    def forward(self, x: Tensor, mu: Tensor, t: Tensor, speaker: Tensor, cond: Tensor, cache: Cache) -> Tensor:
        """As `CausalGuided.forward` on R plain rows, with the projected ``speaker``, float [R, mels]."""
        time = self.time_mlp(t)
        h = torch.cat([x, mu, speaker[:, :, None].expand_as(x), cond], dim=1)

        (down,), (up,) = self.down_blocks, self.up_blocks
        h, skip = down(h, time, cache)
        for mid in self.mid_blocks:
            h, _ = mid(h, time, cache)
        h, _ = up(torch.cat([h, skip], dim=1), time, cache)
        v: Tensor = self.final_proj(self.final_block(h, cache))
        return v


class TimeMlp(nn.Module):
    """Flow time [rows] to [rows, width]: sinusoids, then two layers."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)
        self.channels = inputs

    def forward(self, t: Tensor) -> Tensor:
        embedded = sinusoid(t, self.channels)
        out: Tensor = self.linear_2(F.silu(self.linear_1(embedded)))
        return out


class _Stage(nn.ModuleList):
    """Resnet, transformer blocks and, at the two outer stages, a causal convolution."""

    def __init__(self, config: UNetFlowConfig, inputs: int, *, tail_conv: bool) -> None:
        width = config.channels
        blocks = (TransformerBlock(width, config.unet_heads, config.unet_head_dim) for _ in range(config.unet_blocks))
        conv = [nn.Conv1d(width, width, _TAIL + 1)] if tail_conv else []
        super().__init__([_Resnet(inputs, width, 4 * width), nn.ModuleList(blocks), *conv])

    def forward(self, x: Tensor, time: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """The stage's output and what it was before the convolution (the skip connection)."""
        resnet, blocks, *conv = self
        x = resnet(x, time, cache).mT
        for block in cast(nn.ModuleList, blocks):
            x = block(x, cache.attend)
        x = x.mT
        return (cache.convolve(conv[0], x) if conv else x), x


class _Resnet(nn.Module):
    def __init__(self, inputs: int, width: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Mish(), nn.Linear(time_width, width))
        self.block1 = _CausalBlock(inputs, width)
        self.block2 = _CausalBlock(width, width)
        self.res_conv = nn.Conv1d(inputs, width, 1)

    def forward(self, x: Tensor, time: Tensor, cache: Cache) -> Tensor:
        h = self.block1(x, cache) + self.mlp(time)[:, :, None]
        out: Tensor = self.block2(h, cache) + self.res_conv(x)
        return out


class _CausalBlock(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        # Upstream keeps a parameterless transpose at index 1, so the norm's keys say 2.
        self.block = nn.ModuleDict({"0": nn.Conv1d(inputs, width, _TAIL + 1), "2": nn.LayerNorm(width, eps=1e-5)})

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        h = cache.convolve(self.block["0"], x)
        return mish(self.block["2"](h.mT)).mT


class Mish(nn.Module):
    """`mish` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return mish(x)


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward on [rows, n, width]; `attend` mixes values by scaled queries and keys."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attn1 = Attention(width, heads, head_dim, bias=False)
        self.norm3 = nn.LayerNorm(width, eps=1e-5)
        self.ff = _FeedForward(width, 4 * width)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = x + self.attn1(self.norm1(x), attend)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        # Upstream keeps dropout at index 1.
        self.net = nn.ModuleDict({"0": nn.ModuleDict({"proj": nn.Linear(width, inner)}), "2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        h = cast(nn.ModuleDict, self.net["0"])["proj"](x)
        out: Tensor = self.net["2"](F.gelu(h))
        return out
