"""The Euler solver over pages: all steps of a chunk without leaving the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosyserve.config import FlowConfig
from cosyserve.flow.solver import time_grid
from cosyserve.networks.guided import Cache, CausalGuided, Estimator
from cosyserve.runtimes.memory import estimator_page_bytes
from cosyserve.runtimes.torch.network import Places
from cosyserve.runtimes.torch.paged_kv_cache import EMPTY, RESERVED

_ALIGNMENT = 16  # elements; fused attention copies a mask whose rows begin elsewhere, in every layer

_BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # the fused one that takes any mask, and its stand-in

Velocity = Callable[[int, float, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From step, flow time, state [B, mels, n] and all convolution tails, flattened [2B, size], to the guided velocity
[B, mels, n], the new frames' keys, then values, per layer [2 * layers, n, 2B, heads, hd], and the new tails."""


class PagedSolver:
    """A guided estimator and the Euler steps around it. A whole chunk's keys, values and tails go to a page.

    Network and pages have the precision `dtype`; the state that the steps add up to and the time embedding are float32.

    Args:
        module: in float32, on its device; changed to `dtype`.
        pages: to make room for, besides the reserved ones.
    """

    masks = True
    """Whether frames that only pad a chunk may follow its last one."""

    def __init__(
        self, module: CausalGuided, config: FlowConfig, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._module = module.to(dtype)
        self._estimator = cast(Estimator, module.decoder["estimator"])
        # Times differ by less than half precision resolves, so their embedding is made in float32.
        self._estimator.time.float().register_forward_hook(lambda module, inputs, embedded: embedded.to(dtype))
        self._config, self._dtype = config, dtype
        self._layers, self._heads, self._head_dim = config.attention
        self._chunk = config.frame_chunk
        room = pages + RESERVED
        # Per step and layer (keys, then values) one row for each page, frame and guidance row.
        self._memory = torch.empty(
            config.steps,
            2 * self._layers,
            room * self._chunk * 2,
            self._heads * self._head_dim,
            dtype=dtype,
            device=device,
        )
        self._tails = torch.empty(room, config.steps, 2, sum(map(math.prod, config.tails)), dtype=dtype, device=device)
        self._tails[EMPTY] = 0
        self._memory[:, :, : 2 * self._chunk] = 0

    @staticmethod
    def page_bytes(config: FlowConfig, dtype: torch.dtype) -> int:
        """Bytes of one page."""
        return estimator_page_bytes(config, dtype.itemsize)

    def __call__(
        self, places: Places, mu: Tensor, cond: Tensor, noise: Tensor, embedding: Tensor, *, chunks: int
    ) -> tuple[Tensor]:
        """Mel float32 [B, mels, n]; see `SolveJob` for the arrays. It is meaningless where frames only pad a chunk."""
        velocity = self.velocity(places, mu, cond, embedding, chunks)
        write = self.positions(places.fresh)
        x = noise
        for step, (t, dt) in enumerate(time_grid(self._config.steps)):
            tails = self._tails[:, step].index_select(0, places.last).transpose(0, 1).flatten(0, 1)
            v, made, new_tails = velocity(step, float(t), x, tails)
            x = x + float(dt) * v
            if mu.shape[2] == chunks * self._chunk:
                self._memory[step].index_copy_(1, write, made.flatten(1, 2).flatten(2, 3))
                rows = torch.stack(new_tails.to(self._dtype).chunk(2), dim=1)
                # What goes on from here reads the tails of the last page only.
                self._tails[:, step].index_copy_(0, places.fresh[:, -1], rows)
            # A view of the whole window: without this, it lives until the next step has made its own.
            del made
        return (x,)

    def velocity(self, places: Places, mu: Tensor, cond: Tensor, embedding: Tensor, chunks: int) -> Velocity:
        """The network for the steps of one call."""
        streams, _, new = mu.shape
        past = places.table.shape[1] * self._chunk
        # The new frames' place is filled with anything.
        read = F.pad(self.positions(places.table), (0, 2 * streams * new))
        bias = self._bias(past - self._chunk * places.filled, past + places.valid, past, new, chunks)
        speaker = _guided(self._module.speaker(embedding))
        mu, cond = _guided(mu.to(self._dtype)), _guided(cond.to(self._dtype))
        position = self._chunk * places.position
        extra = (torch.cat([position, position]),) if self._config.positions else ()
        rate = self._config.cfg_rate

        def run(step: int, t: float, x: Tensor, tails: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            window = self.window(step, read, 2 * streams)
            cache = WindowCache(window, bias, self._unpacked(tails))
            times = torch.full((2 * streams,), t, device=x.device)
            with sdpa_kernel(_BACKENDS):
                guided = self._estimator(
                    torch.cat([x, x]).to(self._dtype), mu, times, speaker, cond, *extra, cache=cache
                ).float()
            v = (1 + rate) * guided[:streams] - rate * guided[streams:]
            return v, window[:, past:], torch.cat([tail.flatten(1) for tail in cache.new_tails], dim=1)

        return run

    def window(self, step: int, read: Tensor, rows: int) -> Tensor:
        """A copy of the frames at `positions`: per layer keys, then values, [2 * layers, frames, rows, heads, hd]."""
        # Each thread of the copy moves one element, so elements are made wide.
        window = self._memory[step].view(torch.float64).index_select(1, read).view(self._dtype)
        return window.view(len(window), -1, rows, self._heads, self._head_dim)

    def positions(self, table: Tensor) -> Tensor:
        """Rows of `_memory` that pages [B, room] take, as a window orders them: by frame, guidance row, stream."""
        frames = torch.arange(self._chunk, device=table.device)
        frame = (table[:, :, None] * self._chunk + frames).flatten(1).mT  # [room * chunk, B]
        return torch.cat([2 * frame, 2 * frame + 1], dim=1).flatten()

    def _unpacked(self, tails: Tensor) -> list[Tensor]:
        """Convolution tails of [2B, ...] one after another, each [2B, channels, frames]."""
        shapes = self._config.tails
        parts = torch.split(tails, [math.prod(shape) for shape in shapes], dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _bias(self, first: Tensor, stop: Tensor, past: int, new: int, chunks: int) -> Tensor:
        """Additive mask [2B, 1, n or 1, past + n]: a stream reads the frames from `first` [B] to before `stop` [B].

        Of several chunks each reads itself and those before it.
        """
        width = past + new
        aligned = -(-width // _ALIGNMENT) * _ALIGNMENT
        frames = torch.arange(aligned, device=first.device)
        masked = (frames < first[:, None]) | (frames >= stop[:, None])
        masked = torch.cat([masked, masked])[:, None, None, :]
        if chunks > 1:
            order = torch.arange(new, device=first.device) // self._chunk
            masked = masked | (frames >= past + self._chunk * (1 + order[:, None]))
        return torch.where(masked, float("-inf"), 0.0).to(self._dtype)[..., :width]


class WindowCache(Cache):
    """The past of one call and the place of the new frames behind it, in one piece of memory.

    Args:
        window: per layer keys, then values, [2 * layers, past + n, R, heads, hd]; the last n are filled here.
        bias: additive mask [R, 1, n or 1, past + n].
        tails: convolution tails, [R, channels, frames] each.
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
