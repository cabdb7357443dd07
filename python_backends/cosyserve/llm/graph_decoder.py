"""The decoder behind a graph with explicit keys and values, which onnxruntime runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import AnyLlm
from cosyserve.limits import PREFILL_CHUNK
from cosyserve.llm.decoder import Ids, OneByOne, Prompt
from cosyserve.llm.kv_cache import KVCache
from cosyserve.llm.scores import LogitScores
from cosyserve.runtimes.graph import Graph, Outputs

Float = NDArray[np.float32]


class EmbeddingTable(Protocol):
    """Embedding tables, read by the ids of `VocabLayout`."""

    @property
    def config(self) -> AnyLlm:
        """Sizes."""
        ...

    def __call__(self, ids: Ids) -> Float:
        """Input embeddings ``[n, width]``."""
        ...


@dataclass(frozen=True)
class LlmNetworks:
    """The decoder graph ``llm`` and its embedding tables."""

    graph: Graph
    embed: EmbeddingTable

    @property
    def config(self) -> AnyLlm:
        """Sizes."""
        return self.embed.config


class GraphDecoder(OneByOne):
    """`Decoder` over a graph: looks embeddings up and keeps the keys and values in host memory, as many as come.

    Args:
        networks: the graph and its tables.
        rows: sequences at once.
    """

    capacity = sys.maxsize
    prefill_chunk = PREFILL_CHUNK

    def __init__(self, networks: LlmNetworks, rows: int) -> None:
        config = networks.config
        self._networks = networks
        self._cache = KVCache(config.layers, rows, config.kv_heads, config.head_dim)

    def prefill(self, row: int, start: int, prompt: Prompt) -> LogitScores:
        """See `Decoder`."""
        return self._append(row, start, self._networks.embed(prompt))

    def step(self, ids: Ids, lengths: Ids) -> LogitScores:
        """See `Decoder`."""
        self._cache.fit(int(lengths.max()) + 1)
        out = self._run(slice(0, len(ids)), self._networks.embed(ids)[:, None], lengths)
        self._cache.append(lengths, *_new(out))
        return self._scores(out)

    def move(self, source: int, target: int, length: int) -> None:
        """See `Decoder`."""
        self._cache.move(source, target, length)

    def release(self, row: int) -> None:
        """See `Decoder`."""
        self._cache.release(row)

    def _append(self, row: int, start: int, embeds: Float) -> LogitScores:
        rows = slice(row, row + 1)
        self._cache.fit(start + len(embeds))
        out = self._run(rows, embeds[None], np.asarray([start], np.int64))
        self._cache.write(rows, start, *_new(out))
        return self._scores(out)

    def _run(self, rows: slice, embeds: Float, lengths: Ids) -> Outputs:
        past = {"past_k": self._cache.keys(rows), "past_v": self._cache.values(rows)}
        return self._networks.graph({"embeds": embeds, "lengths": lengths, **past})

    def _scores(self, out: Outputs) -> LogitScores:
        return LogitScores(out["logits"], self._networks.config.end)


def _new(out: Outputs) -> tuple[Sequence[Float], Sequence[Float]]:
    return out.many("new_k"), out.many("new_v")
