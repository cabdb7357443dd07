"""The language model in llama.cpp, from a file of ``cosyserve-build export-gguf``."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from cosyserve.errors import StageFailed, WeightsError

Float = NDArray[np.float32]

# llama.cpp tells about every tensor otherwise.
logging.getLogger("llama-cpp-python").setLevel(logging.WARNING)

BATCH = 512
"""Positions of one call of llama.cpp; a longer prompt takes several."""


class GgufDecoder:
    """Next-token logits of up to `sequences` sequences that come and go. Not thread-safe.

    Ids are those of the merged vocabulary: speech id i is ``offset + i``.

    Args:
        path: the GGUF file.
        sequences: most sequences at once; they are numbered from 0.
        capacity: positions that each can have, prompt included.
        threads: of one call.

    Attributes:
        offset: id of speech id 0.
        vocab: speech ids, the end ids included; the columns of logits.

    Raises:
        WeightsError: the file is missing, damaged, or from another tool.
    """

    def __init__(self, path: Path, sequences: int, capacity: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
        if not self._model:
            raise WeightsError(f"{path.name} is missing or is no GGUF file that llama.cpp can load")
        self.offset, self.vocab = self._number(path, "offset"), self._number(path, "vocab")

        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * capacity, sequences
        params.n_batch = params.n_ubatch = BATCH
        # The defaults, float16 in the cache and in the fused attention, cost logits up to 0.02 and save no time.
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._capacity, self._lengths = capacity, [0] * sequences

    def close(self) -> None:
        """Free everything; the object is of no use afterwards."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def prefill(self, sequence: int, ids: Sequence[int]) -> Float:
        """Append `ids` to one sequence; logits after the last, float32 [vocab].

        Raises:
            StageFailed: the sequence has no room left; drop it.
        """
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            logits = self._decode([(sequence, token) for token in part], wanted=range(len(part) - 1, len(part)))
        last: Float = logits[0]
        return last

    def step(self, sequences: Sequence[int], ids: Sequence[int]) -> Float:
        """Append one id to each of these sequences, at most `BATCH`; logits after it, float32 [n, vocab].

        Raises:
            StageFailed: one of them has no room left; nothing was appended to any.
        """
        return self._decode(list(zip(sequences, ids, strict=True)), wanted=range(len(ids)))

    def drop(self, sequence: int) -> None:
        """Forget a sequence; its number starts anew."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._lengths[sequence] = 0

    def _decode(self, entries: list[tuple[int, int]], wanted: range) -> Float:
        batch, lengths = self._batch, self._lengths.copy()
        batch.n_tokens = len(entries)
        for i, (sequence, token) in enumerate(entries):
            if lengths[sequence] == self._capacity:
                raise StageFailed(f"sequence {sequence} has reached {self._capacity} positions")
            batch.token[i], batch.pos[i] = token, lengths[sequence]
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = i in wanted
            lengths[sequence] += 1
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise StageFailed(f"llama.cpp could not append {len(entries)} positions (status {status})")
        self._lengths = lengths
        return np.stack([self._logits(row) for row in wanted])

    def _logits(self, row: int) -> Float:
        every = llama_cpp.llama_get_logits_ith(self._context, row)
        logits: Float = np.ctypeslib.as_array(every, (self.offset + self.vocab,))[self.offset :]
        return logits

    def _number(self, path: Path, key: str) -> int:
        value = ctypes.create_string_buffer(16)
        name = f"cosyvoice.speech.{key}".encode()
        if llama_cpp.llama_model_meta_val_str(self._model, name, value, len(value)) < 0:
            raise WeightsError(f"{path.name}: no {name.decode()}; make it with `cosyserve-build export-gguf`")
        return int(value.value)
