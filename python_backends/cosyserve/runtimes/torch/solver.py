"""The Euler solver over pages: all steps of a chunk without leaving the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosyserve.config import UNetFlowConfig
from cosyserve.flow.solver import time_grid
from cosyserve.networks.guided import Cache
from cosyserve.networks.unet import GuidedFlow, UNet
from cosyserve.runtimes.torch.paged_kv_cache import EMPTY, RESERVED

_ALIGNMENT = 16  # elements; fused attention copies a mask whose rows begin elsewhere, in every layer

_BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # the fused one that takes any mask, and its stand-in

Velocity = Callable[[int, float, Tensor, list[Tensor]], tuple[Tensor, Tensor, list[Tensor]]]
"""From step, flow time, state [B, mels, n] and convolution tails to the guided velocity [B, mels, n], the new frames'
keys, then values, per layer [2 * layers, n, 2B, heads, hd], and the new tails."""


class PagedSolver:
    """`GuidedFlow` and the Euler steps around it; a whole chunk's keys, values and tails of all steps go to a page.

    Network and pages have the precision `dtype`; the state that the steps add up to and the time embedding are float32.

    Args:
        module: in float32, on its device; changed to `dtype`.
        pages: to make room for, besides the reserved ones.
    """

    def __init__(
        self, module: GuidedFlow, config: UNetFlowConfig, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._module = module.to(dtype)
        self._unet = cast(UNet, module.decoder["estimator"])
        # Times differ by less than half precision resolves, so their embedding is made in float32.
        self._unet.time_mlp.float().register_forward_hook(lambda module, inputs, embedded: embedded.to(dtype))
        self._config, self._dtype = config, dtype
        self._channels = [channels for channels, _ in config.tails]
        room = pages + RESERVED
        positions = room * config.unet_chunk * 2
        # Per step and layer (keys, then values) one row for each page, frame and guidance row.
        self._memory = torch.empty(
            config.steps,
            2 * config.attentions,
            positions,
            config.unet_heads * config.unet_head_dim,
            dtype=dtype,
            device=device,
        )
        self._tails = torch.empty(room, config.steps, 2, sum(self._channels), 2, dtype=dtype, device=device)
        self._tails[EMPTY] = 0
        self._memory[:, :, : 2 * config.unet_chunk] = 0

    @staticmethod
    def page_bytes(config: UNetFlowConfig, dtype: torch.dtype) -> int:
        """Bytes of one page."""
        attention = config.attentions * config.unet_chunk * config.unet_heads * config.unet_head_dim
        return config.steps * 2 * 2 * dtype.itemsize * (attention + sum([channels for channels, _ in config.tails]))

    def __call__(
        self,
        table: Tensor,
        count: Tensor,
        last: Tensor,
        fresh: Tensor,
        mu: Tensor,
        cond: Tensor,
        noise: Tensor,
        embedding: Tensor,
    ) -> tuple[Tensor]:
        """Mel float32 [B, mels, n]; see `PagedNetwork` for the first four and `SolveJob` for the others."""
        velocity = self.velocity(table, count, mu, cond, embedding)
        write = self.positions(fresh[:, None])
        x = noise
        for step, (t, dt) in enumerate(time_grid(self._config.steps)):
            tails = self._tails[:, step].index_select(0, last).transpose(0, 1).flatten(0, 1)
            v, made, new_tails = velocity(step, float(t), x, list(torch.split(tails, self._channels, dim=1)))
            x = x + float(dt) * v
            if mu.shape[2] == self._config.unet_chunk:
                self._memory[step].index_copy_(1, write, made.flatten(1, 2).flatten(2, 3))
                rows = torch.stack(torch.cat(new_tails, dim=1).to(self._dtype).chunk(2), dim=1)
                self._tails[:, step].index_copy_(0, fresh, rows)
        return (x,)

    def velocity(self, table: Tensor, count: Tensor, mu: Tensor, cond: Tensor, embedding: Tensor) -> Velocity:
        """The network for the steps of one call."""
        streams, _, new = mu.shape
        past = table.shape[1] * self._config.unet_chunk
        read = F.pad(self.positions(table), (0, 2 * streams * new))  # the new frames' place is filled with anything
        bias = self._bias(past - self._config.unet_chunk * count, past + new)
        speaker = _guided(self._module.speaker(embedding))
        mu, cond = _guided(mu.to(self._dtype)), _guided(cond.to(self._dtype))
        rate = self._config.cfg_rate

        def run(step: int, t: float, x: Tensor, tails: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
            window = self.window(step, read, 2 * streams)
            cache = WindowCache(window, bias, tails)
            times = torch.full((2 * streams,), t, device=x.device)
            with sdpa_kernel(_BACKENDS):
                v = self._unet(torch.cat([x, x]).to(self._dtype), mu, times, speaker, cond, cache).float()
            return (1 + rate) * v[:streams] - rate * v[streams:], window[:, past:], cache.new_tails

        return run

    def window(self, step: int, read: Tensor, rows: int) -> Tensor:
        """A copy of the frames at `positions`: per layer keys, then values, [2 * layers, frames, rows, heads, hd]."""
        # Each thread of the copy moves one element, so elements are made wide.
        window = self._memory[step].view(torch.float64).index_select(1, read).view(self._dtype)
        return window.view(len(window), -1, rows, self._config.unet_heads, self._config.unet_head_dim)

    def positions(self, table: Tensor) -> Tensor:
        """Rows of `_memory` that pages [B, room] take, as a window orders them: by frame, guidance row, stream."""
        frames = torch.arange(self._config.unet_chunk, device=table.device)
        frame = (table[:, :, None] * self._config.unet_chunk + frames).flatten(1).mT  # [room * chunk, B]
        return torch.cat([2 * frame, 2 * frame + 1], dim=1).flatten()

    def _bias(self, unused: Tensor, width: int) -> Tensor:
        """Additive mask [2B, 1, 1, width] of the first `unused` [B] frames of each stream."""
        aligned = -(-width // _ALIGNMENT) * _ALIGNMENT
        frames = torch.arange(aligned, device=unused.device)
        masked = torch.where(frames < torch.cat([unused, unused])[:, None], float("-inf"), 0.0)
        return masked.to(self._dtype)[:, None, None, :width]


class WindowCache(Cache):
    """The past of one call and the place of the new frames behind it, in one piece of memory.

    Args:
        window: per layer keys, then values, [2 * layers, past + n, R, heads, hd]; the last n are filled here.
        bias: additive mask [R, 1, 1, past + n].
        tails: convolution tails, [R, channels, 2] each.
    """

    def __init__(self, window: Tensor, bias: Tensor, tails: list[Tensor]) -> None:
        self._keys, self._values = window.chunk(2)
        self._bias = bias
        self._layer = 0
        self.tails = tails
        self.new_tails = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Cache.attend`."""
        keys, values = self._keys[self._layer], self._values[self._layer]
        self._layer += 1
        new = q.shape[2]
        keys[-new:] = k.permute(2, 0, 1, 3)
        values[-new:] = v.permute(2, 0, 1, 3)
        bias = self._bias.expand(-1, q.shape[1], new, -1)
        return F.scaled_dot_product_attention(q, keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3), bias, scale=1.0)


def _guided(conditional: Tensor) -> Tensor:
    """The rows of guidance: with the condition, then without."""
    return torch.cat([conditional, torch.zeros_like(conditional)])
