"""Attention that scores keys by content and by distance, and the conformer layer around it.

Source of the algorithm: upstream transformer/attention.py :: RelPositionMultiHeadedAttention,
transformer/embedding.py :: EspnetRelPositionalEncoding and transformer/encoder_layer.py :: ConformerEncoderLayer.
Parameter names are the keys of the checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.networks.attention import by_heads


class Embed(nn.Module):
    """What stands before the layers: linear, norm, and the scale that positions are added at."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width, eps=1e-5))
        self.scale = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, inputs] to [B, n, W]."""
        out: Tensor = self.out(x)
        return out * self.scale


class RelativeAttention(nn.Module):
    """Attention with a learned content bias u and a learned position bias v (Transformer-XL, as in ESPnet)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, self.head_dim))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, self.head_dim))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, heads, n, dk] of x [B, n, W]."""
        return self._split(self.linear_q(x)), self._split(self.linear_k(x)), self._split(self.linear_v(x))

    def forward(self, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        """Attend.

        Args:
            q: [B, heads, n, dk].
            keys: the n new ones behind those of the past, [B, heads, past + n, dk].
            values: same shape.
            positions: `distance_rows` of past and n.
            bias: added to the scores, broadcast to [B, heads, n, past + n].

        Returns:
            [B, n, W].
        """
        p = self._split(self.linear_pos(positions))
        content = (q + self.pos_bias_u[:, None]) @ keys.mT
        position = _align((q + self.pos_bias_v[:, None]) @ p.mT)
        weights = ((content + position) * self.head_dim**-0.5 + bias).softmax(-1)
        return self.merge(weights @ values)

    def _split(self, x: Tensor) -> Tensor:
        return by_heads(x, self.heads, self.head_dim)

    def merge(self, out: Tensor) -> Tensor:
        """Mixed values [B, heads, n, dk] to the layer's output [B, n, W]."""
        batch, _, new, _ = out.shape
        merged: Tensor = self.linear_out(out.transpose(1, 2).reshape(batch, new, self.heads * self.head_dim))
        return merged


class FeedForward(nn.Module):
    """Two linear layers with a SiLU (conformer) or a ReLU (``relu``) between them."""

    def __init__(self, width: int, inner: int, *, relu: bool = False) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)
        self.activation = F.relu if relu else F.silu

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, W] to the same shape."""
        out: Tensor = self.w_2(self.activation(self.w_1(x)))
        return out


class ConformerLayer(nn.Module):
    """Pre-norm layer without convolution."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(width, heads)
        self.feed_forward = FeedForward(width, inner)
        self.norm_ff = nn.LayerNorm(width, eps=1e-12)
        self.norm_mha = nn.LayerNorm(width, eps=1e-12)

    def forward(
        self, x: Tensor, positions: Tensor, bias: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, n, W] behind a past; also returns the new keys and values [B, heads, n, dk]."""
        q, k, v = self.self_attn.project(self.norm_mha(x))
        keys, values = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        return self._finish(x, self.self_attn(q, keys, values, positions, bias)), k, v

    def whole(self, x: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        """x [B, n, W] without a past."""
        return self._finish(x, self.self_attn(*self.self_attn.project(self.norm_mha(x)), positions, bias))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + attended
        out: Tensor = x + self.feed_forward(self.norm_ff(x))
        return out


class Conformer(nn.Module):
    """A whole sequence at once (upstream transformer/encoder.py :: ConformerEncoder)."""

    def __init__(self, inputs: int, width: int, heads: int, inner: int, blocks: int) -> None:
        super().__init__()
        self.embed = Embed(inputs, width)
        self.encoders = nn.ModuleList(ConformerLayer(width, heads, inner) for _ in range(blocks))
        self.after_norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, n, inputs] to [B, n, W]; `bias` is added to the scores, broadcast to [B, heads, n, n]."""
        x = self.embed(x)
        positions = distance_rows(0, x)
        for layer in self.encoders:
            assert isinstance(layer, ConformerLayer)
            x = layer.whole(x, positions, bias)
        out: Tensor = self.after_norm(x)
        return out


def distance_rows(past: int, x: Tensor) -> Tensor:
    """Sinusoids [1, past + 2n - 1, W] of the distances past+n-1 (oldest key, newest query) down to 1-n."""
    new = x.shape[1]
    distances = (past + new - 1) - torch.arange(past + 2 * new - 1, device=x.device)
    return sinusoids(distances, x.shape[2]).to(x.dtype)


def sinusoids(distances: Tensor, width: int) -> Tensor:
    """Float32 [1, n, width] of distances [n]: sine and cosine by turns, ever slower."""
    even = torch.arange(0, width, 2, device=distances.device, dtype=torch.float32)
    angles = distances[:, None].float() * torch.exp(even * -(math.log(1e4) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).view(1, -1, width)


def _align(scores: Tensor) -> Tensor:
    """Scores per distance [.., n, past + 2n - 1] to scores per key [.., n, past + n].

    Query i meets key j at row j + (n - 1 - i): reading a row-padded copy one element later per row does that shift.
    """
    batch, heads, new, rows = scores.shape
    flat = F.pad(scores, (0, 1)).reshape(batch, heads, new * (rows + 1))
    shifted = flat[:, :, new - 1 :][:, :, : new * rows].reshape(batch, heads, new, rows)
    return shifted[:, :, :, : rows - new + 1]
