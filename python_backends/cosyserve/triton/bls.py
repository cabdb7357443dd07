"""The stages of the orchestrator as calls to the other Triton models (business logic scripting)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import FRONTEND, LLM, TOKEN2WAV, Tensors
from cosyserve.errors import StageFailed
from cosyserve.limits import STAGE_TIMEOUT_SECONDS
from cosyserve.triton import adapter

T = TypeVar("T")


class BlsStages:
    """Implements `cosyserve.pipeline.orchestrate.Stages` on Triton."""

    def __init__(self) -> None:
        self._utterances = itertools.count(1)

    async def frontend(self, request: Tensors) -> Tensors:
        """See `Stages.frontend`."""
        return await self._call(FRONTEND.name, adapter.inner_request(FRONTEND, request), FRONTEND)

    async def token2wav(self, sequence: int, inputs: Tensors, *, start: bool, end: bool) -> NDArray[np.int16]:
        """See `Stages.token2wav`."""
        flags = (adapter.SEQUENCE_START if start else 0) | (adapter.SEQUENCE_END if end else 0)
        request = adapter.inner_request(TOKEN2WAV, inputs, correlation_id=sequence, flags=flags)
        audio: NDArray[np.int16] = (await self._call(TOKEN2WAV.name, request, TOKEN2WAV))["audio"]  # type: ignore[assignment]
        return audio

    async def speech_tokens(self, inputs: Tensors) -> AsyncGenerator[NDArray[np.int32], None]:
        """See `Stages.speech_tokens`. Closing the generator early sends the engine a stop for this utterance."""
        utterance = np.asarray([next(self._utterances)], np.int64)
        request = adapter.inner_request(LLM, {**inputs, "utterance": utterance})
        answers = await _timely(LLM.name, request.async_exec(decoupled=True))
        loop = asyncio.get_running_loop()
        ended = False
        try:
            while not ended:
                answer = await _timely(LLM.name, loop.run_in_executor(None, next, answers, None))
                if answer is None:
                    raise StageFailed("llm ended without a last response")
                outputs = adapter.read_outputs(answer, LLM)
                ended = bool(outputs["final"][0])
                yield outputs["speech_tokens"]  # type: ignore[misc]
        finally:
            if not ended:
                # The BLS iterator of Triton 2.51 cannot be cancelled: ask the engine instead.
                stop = adapter.inner_request(LLM, {"utterance": utterance, "stop": np.asarray([True])})
                await _timely(LLM.name, stop.async_exec(decoupled=True))

    async def _call(self, stage: str, request: Any, model: Any) -> Tensors:
        return adapter.read_outputs(await _timely(stage, request.async_exec()), model)


async def _timely(stage: str, call: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(call, STAGE_TIMEOUT_SECONDS)
    except TimeoutError:
        raise StageFailed(f"{stage} did not answer in {STAGE_TIMEOUT_SECONDS:.0f} s") from None
