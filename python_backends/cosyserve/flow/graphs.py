"""The flow's networks as two graphs on host memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cosyserve.config import FlowConfig
from cosyserve.flow.encoders import Encoder, EncoderCache
from cosyserve.flow.kv_cache import FlowKVCache, collate
from cosyserve.flow.networks import Float, SolveJob
from cosyserve.flow.solver import solve
from cosyserve.runtimes.graph import Array, Graph

GATHER_BYTES = 64 * 2**20
"""Most bytes of keys and values that a shared estimator call copies together. Above it the copying costs more than
sharing the call saves; a stream alone is read where it lies."""


@dataclass
class GraphCache:
    """State of one stream. Arrays are replaced, never changed in place, so that forks may share them.

    Attributes:
        encoder: the encoder's part.
        tails: for each Euler step the estimator's convolution tails ``[2, channels, frames]``.
        prompt: for each Euler step the keys and values shared with other streams.
        past: for each Euler step this stream's own, behind the prompt.
        fresh: makes an empty `past`.
    """

    encoder: EncoderCache
    tails: list[list[Float]]
    prompt: list[FlowKVCache]
    past: list[FlowKVCache]
    fresh: Callable[[], list[FlowKVCache]] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of this stream's own keys and values, which is nearly all of it."""
        return self.encoder.nbytes + sum(past.nbytes for past in self.past)

    def fork(self) -> GraphCache:
        """See `FlowCache.fork`. A fork is not forked again."""
        twin = copy.copy(self)
        twin.encoder, twin.tails = copy.copy(self.encoder), list(self.tails)
        twin.prompt, twin.past = self.past, self.fresh()
        return twin


class Solver:
    """Network of `SolveJob` over graph ``flow_estimator``."""

    def __init__(self, graph: Graph, config: FlowConfig) -> None:
        self._graph = graph
        self._steps = config.steps
        self._positions = config.positions

    def can_batch(self, batch: Sequence[SolveJob], job: SolveJob) -> bool:
        """Chunks of one length, while their pasts are small enough to be copied together."""
        jobs = [*batch, job]
        padded_length = sum(max(part(other.cache)[0].layers().nbytes for other in jobs) for part in (_prompt, _past))
        return job.mu.shape[1] == batch[0].mu.shape[1] and len(jobs) * padded_length <= GATHER_BYTES

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
        if self._positions:
            shared["position"] = np.asarray([cache.prompt[0].count + cache.past[0].count for cache in caches], np.int64)
        memory: dict[str, Float | None] = {"prompt": None, "past": None}

        def velocity(step: int, x: Float, t: np.float32) -> Float:
            prompt, memory["prompt"] = collate([cache.prompt[step] for cache in caches], memory["prompt"])
            past, memory["past"] = collate([cache.past[step] for cache in caches], memory["past"])
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
        encoder: over graph ``flow_encoder``.
        estimator: graph ``flow_estimator``, guidance included.
        noise: fixed starting noise ``[mels, frames]``.
        window: most frames of its own that a stream attends to besides the prompt; 0 for all (exact).
    """

    def __init__(
        self,
        config: FlowConfig,
        encoder: Encoder,
        estimator: Graph,
        noise: Float,
        window: int = 0,
    ) -> None:
        self.config, self.noise = config, noise
        self._encoder = self.encode = encoder
        self.solve = Solver(estimator, config)
        self._window = window

    @property
    def frame_bytes(self) -> int:
        """Bytes of cache for each mel frame of a stream."""
        return self._encoder.frame_bytes + 4 * 2 * 2 * self.config.steps * math.prod(self.config.attention)

    chunks = (1,)
    """See `FlowNetworks.chunks`: on a CPU chunks take as long together as one after another."""

    def open(self) -> GraphCache:
        """See `FlowNetworks.open`."""
        config = self.config
        return GraphCache(
            encoder=self._encoder.open(),
            tails=[[np.zeros((2, *tail), np.float32) for tail in config.tails] for _ in range(config.steps)],
            prompt=self._empty_caches(),
            past=self._empty_caches(),
            fresh=lambda: self._empty_caches(self._window),
        )

    def _empty_caches(self, window: int = 0) -> list[FlowKVCache]:
        return [FlowKVCache(*self.config.attention, window) for _ in range(self.config.steps)]


def _prompt(cache: GraphCache) -> list[FlowKVCache]:
    return cache.prompt


def _past(cache: GraphCache) -> list[FlowKVCache]:
    return cache.past


def _rows(tails: Sequence[Float]) -> Float:
    """``[2, channels, 2]`` of each stream as ``[2 B, channels, 2]``, conditional rows first."""
    return np.stack(tails, axis=1).reshape(-1, *tails[0].shape[1:])
