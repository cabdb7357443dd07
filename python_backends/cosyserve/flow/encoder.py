"""Speech tokens to mu, one chunk at a time.

Source of the algorithm: upstream transformer/upsample_encoder.py :: UpsampleConformerEncoder (with
transformer/attention.py :: RelPositionMultiHeadedAttention) and the first half of
flow/flow.py :: CausalMaskedDiffWithXvec.inference. Parameter names are the keys of ``flow.pt``.

Upstream masks attention so that a position sees its own chunk and everything before it. Here each call is one chunk and
its past, so nothing is left to mask; the whole utterance in one call is upstream's non-streaming mode.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import UNetFlowConfig
from cosyserve.flow.lookahead import PreLookahead


class FlowEncoder(nn.Module):
    """Encode n more tokens into n * ratio frames of mu.

    Shapes: B streams, n new tokens, P room for past tokens (may be 0), W encoder channels, L lookahead, dk channels
    per head.
    """

    def __init__(self, config: UNetFlowConfig) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(config.tokens, config.width)
        self.encoder = _Conformer(config)
        self.encoder_proj = nn.Linear(config.width, config.mels)

    def forward(
        self,
        tokens: Tensor,
        context: Tensor,
        context_valid: Tensor,
        length: Tensor,
        conv_tail: Tensor,
        up_tail: Tensor,
        past_k: list[Tensor],
        past_v: list[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Encode one chunk.

        Args:
            tokens: int64 [B, n]; negative ids read row 0.
            context: the L tokens after the chunk, int64 [B, L].
            context_valid: 1.0 where that token exists, 0.0 past the end of the text, float [B, L].
            length: past tokens of each stream, int64 [B]. They lie at the end of P, so that a distance to a key is the
                same in every row; what lies before them may hold any finite value.
            conv_tail: last inputs of the lookahead layer's second convolution, float [B, W, 2]; zeros at the start.
            up_tail: last inputs of the up-sampling convolution, float [B, W, 2 * ratio]; zeros at the start.
            past_k: keys per layer, float [B, heads, P, dk], behind the up-sampling [B, heads, ratio * P, dk].
            past_v: values, same shapes.

        Returns:
            mu [B, mels, ratio * n], both tails for the next call, and per layer keys and values of the new positions.
        """
        hidden, conv_tail, up_tail, new_k, new_v = self.hidden(
            tokens, context, context_valid, length, conv_tail, up_tail, past_k, past_v
        )
        return self.encoder_proj(hidden).mT, conv_tail, up_tail, new_k, new_v

    def hidden(
        self,
        tokens: Tensor,
        context: Tensor,
        context_valid: Tensor,
        length: Tensor,
        conv_tail: Tensor,
        up_tail: Tensor,
        past_k: list[Tensor],
        past_v: list[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
        """As `forward`, with the hidden states before the projection [B, ratio * n, W] instead of mu."""
        encoder = self.encoder
        x = encoder.embed(self.input_embedding(tokens.clamp(min=0)))
        ahead = encoder.embed(self.input_embedding(context.clamp(min=0))) * context_valid[:, :, None]

        x, conv_tail = encoder.pre_lookahead_layer(x, ahead, conv_tail)
        split = len(encoder.encoders)
        x, new_k, new_v = _run(encoder.encoders, x, length, past_k[:split], past_v[:split])

        x, up_tail = encoder.up_layer(x, up_tail)
        x = encoder.up_embed(x)
        ratio = encoder.up_layer.ratio
        x, up_k, up_v = _run(encoder.up_encoders, x, ratio * length, past_k[split:], past_v[split:])
        x = encoder.after_norm(x)
        return x, conv_tail, up_tail, new_k + up_k, new_v + up_v


class _Conformer(nn.Module):
    def __init__(self, config: UNetFlowConfig) -> None:
        super().__init__()
        self.embed = _Embed(config.width)
        self.pre_lookahead_layer = PreLookahead(config.width, config.width, config.lookahead)
        self.encoders = nn.ModuleList(_Layer(config) for _ in range(config.blocks))
        self.up_layer = _UpSample(config.width, config.ratio)
        self.up_embed = _Embed(config.width)
        self.up_encoders = nn.ModuleList(_Layer(config) for _ in range(config.up_blocks))
        self.after_norm = nn.LayerNorm(config.width, eps=1e-5)


class _Embed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width, eps=1e-5))
        self.scale = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(x)
        return out * self.scale


class _UpSample(nn.Module):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv1d(width, width, 2 * ratio + 1)

    def forward(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        h = x.repeat_interleave(self.ratio, dim=1).mT
        h = torch.cat([tail, h], dim=2)
        return self.conv(h).mT, h[:, :, -2 * self.ratio :]


class _Layer(nn.Module):
    def __init__(self, config: UNetFlowConfig) -> None:
        super().__init__()
        self.self_attn = _RelativeAttention(config.width, config.heads)
        self.feed_forward = _FeedForward(config.width, config.feed_forward)
        self.norm_ff = nn.LayerNorm(config.width, eps=1e-12)
        self.norm_mha = nn.LayerNorm(config.width, eps=1e-12)

    def forward(
        self, x: Tensor, positions: Tensor, unused: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, k, v = self.self_attn(self.norm_mha(x), positions, unused, past_k, past_v)
        x = x + attended
        return x + self.feed_forward(self.norm_ff(x)), k, v


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(F.silu(self.w_1(x)))
        return out


class _RelativeAttention(nn.Module):
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

    def forward(
        self, x: Tensor, positions: Tensor, unused: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, new, width = x.shape
        q, k, v = self._split(self.linear_q(x)), self._split(self.linear_k(x)), self._split(self.linear_v(x))
        p = self._split(self.linear_pos(positions))
        keys, values = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)

        content = (q + self.pos_bias_u[:, None]) @ keys.mT
        position = _align((q + self.pos_bias_v[:, None]) @ p.mT)
        weights = ((content + position) * self.head_dim**-0.5 + unused).softmax(-1)

        out = (weights @ values).transpose(1, 2).reshape(batch, new, width)
        return self.linear_out(out), k, v

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_dim).transpose(1, 2)


def _run(
    layers: nn.ModuleList, x: Tensor, length: Tensor, past_k: list[Tensor], past_v: list[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    room = past_k[0].shape[2]
    positions = _distance_rows(room, x)
    keys = torch.arange(room + x.shape[1], device=x.device)
    unused = torch.where(keys < (room - length)[:, None], float("-inf"), 0.0).to(x.dtype)[:, None, None, :]
    new_k: list[Tensor] = []
    new_v: list[Tensor] = []
    for layer, k, v in zip(layers, past_k, past_v, strict=True):
        x, layer_k, layer_v = layer(x, positions, unused, k, v)
        new_k.append(layer_k)
        new_v.append(layer_v)
    return x, new_k, new_v


def _distance_rows(past: int, x: Tensor) -> Tensor:
    """Sinusoids [1, past + 2n - 1, W] of the distances past+n-1 (oldest key, newest query) down to 1-n."""
    _, new, width = x.shape
    rates = torch.exp(torch.arange(0, width, 2, device=x.device, dtype=torch.float32) * -(math.log(1e4) / width))
    distances = (past + new - 1) - torch.arange(past + 2 * new - 1, device=x.device)
    angles = distances[:, None].float() * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).view(1, -1, width).to(x.dtype)


def _align(scores: Tensor) -> Tensor:
    """Scores per distance [.., n, past + 2n - 1] to scores per key [.., n, past + n].

    Query i meets key j at row j + (n - 1 - i): reading a row-padded copy one element later per row does that shift.
    """
    batch, heads, new, rows = scores.shape
    flat = F.pad(scores, (0, 1)).reshape(batch, heads, new * (rows + 1))
    shifted = flat[:, :, new - 1 :][:, :, : new * rows].reshape(batch, heads, new, rows)
    return shifted[:, :, :, : rows - new + 1]
