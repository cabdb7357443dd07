"""The model `frontend`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import FRONTEND, Tensors
from cosyserve.frontend import Request, Utterance
from cosyserve.limits import FRONTEND_THREADS
from cosyserve.load import load_frontend
from cosyserve.triton.adapter import Asker, asked, give_way, read_inputs, read_settings, values


class Frontend:
    """Checks requests and computes their features."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        give_way()
        self._frontend = load_frontend(read_settings(args))
        self._pool = ThreadPoolExecutor(FRONTEND_THREADS, thread_name_prefix="frontend")

    def execute(self, requests: list[Any]) -> None:
        """Features of each request, answered when they are ready."""
        for request, asker in asked(requests, FRONTEND):
            self._pool.submit(self._answer, request, asker)

    def finalize(self) -> None:
        """Called by Triton at shutdown."""
        self._pool.shutdown(cancel_futures=True)

    def _answer(self, request: Any, asker: Asker) -> None:
        try:
            given = values(read_inputs(request, FRONTEND), FRONTEND)
            hears = self._frontend.listen if given.pop("listen", False) else self._frontend
            asker.answer(_outputs(hears(Request(**given))))
        except Exception as error:
            asker.fail(error)


def _outputs(utterance: Utterance) -> Tensors:
    parts = utterance.segments or utterance.speech
    return {
        "text_tokens": _joined(utterance.segments),
        "speech_tokens": _joined(utterance.speech),
        "segment_lengths": np.asarray([len(part) for part in parts], np.int32),
        "segment_texts": np.asarray([text.encode() for text in utterance.texts], np.object_),
        "prompt_text_tokens": utterance.prompt_text_tokens,
        "llm_prompt_tokens": utterance.llm_prompt_tokens,
        "llm_speaker_embedding": utterance.llm_speaker_embedding,
        "flow_prompt_tokens": utterance.flow_prompt_tokens,
        "prompt_mel": utterance.prompt_mel,
        "speaker_embedding": utterance.speaker_embedding,
    }


def _joined(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([np.zeros(0, np.int32), *parts])
