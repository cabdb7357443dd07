"""What the estimators of the flow have in common: guidance, and the past that a chunk is given.

Source of the algorithm: upstream flow/flow_matching.py :: ConditionalCFM.solve_euler and the speaker projection of
flow/flow.py. Each call is one chunk. Its past enters as attention keys/values and as the last inputs of every causal
convolution, so upstream's chunk masks do not exist here; a whole utterance in one call without past is the
non-streaming mode.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import FlowConfig, WindowFlowConfig


class Estimator(nn.Module):
    """The velocity of R independent rows (no guidance)."""

    @property
    def time(self) -> nn.Module:
        """What embeds flow times, float [R]."""
        raise NotImplementedError


class Guided(nn.Module):
    """An estimator with classifier-free guidance: both of its rows and their mix.

    Shapes: B streams, n new frames, P frames of prompt, C frames of past behind it, both at least 1, hd channels per
    head. Caches hold the B conditional rows first, then the B unconditional ones.

    Args:
        config: sizes.
        estimator: the velocity of R independent rows (no guidance).
    """

    def __init__(self, config: FlowConfig | WindowFlowConfig, estimator: nn.Module) -> None:
        super().__init__()
        self.rate = config.cfg_rate
        # The nesting only reproduces the key prefix decoder.estimator of flow.pt.
        self.decoder = nn.ModuleDict({"estimator": estimator})
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.mels)

    def speaker(self, embedding: Tensor) -> Tensor:
        """Speaker embeddings [B, speaker] as the estimator takes them, [B, mels]."""
        unit = F.normalize(embedding, dim=1, eps=1e-12)
        projected: Tensor = self.spk_embed_affine_layer(unit.to(self.spk_embed_affine_layer.weight.dtype))
        return projected

    def velocity(
        self, x: Tensor, mu: Tensor, cond: Tensor, embedding: Tensor, t: Tensor, *extra: Tensor, **past: Cache
    ) -> Tensor:
        """Guided velocity [B, mels, n]; `extra` are inputs [B] that both rows get alike, `past` what goes with them."""
        speaker = self.speaker(embedding)
        v = self.decoder["estimator"](
            torch.cat([x, x]),
            torch.cat([mu, torch.zeros_like(mu)]),
            torch.cat([t, t]),
            torch.cat([speaker, torch.zeros_like(speaker)]),
            torch.cat([cond, torch.zeros_like(cond)]),
            *(torch.cat([value, value]) for value in extra),
            **past,
        )
        streams = x.shape[0]
        conditional, unconditional = v[:streams], v[streams:]
        velocity: Tensor = (1.0 + self.rate) * conditional - self.rate * unconditional
        return velocity


class Part:
    """A part of the past: per layer keys and values float [C, R, heads, hd], of which `length` [R] are valid."""

    def __init__(self, k: list[Tensor], v: list[Tensor], length: Tensor) -> None:
        self.k, self.v = k, v
        unused = torch.arange(k[0].shape[0], device=length.device) >= length[:, None]
        self.bias = torch.where(unused, float("-inf"), 0.0).to(k[0].dtype)[:, None, None, :]

    def scores(self, layer: int, q: Tensor) -> Tensor:
        """Attention scores [R, heads, n, C] of scaled queries [R, heads, n, hd].

        The past lies frame by frame, so that its first frames are one piece of memory; onnxruntime multiplies it where
        it lies, without transposing it.
        """
        return q @ self.k[layer].permute(1, 2, 3, 0) + self.bias

    def mix(self, layer: int, weights: Tensor) -> Tensor:
        """Values [R, heads, n, hd] summed with weights [R, heads, n, C]."""
        return weights @ self.v[layer].permute(1, 2, 0, 3)


class Cache:
    """The past of one call, handed out in execution order, and what this call adds to it."""

    def __init__(self, prompt: Part, past: Part, tails: list[Tensor]) -> None:
        self.prompt, self.past, self.tails = prompt, past, tails
        self.new_tails: list[Tensor] = []
        self.new_k: list[Tensor] = []
        self.new_v: list[Tensor] = []

    def convolve(self, conv: nn.Module, x: Tensor) -> Tensor:
        """Causal convolution over (tail | x)."""
        tail = self.tails[len(self.new_tails)]
        x = torch.cat([tail, x], dim=2)
        self.new_tails.append(x[:, :, -tail.shape[2] :])
        out: Tensor = conv(x)
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of scaled queries over (prompt | past | new) under one softmax."""
        layer = len(self.new_k)
        self.new_k.append(k.permute(2, 0, 1, 3))
        self.new_v.append(v.permute(2, 0, 1, 3))
        scores = [self.prompt.scores(layer, q), self.past.scores(layer, q), q @ k.mT]
        widths = [part.shape[3] for part in scores]
        prompt, past, new = torch.split(torch.cat(scores, dim=-1).softmax(-1), widths, dim=-1)
        return self.prompt.mix(layer, prompt) + self.past.mix(layer, past) + new @ v


class CausalGuided(Guided):
    """A guided estimator that is called chunk by chunk, with what its layers keep of the past as inputs and outputs."""

    def forward(
        self,
        x: Tensor,
        mu: Tensor,
        cond: Tensor,
        embedding: Tensor,
        t: Tensor,
        prompt_length: Tensor,
        length: Tensor,
        tails: list[Tensor],
        prompt_k: list[Tensor],
        prompt_v: list[Tensor],
        past_k: list[Tensor],
        past_v: list[Tensor],
        position: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """One Euler step's velocity for one chunk.

        The past comes in two parts, so that the prompt's can be shared by all streams of a voice without copying it.

        Args:
            x: state, float [B, mels, n].
            mu: encoder output, float [B, mels, n].
            cond: prompt mel where known, else zero, float [B, mels, n].
            embedding: speaker embedding as the speaker model gives it, float [B, speaker].
            t: flow time in [0, 1], float [B].
            prompt_length: valid frames of the prompt, int64 [B]; the rest of P may hold any finite value.
            length: valid frames of the past behind it, int64 [B]; the rest of C may hold any finite value.
            tails: last inputs of each causal convolution (`FlowConfig.tails`), float [2B, channels, frames]; zeros at
                first.
            prompt_k: keys of the prompt per attention layer, float [P, 2B, heads, hd].
            prompt_v: values, same shape.
            past_k: keys of the past behind it, float [C, 2B, heads, hd].
            past_v: values, same shape.
            position: of the first new frame, counted from the start of the prompt, int64 [B]; for estimators that
                take it (`FlowConfig.positions`).

        Returns:
            Velocity [B, mels, n], the new tails, and per layer keys and values [n, 2B, heads, hd] of the new frames.
        """
        cache = Cache(
            Part(prompt_k, prompt_v, torch.cat([prompt_length, prompt_length])),
            Part(past_k, past_v, torch.cat([length, length])),
            tails,
        )
        extra = () if position is None else (position,)
        velocity = self.velocity(x, mu, cond, embedding, t, *extra, cache=cache)
        return velocity, cache.new_tails, cache.new_k, cache.new_v


def sinusoid(t: Tensor, channels: int) -> Tensor:
    """Flow times [R] as sines, then cosines [R, channels]."""
    steps = torch.arange(channels // 2, device=t.device, dtype=torch.float32)
    angles = 1000.0 * t.float()[:, None] * torch.exp(steps * -(math.log(1e4) / (channels // 2 - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(t.dtype)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)).

    In a graph it has one exponential in place of two functions that onnxruntime computes one by one. With e = exp(x),
    tanh(softplus(x)) = e (e + 2) / (e (e + 2) + 2); beyond 20 that is 1 in float32. Graphs are float32 here: in float16
    the square overflows from x = 5.6 on. Torch has the function in one kernel, whatever the precision.
    """
    if not torch.compiler.is_exporting():
        return F.mish(x)
    e = x.clamp(max=20.0).exp()
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))
