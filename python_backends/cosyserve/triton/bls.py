"""The stages of the orchestrator as calls to the other Triton models (business logic scripting)."""

from __future__ import annotations

import asyncio
import itertools
import secrets
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
        # From a random start: another instance of this model, or one before it, must not share ids with this one.
        self._utterances = itertools.count(secrets.randbits(62))

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
        answers = _Answers(adapter.inner_request(LLM, {**inputs, "utterance": utterance}))
        ended = False
        try:
            while not ended:
                answer = await _timely(LLM.name, answers.next())
                if answer is None:
                    raise StageFailed("llm ended without a last response")
                outputs = adapter.read_outputs(answer, LLM)
                ended = bool(outputs["final"][0])
                yield outputs["speech_tokens"]  # type: ignore[misc]
        finally:
            if not ended:
                stop = adapter.inner_request(LLM, {"utterance": utterance, "stop": np.asarray([True])})
                await _timely(LLM.name, stop.async_exec(decoupled=True))
                while await _timely(LLM.name, answers.next()) is not None:
                    pass

    async def _call(self, stage: str, request: Any, model: Any) -> Tensors:
        return adapter.read_outputs(await _timely(stage, request.async_exec()), model)


class _Answers:
    """The responses to a decoupled request, one after another.

    Triton 2.51's iterator cannot be cancelled, blocks while it waits, and is not made for two readers: so every wait
    goes on in its thread when its awaiter is cancelled, and whoever comes next awaits that one. An iterator that is
    dropped before its last response blocks whichever thread drops it until that comes: read it to its end.
    """

    def __init__(self, request: Any) -> None:
        self._waiting: asyncio.Future[Any] | None = asyncio.ensure_future(request.async_exec(decoupled=True))
        self._iterator: Any = None

    async def next(self) -> Any:
        """The next response, or None after the last."""
        if self._iterator is None:
            self._iterator = await self._finished()
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().run_in_executor(None, next, self._iterator, None)
        return await self._finished()

    async def _finished(self) -> Any:
        assert self._waiting is not None
        result = await asyncio.shield(self._waiting)
        self._waiting = None
        return result


async def _timely(stage: str, call: Awaitable[T]) -> T:
    try:
        # Not wait_for: Python 3.11's loses a cancellation that arrives together with the result.
        async with asyncio.timeout(STAGE_TIMEOUT_SECONDS):
            return await call
    except TimeoutError:
        raise StageFailed(f"{stage} did not answer in {STAGE_TIMEOUT_SECONDS:.0f} s") from None
