"""The language model in llama.cpp: quantised matrices, so that a step reads less memory."""

from __future__ import annotations

import logging
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from cosyserve.errors import InvalidInput, StageFailed, WeightsError
from cosyserve.limits import GGUF_POSITIONS, PREFILL_CHUNK
from cosyserve.llm.decoder import Ids, OneByOne
from cosyserve.llm.embeddings import Embeddings
from cosyserve.llm.scores import LogitScores
from cosyserve.settings import Settings
from cosyserve.weights import Weights

Float = NDArray[np.float32]

# Its binding takes llama.cpp's levels for one higher than they are: this lets warnings through and not every tensor.
logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)

BATCH = 512
"""Positions of one call of llama.cpp; a longer prompt takes several."""


class GgufDecoder(OneByOne):
    """`cosyserve.llm.decoder.Decoder` over rows that are sequences of llama.cpp.

    Scores of q4_0 and q8_0 files are the same bit for bit however many rows step together; those of f16 and f32 files
    are not (measured on CPU: logits differ by up to 4e-3 and 4e-6), so their samples may depend on load.

    Args:
        path: the GGUF file.
        embeddings: tables of the same model; the file's own are not read.
        rows: sequences at once.
        threads: of one call.
        capacity: positions of a row.

    Raises:
        WeightsError: the file is damaged, or from another tool.
    """

    def __init__(
        self, path: Path, embeddings: Embeddings, rows: int, threads: int, capacity: int = GGUF_POSITIONS
    ) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
        if not self._model:
            raise WeightsError(f"{path.name} is no GGUF file that llama.cpp can load")
        self._embed, self._config = embeddings, embeddings.config
        found = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        if found != self._config.speech_vocab:
            raise WeightsError(f"{path.name}: {found} ids, expected {self._config.speech_vocab}; prepare it again")

        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = rows * capacity, rows
        params.n_batch = params.n_ubatch = BATCH
        # The defaults, float16 in the cache and in the fused attention, cost logits up to 0.02 and save no time.
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, self._config.hidden, 1)
        self._inputs = np.ctypeslib.as_array(self._batch.embd, (BATCH, self._config.hidden))
        self.capacity = capacity
        self.prefill_chunk = PREFILL_CHUNK
        self._broken = np.zeros(rows, np.bool_)

    def close(self) -> None:
        """Free everything; the object is of no use afterwards."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def prefill(self, row: int, start: int, ids: Ids) -> LogitScores:
        """See `Decoder.prefill`.

        Raises:
            InvalidInput: the row is full.
        """
        return self._prefill(row, start, self._embed(ids))

    def step(self, ids: Ids, lengths: Ids) -> LogitScores:
        """See `Decoder.step`.

        Raises:
            InvalidInput: a row is full; nothing was appended to any.
        """
        rows = np.arange(len(ids))
        return self._decode(rows, lengths, self._embed(ids), wanted=rows)

    def move(self, source: int, target: int, length: int) -> None:
        """See `Decoder.move`."""
        # Relabelling would be free, but llama.cpp batches only neighbours: rows in disorder step one by one.
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._broken[target] = self._broken[source]

    def release(self, row: int) -> None:
        """See `Decoder.release`."""
        length = llama_cpp.llama_memory_seq_pos_max(self._memory, row) + 1
        llama_cpp.llama_memory_seq_rm(self._memory, row, -1, -1)
        if self._broken[row]:
            # llama.cpp hides old values behind a weight of 0, which a NaN survives; so finite ones take their place.
            self._prefill(row, 0, np.zeros((length, self._config.hidden), np.float32))
            llama_cpp.llama_memory_seq_rm(self._memory, row, -1, -1)
            self._broken[row] = False

    def _prefill(self, row: int, start: int, embeds: Float) -> LogitScores:
        for first in range(0, len(embeds), BATCH):
            part = embeds[first : first + BATCH]
            places = start + first + np.arange(len(part))
            scores = self._decode(np.full(len(part), row), places, part, wanted=np.asarray([len(part) - 1]))
        return scores

    def _decode(self, rows: Ids, places: Ids, embeds: Float, wanted: Ids) -> LogitScores:
        if places.max() >= self.capacity:
            raise InvalidInput("text", f"with its prompt exceeds {self.capacity} positions")
        batch, count = self._batch, len(rows)
        batch.n_tokens = count
        self._inputs[:count] = embeds
        for i, (row, place) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = place, 1, row, 0
        for i in wanted.tolist():
            batch.logits[i] = 1
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise StageFailed(f"llama.cpp could not append {count} positions (status {status})")
        logits = np.stack([self._logits(i) for i in wanted.tolist()])
        self._broken[rows[wanted]] |= ~np.isfinite(logits).all(axis=1)
        return LogitScores(logits, self._config.end)

    def _logits(self, index: int) -> Float:
        found = llama_cpp.llama_get_logits_ith(self._context, index)
        logits: Float = np.ctypeslib.as_array(found, (self._config.speech_vocab,))
        return logits


def load_decoder(weights: Weights, settings: Settings) -> GgufDecoder:
    """The language model with the rows that an engine of `llm_slots` sequences needs.

    Raises:
        WeightsError: the weights were prepared without it.
    """
    if "llm.gguf" not in weights.manifest["files"]:
        raise WeightsError("llm.gguf is not in the weights folder: prepare the bundle with `--llm-gguf q8_0`")
    return GgufDecoder(weights.file("llm.gguf"), Embeddings.load(weights), settings.llm_rows, settings.threads)
