"""The flow's networks as two graphs on host memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cosyserve.config import FlowConfig
from cosyserve.flow.networks import EncodeJob, Float, SolveJob
from cosyserve.flow.past import GRANULE, Past, gathered
from cosyserve.flow.solver import solve
from cosyserve.runtimes.graph import Array, Graph

GATHER_BYTES = 64 * 2**20
"""Most bytes of keys and values that a shared estimator call copies together. Above it the copying costs more than
sharing the call saves; a stream alone is read where it lies."""


@dataclass
class GraphCache:
    """State of one stream. Arrays are replaced, never changed in place, so that forks may share them.

    Attributes:
        conv_tail: of the encoder ``[1, width, 2]``.
        up_tail: of the encoder ``[1, width, 2 * ratio]``.
        layers: the encoder's keys, then values, ``[heads, positions, dim]`` for each layer.
        tails: for each Euler step the estimator's convolution tails ``[2, channels, 2]``.
        prompt: for each Euler step the keys and values shared with other streams.
        past: for each Euler step this stream's own, behind the prompt.
        fresh: makes an empty `past`.
    """

    conv_tail: Float
    up_tail: Float
    layers: list[Float]
    tails: list[list[Float]]
    prompt: list[Past]
    past: list[Past]
    fresh: Callable[[], list[Past]] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of this stream's own keys and values, which is nearly all of it."""
        return sum(a.nbytes for a in self.layers) + sum(past.nbytes for past in self.past)

    def fork(self) -> GraphCache:
        """See `FlowCache.fork`. A fork is not forked again."""
        twin = copy.copy(self)
        twin.tails = list(self.tails)
        twin.prompt, twin.past = self.past, self.fresh()
        return twin


class Encoder:
    """Network of `EncodeJob` over graph ``flow_encoder``."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def joins(self, batch: Sequence[EncodeJob], job: EncodeJob) -> bool:
        """Chunks of one length at about one position: there the batch changes no rounding."""
        first = batch[0]
        return len(job.tokens) == len(first.tokens) and _rooms(job.cache) == _rooms(first.cache)

    def __call__(self, batch: Sequence[EncodeJob]) -> list[Float]:
        """Encode a chunk of each stream."""
        caches: list[GraphCache] = [job.cache for job in batch]
        pasts = [_right_aligned(arrays) for arrays in zip(*(cache.layers for cache in caches), strict=True)]
        half = len(pasts) // 2
        out = self._graph(
            {
                "tokens": np.stack([job.tokens for job in batch]),
                "context": np.stack([job.context for job in batch]),
                "context_valid": np.stack([job.context_valid for job in batch]),
                "length": np.asarray([cache.layers[0].shape[1] for cache in caches], np.int64),
                "conv_tail": np.concatenate([cache.conv_tail for cache in caches]),
                "up_tail": np.concatenate([cache.up_tail for cache in caches]),
                "past_k": pasts[:half],
                "past_v": pasts[half:],
            }
        )
        new = out.many("new_k") + out.many("new_v")
        for row, cache in enumerate(caches):
            cache.conv_tail, cache.up_tail = out["conv_tail_out"][row : row + 1], out["up_tail_out"][row : row + 1]
            cache.layers = [np.concatenate([old, n[row]], axis=1) for old, n in zip(cache.layers, new, strict=True)]
        return list(out["mu"])


class Solver:
    """Network of `SolveJob` over graph ``flow_estimator``."""

    def __init__(self, graph: Graph, steps: int) -> None:
        self._graph = graph
        self._steps = steps

    def joins(self, batch: Sequence[SolveJob], job: SolveJob) -> bool:
        """Chunks of one length, while their pasts are small enough to be copied together."""
        jobs = [*batch, job]
        room = sum(max(part(other.cache)[0].layers().nbytes for other in jobs) for part in (_prompt, _past))
        return job.mu.shape[1] == batch[0].mu.shape[1] and len(jobs) * room <= GATHER_BYTES

    def __call__(self, batch: Sequence[SolveJob]) -> list[Float]:
        """Solve a chunk of each stream, all Euler steps."""
        caches: list[GraphCache] = [job.cache for job in batch]
        shared: dict[str, Array] = {
            "mu": np.stack([job.mu for job in batch]),
            "cond": np.stack([job.cond for job in batch]),
            "embedding": np.stack([job.embedding for job in batch]),
            "prompt_length": np.asarray([cache.prompt[0].length for cache in caches], np.int64),
            "length": np.asarray([cache.past[0].length for cache in caches], np.int64),
        }
        memory: dict[str, Float | None] = {"prompt": None, "past": None}

        def velocity(step: int, x: Float, t: np.float32) -> Float:
            prompt, memory["prompt"] = gathered([cache.prompt[step] for cache in caches], memory["prompt"])
            past, memory["past"] = gathered([cache.past[step] for cache in caches], memory["past"])
            layers = len(past) // 2
            out = self._graph(
                {
                    **shared,
                    "x": x,
                    "t": np.full(len(batch), t, np.float32),
                    "tails": [_rows(tails) for tails in zip(*(cache.tails[step] for cache in caches), strict=True)],
                    "prompt_k": list(prompt[:layers]),
                    "prompt_v": list(prompt[layers:]),
                    "past_k": list(past[:layers]),
                    "past_v": list(past[layers:]),
                }
            )
            streams = len(batch)
            new = out.many("new_k") + out.many("new_v")
            tails = out.many("new_tails")
            for row, cache in enumerate(caches):
                cache.tails[step] = [tail[row::streams] for tail in tails]
                cache.past[step].append([n[:, row::streams] for n in new])
            return out["velocity"]

        return list(solve(velocity, np.stack([job.noise for job in batch]), self._steps))


class GraphFlow:
    """`FlowNetworks` over two graphs.

    Args:
        encoder: graph ``flow_encoder``.
        estimator: graph ``flow_estimator``, guidance included.
        noise: fixed starting noise ``[mels, frames]``.
        tail_channels: input channels of each causal convolution of the estimator.
        window: most frames of its own that a stream attends to besides the prompt; 0 for all (exact).
    """

    def __init__(
        self,
        config: FlowConfig,
        encoder: Graph,
        estimator: Graph,
        noise: Float,
        tail_channels: Sequence[int],
        window: int = 0,
    ) -> None:
        self.config, self.noise = config, noise
        self.encode, self.solve = Encoder(encoder), Solver(estimator, config.steps)
        self._tail_channels, self._window = tail_channels, window

    @property
    def frame_bytes(self) -> int:
        """Bytes of cache for each mel frame of a stream."""
        config = self.config
        estimator = config.steps * config.attentions * 2 * 2 * config.unet_heads * config.unet_head_dim
        encoder = 2 * config.width * (config.ratio * config.up_blocks + config.blocks) // config.ratio
        return 4 * (estimator + encoder)

    def open(self) -> GraphCache:
        """See `FlowNetworks.open`."""
        config = self.config
        none = np.zeros((config.heads, 0, config.width // config.heads), np.float32)
        return GraphCache(
            conv_tail=np.zeros((1, config.width, 2), np.float32),
            up_tail=np.zeros((1, config.width, 2 * config.ratio), np.float32),
            layers=[none] * (2 * (config.blocks + config.up_blocks)),
            tails=[[np.zeros((2, n, 2), np.float32) for n in self._tail_channels] for _ in range(config.steps)],
            prompt=self._pasts(),
            past=self._pasts(),
            fresh=lambda: self._pasts(self._window),
        )

    def _pasts(self, window: int = 0) -> list[Past]:
        config = self.config
        return [Past(config.attentions, config.unet_heads, config.unet_head_dim, window) for _ in range(config.steps)]


def _prompt(cache: GraphCache) -> list[Past]:
    return cache.prompt


def _past(cache: GraphCache) -> list[Past]:
    return cache.past


def _rooms(cache: GraphCache) -> list[int]:
    return [-(-layer.shape[1] // GRANULE) for layer in cache.layers]


def _right_aligned(arrays: Sequence[Float]) -> Float:
    """``[heads, positions, dim]`` of each stream as ``[B, heads, room, dim]``, behind zeros."""
    heads, _, dim = arrays[0].shape
    room = GRANULE * -(-max(a.shape[1] for a in arrays) // GRANULE)
    out = np.zeros((len(arrays), heads, room, dim), np.float32)
    for row, array in zip(out, arrays, strict=True):
        row[:, room - array.shape[1] :] = array
    return out


def _rows(tails: Sequence[Float]) -> Float:
    """``[2, channels, 2]`` of each stream as ``[2 B, channels, 2]``, conditional rows first."""
    return np.stack(tails, axis=1).reshape(-1, *tails[0].shape[1:])
