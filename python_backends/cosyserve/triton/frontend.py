"""The model `frontend`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import FRONTEND, Tensors
from cosyserve.errors import InvalidInput
from cosyserve.frontend import Request, Utterance
from cosyserve.load import load_frontend
from cosyserve.triton.adapter import failure, read_inputs, read_settings, response


class Frontend:
    """Checks requests and computes their features."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        self._frontend = load_frontend(read_settings(args))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Features of each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            utterance = self._frontend(_request(read_inputs(request, FRONTEND)))
            return response(_outputs(utterance), FRONTEND)
        except Exception as error:
            return failure(error)


def _request(inputs: Tensors) -> Request:
    return Request(**{name: _value(name, array) for name, array in inputs.items()})


def _value(name: str, array: Any) -> Any:
    if FRONTEND.input(name).dims == (-1,):
        return array
    if array.dtype != np.object_:
        return array[0].item()
    try:
        return array[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(name, f"is not valid UTF-8 at byte {error.start}") from None


def _outputs(utterance: Utterance) -> Tensors:
    parts = utterance.segments or utterance.speech
    return {
        "text_tokens": _joined(utterance.segments),
        "speech_tokens": _joined(utterance.speech),
        "segment_lengths": np.asarray([len(part) for part in parts], np.int32),
        "segment_texts": np.asarray([text.encode() for text in utterance.texts], np.object_),
        "prompt_text_tokens": utterance.prompt_text_tokens,
        "llm_prompt_tokens": utterance.llm_prompt_tokens,
        "flow_prompt_tokens": utterance.flow_prompt_tokens,
        "prompt_mel": utterance.prompt_mel,
        "speaker_embedding": utterance.speaker_embedding,
    }


def _joined(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([np.zeros(0, np.int32), *parts])
