"""The speech language model: a Qwen2 decoder over embeddings with a speech-token head.

Source of the algorithm: upstream llm/llm.py :: Qwen2LM, Qwen2Encoder (transformers' Qwen2ForCausalLM behind them).
Parameter names are the keys of ``llm.pt``. The three embedding tables are not part of the module: callers gather from
them and pass embeddings.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import LlmConfig
from cosyserve.networks.attention import by_heads


class SpeechLM(nn.Module):
    """Logits of the next speech token, over keys/values that the caller keeps.

    Shapes: B sequences, T new positions, C capacity of the past (>= 1), H hidden, KV key/value heads, D head size,
    V speech vocabulary.
    """

    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.config = config
        # The nesting only reproduces the key prefix llm.model.model of llm.pt.
        self.llm = nn.ModuleDict({"model": nn.ModuleDict({"model": _Backbone(config)})})
        self.llm_decoder = nn.Linear(config.hidden, config.speech_vocab, bias=config.head_bias)

    def forward(
        self, embeds: Tensor, lengths: Tensor, past_k: list[Tensor], past_v: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Append T positions to each sequence.

        Args:
            embeds: input embeddings, float [B, T, H].
            lengths: valid positions in the past of each sequence, int64 [B]; the rest of C may hold any finite value.
            past_k: keys (after rotary embedding) per layer, float [B, KV, C, D].
            past_v: values per layer, float [B, KV, C, D].

        Returns:
            Logits of position T-1 [B, V], then per layer the keys and values [B, KV, T, D] of the new positions.
        """
        hidden, new_k, new_v = self.hidden(embeds, lengths, past_k, past_v)
        logits: Tensor = self.llm_decoder(hidden[:, -1])
        return logits, new_k, new_v

    def hidden(
        self, embeds: Tensor, lengths: Tensor, past_k: list[Tensor], past_v: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """As `forward`, with the hidden states after the final norm [B, T, H] instead of logits."""
        rotary = _rotary(lengths, embeds, self.config)
        bias = _biases(lengths, embeds, past_k[0], self.config.heads // self.config.kv_heads)
        backbone = cast(_Backbone, cast(nn.ModuleDict, self.llm["model"])["model"])
        new_k: list[Tensor] = []
        new_v: list[Tensor] = []
        x = embeds
        for layer, k, v in zip(backbone.layers, past_k, past_v, strict=True):
            x, layer_k, layer_v = layer(x, rotary, bias, k, v)
            new_k.append(layer_k)
            new_v.append(layer_v)
        x = backbone.norm(x)
        return x, new_k, new_v


class _Backbone(nn.Module):
    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = _RmsNorm(config.hidden, config.rms_eps)


class _Layer(nn.Module):
    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _Mlp(config)
        self.input_layernorm = _RmsNorm(config.hidden, config.rms_eps)
        self.post_attention_layernorm = _RmsNorm(config.hidden, config.rms_eps)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], bias: tuple[Tensor, Tensor], past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, k, v = self.self_attn(self.input_layernorm(x), rotary, bias, past_k, past_v)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class _Attention(nn.Module):
    """Grouped-query attention over (past | new) under one softmax; the past is read in place."""

    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = config.kv_heads, config.head_dim
        self.groups = config.heads // config.kv_heads
        inner, kv_inner = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, inner)
        self.k_proj = nn.Linear(config.hidden, kv_inner)
        self.v_proj = nn.Linear(config.hidden, kv_inner)
        self.o_proj = nn.Linear(inner, config.hidden, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], bias: tuple[Tensor, Tensor], past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, new, _ = x.shape
        q = by_heads(self.q_proj(x), self.kv_heads * self.groups, self.head_dim)
        k = by_heads(self.k_proj(x), self.kv_heads, self.head_dim)
        v = by_heads(self.v_proj(x), self.kv_heads, self.head_dim)
        q, k = _rotate(q, rotary), _rotate(k, rotary)

        # The query heads of one key head become rows of one product, so keys and values are never repeated.
        q = q.reshape(batch, self.kv_heads, self.groups * new, self.head_dim) * self.head_dim**-0.5
        past_bias, new_bias = bias
        scores = torch.cat([q @ past_k.mT + past_bias, q @ k.mT + new_bias], dim=-1)
        past_weights, new_weights = torch.split(scores.softmax(-1), [past_k.shape[2], new], dim=-1)
        out = past_weights @ past_v + new_weights @ v

        out = out.view(batch, self.kv_heads * self.groups, new, self.head_dim).transpose(1, 2)
        return self.o_proj(out.reshape(batch, new, -1)), k, v


class _Mlp(nn.Module):
    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)  # one kernel, sums in float32
        # The mean of squares leaves the range of float16, so it is taken in float32.
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def _rotary(lengths: Tensor, embeds: Tensor, config: LlmConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, T, D] of positions lengths + 0..T-1."""
    device = embeds.device
    exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    positions = lengths[:, None] + torch.arange(embeds.shape[1], device=device)
    angles = positions[:, None, :, None].float() / config.rope_theta**exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(embeds.dtype), angles.sin().to(embeds.dtype)


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _biases(lengths: Tensor, embeds: Tensor, past: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Additive masks: of the unused past [B, 1, 1, C], of the future among the new [groups * T, T]."""
    device, blocked = embeds.device, float("-inf")
    unused = torch.arange(past.shape[2], device=device) >= lengths[:, None]
    order = torch.arange(embeds.shape[1], device=device)
    future = (order[None, :] > order[:, None]).repeat(groups, 1)
    past_bias = torch.where(unused, blocked, 0.0).to(embeds.dtype)[:, None, None, :]
    return past_bias, torch.where(future, blocked, 0.0).to(embeds.dtype)
