"""The road of one request, from tensors to audio chunks. Knows nothing of Triton: stages are passed in."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import FRONTEND, Tensors
from cosyserve.errors import CosyServeError
from cosyserve.pipeline.admission import Admission
from cosyserve.pipeline.chunks import ChunkPlan, Piece

Pcm = NDArray[np.int16]

WHOLE = 2**31
"""A hop that no segment reaches: everything in one piece."""


class Stages(Protocol):
    """The inner models, as awaitable calls that raise a `CosyServeError` on failure and never hang."""

    async def frontend(self, request: Tensors) -> Tensors:
        """Check a request and compute its features (contract `FRONTEND`)."""
        ...

    def speech_tokens(self, inputs: Tensors) -> AsyncGenerator[NDArray[np.int32], None]:
        """Groups of speech tokens of one segment (contract `LLM`); closing the generator ends the segment there."""
        ...

    async def token2wav(self, sequence: int, inputs: Tensors, *, start: bool, end: bool) -> Pcm:
        """One step of a flow-and-vocoder sequence (contract `TOKEN2WAV`)."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """One response to the client (contract `TTS`)."""

    audio: Pcm
    sample_offset: int
    token_offset: int
    segment: int
    final: bool


@dataclass(frozen=True, slots=True)
class Grid:
    """What the orchestrator knows of the model, and the chunk policy."""

    chunk: int  # tokens of one model chunk
    lookahead: int  # tokens
    samples_per_token: int
    first_hop: int  # tokens
    max_hop: int  # tokens


@dataclass
class _Segment:
    """One text segment: what to speak, and the speech tokens generated so far."""

    text: NDArray[np.int32]
    seed: NDArray[np.int64]
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class Synthesizer:
    """Speaks requests; one object serves all of them and keeps nothing between them.

    Args:
        stages: inner models.
        grid: chunk geometry.
        admission: bound on utterances at once.
    """

    def __init__(self, stages: Stages, grid: Grid, admission: Admission) -> None:
        self._stages = stages
        self._grid = grid
        self._admission = admission
        # From a random start: whoever else uses the inner models must not meet these sequences.
        self._sequences = itertools.count(secrets.randbits(62))

    async def speak(self, request: Tensors) -> AsyncGenerator[Chunk, None]:
        """Audio chunks of one request, as they are ready; the last has `final` set and no audio.

        Args:
            request: the inputs of contract `TTS` that were given.

        Raises:
            Overloaded, InvalidInput, VoiceNotFound, Unsupported, StageFailed: see `cosyserve.errors`.

        Cancelling the task or closing the iterator ends every stage within one chunk.
        """
        with self._admission.slot():
            features = await self._stages.frontend(
                {t.name: request[t.name] for t in FRONTEND.inputs if t.name in request}
            )
            segments = _split(features, int(request["seed"][0]) if "seed" in request else secrets.randbits(63))
            stream = bool(request["stream"][0]) if "stream" in request else True
            speech = _Speech(self._stages, features, segments)
            try:
                sent = 0
                for index, segment in enumerate(segments):
                    before = sent
                    async with aclosing(self._speak_segment(speech, segment, features, stream)) as pieces:
                        async for audio in pieces:
                            token = (sent - before) // self._grid.samples_per_token
                            yield Chunk(audio, sent, token, index, final=False)
                            sent += len(audio)
                yield Chunk(np.zeros(0, np.int16), sent, 0, len(segments) - 1, final=True)
            finally:
                await speech.close()

    async def _speak_segment(
        self, speech: _Speech, segment: _Segment, features: Tensors, stream: bool
    ) -> AsyncGenerator[Pcm, None]:
        grid, sequence = self._grid, next(self._sequences)
        prompt = len(features["flow_prompt_tokens"])
        first_hop = grid.first_hop if stream else WHOLE
        plan = ChunkPlan(prompt, grid.chunk, grid.lookahead, first_hop, grid.max_hop)
        opening: Tensors = {
            "stream": np.asarray([stream]),
            "seed": segment.seed,
            **{name: features[name] for name in ("flow_prompt_tokens", "prompt_mel", "speaker_embedding")},
        }
        ended = False
        try:
            while not ended:
                piece = await speech.piece(segment, plan)
                inputs = {**opening, **_step(segment.tokens[piece.start : piece.stop], piece.final)}
                start, opening = bool(opening), {}
                audio = await self._stages.token2wav(sequence, inputs, start=start, end=piece.final)
                ended = piece.final
                if len(audio):
                    yield audio
        finally:
            if not opening and not ended:
                # A sequence that broke is gone already, and its own error is the one to report.
                with suppress(CosyServeError):
                    await self._stages.token2wav(sequence, _step([], False), start=False, end=True)


class _Speech:
    """Runs the LLM over the segments of a request, one after another, ahead of the audio."""

    def __init__(self, stages: Stages, features: Tensors, segments: list[_Segment]) -> None:
        self._stages = stages
        self._prompt = {name: features[name] for name in ("prompt_text_tokens", "llm_prompt_tokens")}
        self._segments = segments
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def piece(self, segment: _Segment, plan: ChunkPlan) -> Piece:
        """The next piece of a segment, once its tokens are there."""
        while (piece := plan.next(len(segment.tokens), segment.ended)) is None:
            if self._task.done():
                self._task.result()
            self._changed.clear()
            await self._changed.wait()
        return piece

    async def close(self) -> None:
        """Stop generating."""
        self._task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self._task

    async def _run(self) -> None:
        try:
            for segment in self._segments:
                inputs: Tensors = {"text_tokens": segment.text, "seed": segment.seed, **self._prompt}
                async with aclosing(self._stages.speech_tokens(inputs)) as groups:
                    async for group in groups:
                        segment.tokens.extend(group.tolist())
                        self._changed.set()
                segment.ended = True
                self._changed.set()
        finally:
            self._changed.set()


def _split(features: Tensors, seed: int) -> list[_Segment]:
    bounds = np.cumsum(features["segment_lengths"])[:-1]
    texts = np.split(features["text_tokens"].astype(np.int32), bounds)
    return [_Segment(text, _segment_seed(seed, index)) for index, text in enumerate(texts)]


def _segment_seed(seed: int, index: int) -> NDArray[np.int64]:
    words = np.random.SeedSequence([seed % 2**64, index]).generate_state(1, np.uint64)
    return (words >> np.uint64(1)).astype(np.int64)


def _step(tokens: list[int], final: bool) -> Tensors:
    return {"speech_tokens": np.asarray(tokens, np.int32), "final": np.asarray([final])}
