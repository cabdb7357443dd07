"""The decoder of CosyVoice 1: sequences open with encoded text, and attention measures distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import TransformerConfig
from cosyserve.errors import InvalidInput
from cosyserve.llm.decoder import Ids, VocabLayout
from cosyserve.llm.graph_decoder import GraphDecoder, LlmNetworks
from cosyserve.llm.scores import LogitScores
from cosyserve.llm.sequence import GenerationRequest
from cosyserve.runtimes.graph import Array, Graph, Outputs

Float = NDArray[np.float32]


@dataclass(frozen=True)
class SpeechEmbeddings:
    """The speech embedding table ``[ids, inputs]``, read by the ids of `Numbering`: what is fed after the opening."""

    config: TransformerConfig
    table: Float

    def __call__(self, ids: Ids) -> Float:
        """Input embeddings ``[n, inputs]``."""
        rows: Float = self.table[ids - self.config.vocab]
        return rows


class PromptEncoder:
    """What a sequence is fed before its first token: start, speaker, encoded text, task, prompt speech.

    Args:
        config: sizes.
        tables: ``text``, ``speech`` and ``special`` (row 0 starts a sequence, row 1 the speech).
        encoder: graph ``llm_text``.
    """

    def __init__(self, config: TransformerConfig, tables: Mapping[str, Float], encoder: Graph) -> None:
        self._config, self._tables, self._encoder = config, tables, encoder

    def __call__(self, request: GenerationRequest) -> Float:
        """Input embeddings ``[n, inputs]``. Without a speaker embedding there is no position for it.

        Raises:
            InvalidInput: an id lies outside its vocabulary, there is no text, or the embedding has another size.
        """
        config, tables, given = self._config, self._tables, request.speaker
        VocabLayout(config).check(
            prompt_text_tokens=request.prompt_text,
            text_tokens=request.text,
            llm_prompt_tokens=request.prompt_speech,
        )
        if len(given) not in (0, config.speaker):
            raise InvalidInput("llm_speaker_embedding", f"has {len(given)} values, expected {config.speaker}")
        text = np.concatenate([request.prompt_text, request.text])
        if len(text) == 0:
            raise InvalidInput("text_tokens", "is empty")
        speaker = given if len(given) else np.zeros(config.speaker, np.float32)
        encoded = self._encoder({"embeds": tables["text"][text][None], "speaker": speaker[None]})
        start, task = tables["special"][:1], tables["special"][1:2]
        who = encoded["speaker_out"] if len(given) else start[:0]
        return np.concatenate([start, who, encoded["text"][0], task, tables["speech"][request.prompt_speech]])


class RelativeDecoder(GraphDecoder):
    """`Decoder` over graph ``llm``, whose prompts are input embeddings and not ids.

    Args:
        networks: the graph and its table.
        positions: graph ``llm_positions``.
        rows: sequences at once.
    """

    def __init__(self, networks: LlmNetworks, positions: Graph, rows: int) -> None:
        super().__init__(networks, rows)
        self._distances = positions
        self._positions: list[Float] = []

    def prefill(self, row: int, start: int, prompt: Array) -> LogitScores:
        """Append input embeddings ``[t, inputs]``; see `Decoder`."""
        return self._append(row, start, np.asarray(prompt, np.float32))

    def _run(self, rows: slice, embeds: Float, lengths: Ids) -> Outputs:
        past = {"past_k": self._cache.keys(rows), "past_v": self._cache.values(rows)}
        positions = self._reaching(self._cache.capacity)
        return self._networks.graph({"embeds": embeds, "lengths": lengths, "positions": positions, **past})

    def _reaching(self, capacity: int) -> list[Float]:
        """Per layer what there is to say of the distances ``0..capacity-1``; each is computed once."""
        known = len(self._positions[0]) if self._positions else 0
        if known < capacity:
            new = self._distances({"distances": np.arange(known, capacity)}).many("positions")
            old = self._positions or [array[:0] for array in new]
            self._positions = [np.concatenate(pair) for pair in zip(old, new, strict=True)]
        return [array[:capacity] for array in self._positions]
