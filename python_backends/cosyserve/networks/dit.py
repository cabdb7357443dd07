"""The flow's velocity field as a diffusion transformer.

Source of the algorithm: upstream flow/DiT/dit.py :: DiT and flow/DiT/modules.py. Parameter names are the keys of
``flow.pt``. What a call is given of the past is described in `guided`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import DIT_GROUPS, DIT_TIME, DitFlowConfig
from cosyserve.networks.attention import Attention
from cosyserve.networks.guided import Cache, CausalGuided, Estimator, mish, sinusoid


class GuidedDit(CausalGuided):
    """The velocity with classifier-free guidance; shapes as in `Guided`."""

    def __init__(self, config: DitFlowConfig) -> None:
        super().__init__(config, Dit(config))


class Dit(Estimator):
    """The velocity of R independent rows (no guidance)."""

    def __init__(self, config: DitFlowConfig) -> None:
        super().__init__()
        width = config.dit_width
        self.time_embed = _TimeEmbedding(width)
        self.input_embed = _InputEmbedding(config)
        self.rotary_embed = _Rotary(config.dit_head_dim)
        self.transformer_blocks = nn.ModuleList(_Block(config) for _ in range(config.dit_blocks))
        self.norm_out = nn.ModuleDict({"linear": nn.Linear(width, 2 * width)})
        self.proj_out = nn.Linear(width, config.mels)

    @property
    def time(self) -> nn.Module:
        """See `Estimator.time`."""
        return self.time_embed

    def forward(
        self, x: Tensor, mu: Tensor, t: Tensor, speaker: Tensor, cond: Tensor, position: Tensor, cache: Cache
    ) -> Tensor:
        """As `CausalGuided.forward` on R plain rows, with the projected ``speaker``, float [R, mels]."""
        time = F.silu(self.time_embed(t))
        y = self.input_embed(x, cond, mu, speaker, cache)
        rotary = self.rotary_embed(position, y)
        for block in self.transformer_blocks:
            y = block(y, time, rotary, cache)
        scale, shift = self.norm_out["linear"](time)[:, None].chunk(2, dim=-1)
        v: Tensor = self.proj_out(_norm(y) * (1 + scale) + shift)
        return v.mT


class _TimeEmbedding(nn.Module):
    """Flow time [rows] to [rows, width]: sinusoids, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Upstream keeps the activation at index 1.
        self.time_mlp = nn.ModuleDict({"0": nn.Linear(DIT_TIME, width), "2": nn.Linear(width, width)})

    def forward(self, t: Tensor) -> Tensor:
        embedded: Tensor = self.time_mlp["2"](F.silu(self.time_mlp["0"](sinusoid(t, DIT_TIME))))
        return embedded


class _InputEmbedding(nn.Module):
    def __init__(self, config: DitFlowConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(4 * config.mels, config.dit_width)
        self.conv_pos_embed = nn.ModuleDict(
            {
                # Upstream keeps the activation at index 1.
                f"conv{index}": nn.ModuleList([nn.Conv1d(channels, channels, frames + 1, groups=DIT_GROUPS)])
                for index, (channels, frames) in enumerate(config.tails, start=1)
            }
        )

    def forward(self, x: Tensor, cond: Tensor, mu: Tensor, speaker: Tensor, cache: Cache) -> Tensor:
        """All [R, mels, n] but the speaker [R, mels], to [R, n, width]."""
        y = self.proj(torch.cat([x, cond, mu, speaker[:, :, None].expand_as(x)], dim=1).mT).mT
        h = y
        for layers in self.conv_pos_embed.values():
            h = mish(cache.convolve(cast(nn.ModuleList, layers)[0], h))
        out: Tensor = (y + h).mT
        return out


class _Rotary(nn.Module):
    """Angles of rotary embedding; upstream stores their rates in the checkpoint."""

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1e4 ** -(torch.arange(0, dim, 2).float() / dim))

    def _apply(self, fn: Any, recurse: bool = True) -> _Rotary:
        # Half precision rounds a rate by so much that after 10 s its angle is a tenth of a turn away.
        kept = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inv_freq = kept.to(self.inv_freq.device)
        return self

    def forward(self, position: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [R, 1, n, dim / 2] of the frames of x [R, n, width], of which `position` [R] is the first."""
        frames = position[:, None] + torch.arange(x.shape[1], device=x.device)
        angles = frames[:, None, :, None].float() * self.inv_freq.float()
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class _Block(nn.Module):
    def __init__(self, config: DitFlowConfig) -> None:
        super().__init__()
        width = config.dit_width
        self.attn_norm = nn.ModuleDict({"linear": nn.Linear(width, 6 * width)})
        self.attn = Attention(width, config.dit_heads, config.dit_head_dim, bias=True)
        self.ff = _FeedForward(width, config.dit_feed_forward)

    def forward(self, y: Tensor, time: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache) -> Tensor:
        modulation = self.attn_norm["linear"](time)[:, None].chunk(6, dim=-1)
        attn_shift, attn_scale, attn_gate, ff_shift, ff_scale, ff_gate = modulation

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return cache.attend(_rotate_first(q, rotary), _rotate_first(k, rotary), v)

        y = y + attn_gate * self.attn(_norm(y) * (1 + attn_scale) + attn_shift, attend)
        out: Tensor = y + ff_gate * self.ff(_norm(y) * (1 + ff_scale) + ff_shift)
        return out


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        # Upstream keeps the activation and dropout at the indices between.
        self.ff = nn.ModuleDict({"0": nn.ModuleList([nn.Linear(width, inner)]), "2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(cast(nn.ModuleList, self.ff["0"])[0](x), approximate="tanh")
        out: Tensor = self.ff["2"](h)
        return out


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _rotate_first(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """The first head of x [R, heads, n, dim] turned by its positions, in pairs of neighbouring channels.

    Upstream turns the first `dim` channels before it splits them into heads, so that the other heads know no position.
    """
    cos, sin = rotary
    first, rest = x[:, :1], x[:, 1:]
    even, odd = first[..., 0::2], first[..., 1::2]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=1)
