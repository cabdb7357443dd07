"""The embedding tables of the language model as one, for runtimes whose network takes embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import LlmConfig, expect
from cosyserve.llm.decoder import Ids, VocabLayout
from cosyserve.weights import Weights, map_tensors

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Embeddings:
    """Tables ``[ids, hidden]`` (memory-mapped where large), read by the ids of `Numbering`.

    Attributes:
        special: rows behind those of `speech` (upstream llm_embedding); there may be none.
    """

    config: LlmConfig
    text: Float
    speech: Float
    special: Float

    @classmethod
    def load(cls, weights: Weights) -> Embeddings:
        """Those of prepared weights; they stay on disk and are read row by row."""
        tables = map_tensors(weights.file("llm.safetensors"))
        config = expect(LlmConfig, weights.config.llm)
        special = tables.get("special", np.zeros((0, config.hidden), np.float32))
        return cls(config, tables["text"], tables["speech"], special)

    def __call__(self, ids: Ids) -> Float:
        """Input embeddings ``[n, hidden]``."""
        speech = VocabLayout(self.config).speech
        out = np.empty((len(ids), self.config.hidden), np.float32)
        for first, table in ((0, self.text), (speech, self.speech), (speech + len(self.speech), self.special)):
            mine = (ids >= first) & (ids < first + len(table))
            out[mine] = table[ids[mine] - first]
        return out
