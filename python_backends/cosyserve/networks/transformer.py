"""The language model of CosyVoice 1: a text encoder, and a transformer with relative positions and a speech-token head.

Source of the algorithm: upstream llm/llm.py :: TransformerLM, transformer/encoder.py :: ConformerEncoder,
TransformerEncoder. Parameter names are the keys of ``llm.pt``. The embedding tables are not part of the modules:
callers gather from them and pass embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import TransformerConfig
from cosyserve.networks.conformer import Conformer, Embed, FeedForward, RelativeAttention, sinusoids


class TextEncoder(nn.Module):
    """What a sequence holds besides speech tokens: encoded text, and the speaker."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.text_encoder = Conformer(
            config.text_inputs, config.text_hidden, config.text_heads, config.text_feed_forward, config.text_blocks
        )
        self.text_encoder_affine_layer = nn.Linear(config.text_hidden, config.inputs)
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.inputs)

    def forward(self, embeds: Tensor, speaker: Tensor) -> tuple[Tensor, Tensor]:
        """Text embeddings, float [B, n, text_inputs], and speaker embedding, float [B, speaker], to input embeddings
        [B, n, inputs] and [B, inputs]. A text position sees those before it only."""
        order = torch.arange(embeds.shape[1], device=embeds.device)
        future = torch.where(order[None, :] > order[:, None], float("-inf"), 0.0).to(embeds.dtype)
        text = self.text_encoder_affine_layer(self.text_encoder(embeds, future))
        return text, self.spk_embed_affine_layer(F.normalize(speaker, dim=1, eps=1e-12))


class RelativeLM(nn.Module):
    """Logits of the next speech token, over keys/values that the caller keeps.

    Shapes: B sequences, T new positions, C capacity of the past (>= 1), heads h of D channels, V speech vocabulary.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.llm = _Backbone(config)
        self.llm_decoder = nn.Linear(config.hidden, config.speech_vocab)

    def forward(
        self, embeds: Tensor, lengths: Tensor, positions: list[Tensor], past_k: list[Tensor], past_v: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Append T positions to each sequence.

        Args:
            embeds: input embeddings, float [B, T, inputs].
            lengths: valid positions in the past of each sequence, int64 [B]; the rest of C may hold any finite value.
                No sequence outgrows C with the new ones.
            positions: per layer what `Positions` says of the distances 0..C-1, float [C, h, D].
            past_k: keys per layer, float [B, h, C, D].
            past_v: values per layer, float [B, h, C, D].

        Returns:
            Logits of position T-1 [B, V], then per layer the keys and values [B, h, T, D] of the new positions.
        """
        hidden, new_k, new_v = self.hidden(embeds, lengths, positions, past_k, past_v)
        logits: Tensor = self.llm_decoder(hidden[:, -1])
        return logits, new_k, new_v

    def hidden(
        self, embeds: Tensor, lengths: Tensor, positions: list[Tensor], past_k: list[Tensor], past_v: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """As `forward`, with the hidden states after the final norm [B, T, hidden] instead of logits."""
        where = _Where(lengths, embeds.shape[1], past_k[0].shape[2])
        x = F.relu(self.llm.embed.out(embeds)) * self.llm.embed.scale
        new_k: list[Tensor] = []
        new_v: list[Tensor] = []
        for layer, p, k, v in zip(self.llm.encoders, positions, past_k, past_v, strict=True):
            x, layer_k, layer_v = layer(x, where, p, k, v)
            new_k.append(layer_k)
            new_v.append(layer_v)
        return self.llm.after_norm(x), new_k, new_v


class Positions(nn.Module):
    """What a query meets at a distance, per layer: the same for every sequence, so computed once."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.hidden = config.hidden
        self.heads = config.heads
        # The nesting only reproduces the keys of llm.pt.
        attentions = (nn.ModuleDict({"linear_pos": _square(config)}) for _ in range(config.layers))
        layers = nn.ModuleList(nn.ModuleDict({"self_attn": attention}) for attention in attentions)
        self.llm = nn.ModuleDict({"encoders": layers})

    def forward(self, distances: Tensor) -> list[Tensor]:
        """Distances, int64 [n], to float [n, h, D] for each layer."""
        rows = sinusoids(distances, self.hidden)[0]
        return [(rows @ w.mT).view(-1, self.heads, self.hidden // self.heads) for w in self.parameters()]


def _square(config: TransformerConfig) -> nn.Linear:
    return nn.Linear(config.hidden, config.hidden, bias=False)


class _Backbone(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed = Embed(config.inputs, config.hidden)
        self.encoders = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.after_norm = nn.LayerNorm(config.hidden, eps=1e-5)


class _Where:
    """Which key is how far from which query, and which keys there are; the same in every layer."""

    def __init__(self, lengths: Tensor, new: int, capacity: int) -> None:
        device = lengths.device
        query = torch.arange(new, device=device)[:, None]
        key = torch.arange(capacity, device=device)
        self.past = (lengths[:, None, None] + query - key).clamp(0, capacity - 1)[:, None]  # [B, 1, T, C]
        self.new = (query - query.mT).clamp(min=0)[None, None]  # [1, 1, T, T]
        unused = key >= lengths[:, None]
        self.past_bias = torch.where(unused, float("-inf"), 0.0)[:, None, None, :]
        self.new_bias = torch.where(query.mT > query, float("-inf"), 0.0)


class _Layer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(config.hidden, config.heads)
        self.feed_forward = FeedForward(config.hidden, config.intermediate, relu=True)
        self.norm1 = nn.LayerNorm(config.hidden, eps=1e-12)
        self.norm2 = nn.LayerNorm(config.hidden, eps=1e-12)

    def forward(
        self, x: Tensor, where: _Where, positions: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.self_attn
        q, k, v = attention.project(self.norm1(x))
        by_content = (q + attention.pos_bias_u[:, None]) * attention.head_dim**-0.5
        by_distance = (q + attention.pos_bias_v[:, None]) * attention.head_dim**-0.5 @ positions.permute(1, 2, 0)
        past = by_content @ past_k.mT + _at(by_distance, where.past) + where.past_bias
        new = by_content @ k.mT + _at(by_distance, where.new) + where.new_bias
        weights = torch.cat([past, new], dim=-1).softmax(-1)
        past_weights, new_weights = torch.split(weights, [past_k.shape[2], x.shape[1]], dim=-1)
        x = x + attention.merge(past_weights @ past_v + new_weights @ v)
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out, k, v


def _at(scores: Tensor, distances: Tensor) -> Tensor:
    """Scores by distance [B, h, T, C], read at distances [B or 1, 1, T, n]: [B, h, T, n]."""
    batch, heads, _, _ = scores.shape
    return scores.gather(3, distances.expand(batch, heads, -1, -1))
