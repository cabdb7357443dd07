"""The stages of the orchestrator as calls to the other Triton models (business logic scripting)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import FLOW, FRONTEND, HIFT, LLM, TOKEN2WAV, Model, Tensors
from cosyserve.errors import StageFailed
from cosyserve.pipeline.detached import run_detached
from cosyserve.pipeline.sequence_calls import SequenceCalls
from cosyserve.settings import Settings
from cosyserve.triton import adapter
from cosyserve.triton.watchdog import ModelProcess

PARTS = {FRONTEND.name: (FRONTEND,), LLM.name: (LLM,), TOKEN2WAV.name: (FLOW, HIFT)}
"""The models whose processes answer a call to each stage."""


class BlsStages:
    """Implements `cosyserve.pipeline.synthesizer.Stages` on Triton.

    Args:
        settings: how long to wait for each stage.
    """

    def __init__(self, settings: Settings) -> None:
        self._timeout = settings.stage_timeout
        self._sequences = SequenceCalls()
        self._processes = {
            stage: [ModelProcess(model.name, partial(_ping, model)) for model in models]
            for stage, models in PARTS.items()
        }

    @property
    def processes(self) -> list[ModelProcess]:
        """The processes that calls go to."""
        return list(chain.from_iterable(self._processes.values()))

    async def frontend(self, request: Tensors) -> Tensors:
        """See `Stages.frontend`."""
        return await self._call(adapter.inner_request(FRONTEND, request), FRONTEND)

    async def token2wav(self, sequence: int, inputs: Tensors, *, start: bool, end: bool) -> NDArray[np.int16]:
        """See `Stages.token2wav`."""
        flags = (adapter.SEQUENCE_START if start else 0) | (adapter.SEQUENCE_END if end else 0)

        def call() -> Coroutine[Any, Any, Tensors]:
            request = adapter.inner_request(TOKEN2WAV, inputs, correlation_id=sequence, flags=flags)
            return self._call(request, TOKEN2WAV)

        audio: NDArray[np.int16] = (await self._sequences.send(sequence, call, end=end))["audio"]
        return audio

    async def speech_tokens(self, utterance: int, inputs: Tensors) -> AsyncGenerator[NDArray[np.int32], None]:
        """See `Stages.speech_tokens`. Closing the generator early sends the engine a stop for this utterance."""
        id = np.asarray([utterance], np.int64)
        asking: Tensors = {**inputs, "utterance": id}
        ended = False
        try:
            while not ended:
                outputs = await self._call(adapter.inner_request(LLM, asking), LLM)
                asking = {"utterance": id}
                ended = bool(outputs["final"][0])
                yield outputs["speech_tokens"]  # type: ignore[misc]
        finally:
            if not ended:
                stop = adapter.inner_request(LLM, {"utterance": id, "stop": np.asarray([True])})
                await run_detached(self._call(stop, LLM))

    async def add_text(self, utterance: int, text: NDArray[np.int32], *, more: bool) -> None:
        """See `Stages.add_text`."""
        inputs: Tensors = {
            "utterance": np.asarray([utterance], np.int64),
            "text_tokens": text,
            "more": np.asarray([more]),
        }
        await self._call(adapter.inner_request(LLM, inputs), LLM)

    async def _call(self, request: Any, model: Model) -> Tensors:
        try:
            # Not wait_for: Python 3.11's loses a cancellation that arrives together with the result.
            async with asyncio.timeout(self._timeout):
                with ExitStack() as stack:
                    for process in self._processes[model.name]:
                        stack.enter_context(process.waiting())
                    answer = await request.async_exec()
                    if adapter.from_model(answer):
                        for process in self._processes[model.name]:
                            process.answered()
        except TimeoutError:
            raise StageFailed(f"{model.name} did not answer in {self._timeout} s") from None
        return adapter.read_outputs(answer, model)


async def _ping(model: Model) -> bool:
    return adapter.from_model(await adapter.ping_request(model).async_exec())
