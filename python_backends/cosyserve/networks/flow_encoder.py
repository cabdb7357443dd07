"""Speech tokens to mu, one chunk at a time.

Source of the algorithm: upstream transformer/upsample_encoder.py :: UpsampleConformerEncoder (with
transformer/attention.py :: RelPositionMultiHeadedAttention) and the first half of
flow/flow.py :: CausalMaskedDiffWithXvec.inference. Parameter names are the keys of ``flow.pt``.

Upstream masks attention so that a position sees its own chunk and everything before it. Here each call is one chunk and
its past, so nothing is left to mask; the whole utterance in one call is upstream's non-streaming mode.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosyserve.config import UNetFlowConfig
from cosyserve.networks.conformer import ConformerLayer, Embed, distance_rows
from cosyserve.networks.lookahead import PreLookahead, without_padding


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
        valid: Tensor | None = None,
        chunk: int | None = None,
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
            valid: of the n tokens those that are there, int64 [B]; what follows only pads the chunk, and no frame of a
                valid token depends on it. None: all.
            chunk: tokens of each of the chunks that the n tokens are; each sees itself and those before it. None: all
                are one chunk.

        Returns:
            mu [B, mels, ratio * n], both tails for the next call, and per layer keys and values of the new positions.
        """
        encoder = self.encoder
        x = encoder.embed(self.input_embedding(tokens.clamp(min=0)))
        ahead = encoder.embed(self.input_embedding(context.clamp(min=0))) * context_valid[:, :, None]

        if valid is not None:
            x = without_padding(x, valid)
        x, conv_tail = encoder.pre_lookahead_layer(x, ahead, conv_tail)
        split = len(encoder.encoders)
        x, new_k, new_v = _run(encoder.encoders, x, length, past_k[:split], past_v[:split], valid, chunk)

        x, up_tail = encoder.up_layer(x, up_tail)
        x = encoder.up_embed(x)
        ratio = encoder.up_layer.ratio
        frames, steps = None if valid is None else ratio * valid, None if chunk is None else ratio * chunk
        x, up_k, up_v = _run(encoder.up_encoders, x, ratio * length, past_k[split:], past_v[split:], frames, steps)
        mu = self.encoder_proj(encoder.after_norm(x)).mT
        return mu, conv_tail, up_tail, new_k + up_k, new_v + up_v


class _Conformer(nn.Module):
    def __init__(self, config: UNetFlowConfig) -> None:
        super().__init__()
        self.embed = Embed(config.width, config.width)
        self.pre_lookahead_layer = PreLookahead(config.width, config.width, config.lookahead)
        self.encoders = _layers(config, config.blocks)
        self.up_layer = _UpSample(config.width, config.ratio)
        self.up_embed = Embed(config.width, config.width)
        self.up_encoders = _layers(config, config.up_blocks)
        self.after_norm = nn.LayerNorm(config.width, eps=1e-5)


def _layers(config: UNetFlowConfig, count: int) -> nn.ModuleList:
    return nn.ModuleList(ConformerLayer(config.width, config.heads, config.feed_forward) for _ in range(count))


class _UpSample(nn.Module):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv1d(width, width, 2 * ratio + 1)

    def forward(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        h = x.repeat_interleave(self.ratio, dim=1).mT
        h = torch.cat([tail, h], dim=2)
        return self.conv(h).mT, h[:, :, -2 * self.ratio :]


def later_chunks(past: int, new: int, chunk: int, like: Tensor) -> Tensor:
    """Additive mask [new, past + new] of the chunks behind that of each new position."""
    order = torch.arange(new, device=like.device) // chunk
    later = torch.where(order[None, :] > order[:, None], float("-inf"), 0.0).to(like.dtype)
    return torch.cat([later.new_zeros(new, past), later], dim=1)


def _run(
    layers: nn.ModuleList,
    x: Tensor,
    length: Tensor,
    past_k: list[Tensor],
    past_v: list[Tensor],
    valid: Tensor | None,
    chunk: int | None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    room = past_k[0].shape[2]
    positions = distance_rows(room, x)
    keys = torch.arange(room + x.shape[1], device=x.device)
    masked = keys < (room - length)[:, None]
    if valid is not None:
        masked = masked | (keys >= (room + valid)[:, None])
    unused = torch.where(masked, float("-inf"), 0.0).to(x.dtype)[:, None, None, :]
    if chunk is not None:
        unused = unused + later_chunks(room, x.shape[1], chunk, x)
    new_k: list[Tensor] = []
    new_v: list[Tensor] = []
    for layer, k, v in zip(layers, past_k, past_v, strict=True):
        x, layer_k, layer_v = layer(x, positions, unused, k, v)
        new_k.append(layer_k)
        new_v.append(layer_v)
    return x, new_k, new_v
