"""Layers of the U-Nets of CosyVoice 1 and 2: stages of a resnet and transformer blocks, and the embedding of flow time.

Source of the algorithm: upstream flow/decoder.py :: ConditionalDecoder, CausalConditionalDecoder. Parameter names are
the keys of ``flow.pt``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import UNetFlowConfig, WindowFlowConfig
from cosyserve.networks.attention import Attend, Attention
from cosyserve.networks.guided import mish, sinusoid


class Surroundings(Protocol):
    """How a layer sees the frames around its own: of a chunk the past (`Cache`), of a window the window itself."""

    def convolve(self, conv: nn.Module, x: Tensor) -> Tensor:
        """The convolution of x [rows, channels, n]."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Attend`."""


def joined(x: Tensor, mu: Tensor, speaker: Tensor, cond: Tensor) -> Tensor:
    """The inputs [rows, mels, n], of which the speaker is [rows, mels], as channels [rows, 4 * mels, n]."""
    return torch.cat([x, mu, speaker[:, :, None].expand_as(x), cond], dim=1)


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


class Stage(nn.ModuleList):
    """Resnet, transformer blocks and, at some stages, a convolution.

    Args:
        block: makes half a resnet from its channels in and out; called with [rows, channels, n] and `Surroundings`.
        time: channels of the embedded flow time.
        conv: may change the resolution.
    """

    def __init__(
        self,
        block: Callable[[int, int], nn.Module],
        config: UNetFlowConfig | WindowFlowConfig,
        inputs: int,
        width: int,
        time: int,
        conv: nn.Module | None = None,
    ) -> None:
        blocks = (_TransformerBlock(width, config.unet_heads, config.unet_head_dim) for _ in range(config.unet_blocks))
        resnet = _Resnet(block, inputs, width, time)
        super().__init__([resnet, nn.ModuleList(blocks), *([conv] if conv else [])])

    def forward(self, x: Tensor, time: Tensor, around: Surroundings) -> tuple[Tensor, Tensor]:
        """The stage's output and what it was before the convolution (the skip connection)."""
        resnet, blocks, *conv = self
        x = resnet(x, time, around).mT
        for block in cast(nn.ModuleList, blocks):
            x = block(x, around.attend)
        x = x.mT
        return (around.convolve(conv[0], x) if conv else x), x


class _Resnet(nn.Module):
    def __init__(self, block: Callable[[int, int], nn.Module], inputs: int, width: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(_Mish(), nn.Linear(time, width))
        self.block1 = block(inputs, width)
        self.block2 = block(width, width)
        self.res_conv = nn.Conv1d(inputs, width, 1)

    def forward(self, x: Tensor, time: Tensor, around: Surroundings) -> Tensor:
        h = self.block1(x, around) + self.mlp(time)[:, :, None]
        out: Tensor = self.block2(h, around) + self.res_conv(x)
        return out


class _Mish(nn.Module):
    """`mish` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return mish(x)


class _TransformerBlock(nn.Module):
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
