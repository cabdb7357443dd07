"""Speech tokens to mu over a graph, for each kind of flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cosyserve.config import DitFlowConfig, UNetFlowConfig
from cosyserve.flow.kv_cache import ALIGNMENT
from cosyserve.flow.networks import EncodeJob, Float
from cosyserve.runtimes.graph import Graph


class EncoderCache(Protocol):
    """What the encoder keeps of one stream. Arrays are replaced, never changed in place."""

    @property
    def nbytes(self) -> int:
        """Bytes that grow with the stream."""
        ...


class Encoder(Protocol):
    """Network of `EncodeJob` over graph ``flow_encoder``; the state of a job's stream is ``job.cache.encoder``."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of state for each mel frame."""
        ...

    def open(self) -> EncoderCache:
        """The state before the first chunk."""
        ...

    def can_batch(self, batch: Sequence[EncodeJob], job: EncodeJob, /) -> bool:
        """See `Network.can_batch`."""
        ...

    def __call__(self, batch: Sequence[EncodeJob], /) -> list[Float]:
        """Encode a chunk of each stream."""
        ...


@dataclass
class ConformerCache:
    """See `EncoderCache`.

    Attributes:
        conv_tail: ``[1, width, 2]``.
        up_tail: ``[1, width, 2 * ratio]``.
        layers: keys, then values, ``[heads, positions, dim]`` for each layer.
    """

    conv_tail: Float
    up_tail: Float
    layers: list[Float]

    @property
    def nbytes(self) -> int:
        """See `EncoderCache.nbytes`."""
        return sum(layer.nbytes for layer in self.layers)


class ConformerGraph:
    """The encoder of an up-sampling conformer."""

    def __init__(self, config: UNetFlowConfig, graph: Graph) -> None:
        self._config, self._graph = config, graph

    @property
    def frame_bytes(self) -> int:
        """See `Encoder.frame_bytes`."""
        config = self._config
        return 4 * 2 * config.width * (config.ratio * config.up_blocks + config.blocks) // config.ratio

    def open(self) -> ConformerCache:
        """See `Encoder.open`."""
        config = self._config
        none = np.zeros((config.heads, 0, config.width // config.heads), np.float32)
        return ConformerCache(
            conv_tail=np.zeros((1, config.width, 2), np.float32),
            up_tail=np.zeros((1, config.width, 2 * config.ratio), np.float32),
            layers=[none] * (2 * (config.blocks + config.up_blocks)),
        )

    def can_batch(self, batch: Sequence[EncodeJob], job: EncodeJob) -> bool:
        """Chunks of one length at about one position: there the batch changes no rounding."""
        first = batch[0]
        return len(job.tokens) == len(first.tokens) and _padded_lengths(job.cache.encoder) == _padded_lengths(
            first.cache.encoder
        )

    def __call__(self, batch: Sequence[EncodeJob]) -> list[Float]:
        """Encode a chunk of each stream."""
        caches: list[ConformerCache] = [job.cache.encoder for job in batch]
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


@dataclass
class LookaheadCache:
    """See `EncoderCache`; ``conv_tail`` is ``[1, channels, 2]``."""

    conv_tail: Float

    @property
    def nbytes(self) -> int:
        """Nothing grows."""
        return 0


class LookaheadGraph:
    """The two convolutions of a flow without conformer."""

    frame_bytes = 0

    def __init__(self, config: DitFlowConfig, graph: Graph) -> None:
        self._config, self._graph = config, graph

    def open(self) -> LookaheadCache:
        """See `Encoder.open`."""
        return LookaheadCache(np.zeros((1, self._config.lookahead_channels, 2), np.float32))

    def can_batch(self, batch: Sequence[EncodeJob], job: EncodeJob) -> bool:
        """Chunks of one length."""
        return len(job.tokens) == len(batch[0].tokens)

    def __call__(self, batch: Sequence[EncodeJob]) -> list[Float]:
        """Encode a chunk of each stream."""
        caches: list[LookaheadCache] = [job.cache.encoder for job in batch]
        out = self._graph(
            {
                "tokens": np.stack([job.tokens for job in batch]),
                "context": np.stack([job.context for job in batch]),
                "context_valid": np.stack([job.context_valid for job in batch]),
                "conv_tail": np.concatenate([cache.conv_tail for cache in caches]),
            }
        )
        for row, cache in enumerate(caches):
            cache.conv_tail = out["conv_tail_out"][row : row + 1]
        return list(out["mu"])


def _padded_lengths(cache: ConformerCache) -> list[int]:
    return [-(-layer.shape[1] // ALIGNMENT) for layer in cache.layers]


def _right_aligned(arrays: Sequence[Float]) -> Float:
    """``[heads, positions, dim]`` of each stream as ``[B, heads, padded, dim]``, behind zeros."""
    heads, _, dim = arrays[0].shape
    padded = ALIGNMENT * -(-max(a.shape[1] for a in arrays) // ALIGNMENT)
    out = np.zeros((len(arrays), heads, padded, dim), np.float32)
    for row, array in zip(out, arrays, strict=True):
        row[:, padded - array.shape[1] :] = array
    return out
