"""The model `frontend`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import FRONTEND, Tensors
from cosyserve.frontend import Request, UtteranceFeatures
from cosyserve.limits import FRONTEND_THREADS
from cosyserve.load.frontend import load_frontend
from cosyserve.triton.adapter import Reply, lower_priority, read_inputs, read_settings, values, with_replies


class Frontend:
    """Checks requests and computes their features."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        lower_priority()
        self._frontend = load_frontend(read_settings(args))
        self._pool = ThreadPoolExecutor(FRONTEND_THREADS, thread_name_prefix="frontend")

    def execute(self, requests: list[Any]) -> None:
        """Features of each request, answered when they are ready."""
        for request, reply in with_replies(requests, FRONTEND):
            self._pool.submit(self._answer, request, reply)

    def finalize(self) -> None:
        """Called by Triton at shutdown."""
        self._pool.shutdown(cancel_futures=True)

    def _answer(self, request: Any, reply: Reply) -> None:
        try:
            given = values(read_inputs(request, FRONTEND), FRONTEND)
            compute = self._frontend.voice_features if given.pop("listen", False) else self._frontend
            reply.answer(_outputs(compute(Request(**given))))
        except Exception as error:
            reply.fail(error)


def _outputs(features: UtteranceFeatures) -> Tensors:
    parts = features.segments or features.speech
    return {
        "text_tokens": _joined(features.segments),
        "speech_tokens": _joined(features.speech),
        "segment_lengths": np.asarray([len(part) for part in parts], np.int32),
        "segment_texts": np.asarray([text.encode() for text in features.texts], np.object_),
        "prompt_text_tokens": features.prompt_text_tokens,
        "llm_prompt_tokens": features.llm_prompt_tokens,
        "llm_speaker_embedding": features.llm_speaker_embedding,
        "flow_prompt_tokens": features.flow_prompt_tokens,
        "prompt_mel": features.prompt_mel,
        "speaker_embedding": features.speaker_embedding,
    }


def _joined(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([np.zeros(0, np.int32), *parts])
