"""The road of one request, from tensors to audio chunks. Knows nothing of Triton: stages are passed in."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import FRONTEND, HIFT, Tensors
from cosyserve.errors import CosyServeError
from cosyserve.limits import MAX_SECONDS_AHEAD
from cosyserve.pipeline.admission import Admission
from cosyserve.pipeline.captions import Captions
from cosyserve.pipeline.chunks import ChunkPlan, Piece
from cosyserve.pipeline.timeline import Chunk, Pcm, Timeline

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
        """One step of a flow-and-vocoder sequence (contract `TOKEN2WAV`): an utterance, whatever its segments."""
        ...


@dataclass(frozen=True, slots=True)
class Grid:
    """What the orchestrator knows of the model, and the chunk policy."""

    chunk: int  # tokens of one model chunk
    lookahead: int  # tokens
    samples_per_token: int  # at the model's rate, an average where tokens vary
    sample_rate: int  # Hz
    first_hop: int  # tokens
    max_hop: int  # tokens


@dataclass
class _Segment:
    """One segment: the text to speak and the speech tokens generated so far, or in mode vc all of them and no text."""

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
            sample_rate = int(request["sample_rate"][0]) if "sample_rate" in request else self._grid.sample_rate
            speech = _Speech(self._stages, features, segments, self._grid)
            wave = _Wave(self._stages, next(self._sequences), sample_rate)
            timeline = _timeline(self._grid, request, features, sample_rate)
            shape = {t.name: request[t.name] for t in HIFT.inputs if t.name in request}
            try:
                # The prompt is worked on, and a full server refuses, while the first tokens are generated.
                await wave.open(features, shape | {"stream": np.asarray([stream]), "seed": segments[0].seed})
                for index, segment in enumerate(segments):
                    ends = segment is segments[-1]
                    async for audio, last in self._speak_segment(speech, wave, segment, stream, ends):
                        tokens = len(segment.tokens)
                        yield timeline.chunk(audio, index, tokens, ended=segment.ended, last=last)
                yield timeline.end()
            finally:
                await speech.close()
                await wave.close()

    async def _speak_segment(
        self, speech: _Speech, wave: _Wave, segment: _Segment, stream: bool, ends: bool
    ) -> AsyncIterator[tuple[Pcm, bool]]:
        grid = self._grid
        plan = ChunkPlan(wave.prompt, grid.chunk, grid.lookahead, grid.first_hop if stream else WHOLE, grid.max_hop)
        final = False
        while not final:
            piece = await speech.piece(segment, plan)
            final = piece.final
            audio = await wave.step(segment.tokens[piece.start : piece.stop], final, segment.seed, end=final and ends)
            if len(audio):
                yield audio, final


class _Wave:
    """The token2wav sequence of an utterance.

    Its steps carry the time at which a listener who began with the first chunk runs out of audio, so that the inner
    models serve first whoever waits most.
    """

    def __init__(self, stages: Stages, sequence: int, sample_rate: int) -> None:
        self._stages = stages
        self._sequence = sequence
        self._sample_ns = 1e9 / sample_rate
        self._deadline = time.monotonic_ns()
        self._sent = 0
        self._live = False
        self.prompt = 0  # tokens

    async def open(self, features: Tensors, options: Tensors) -> None:
        """Begin with the voice, the first segment's seed and what the audio shall be like."""
        voice = {name: features[name] for name in ("flow_prompt_tokens", "prompt_mel", "speaker_embedding")}
        self.prompt = len(features["flow_prompt_tokens"])
        self._live = True
        await self._call({**voice, **options, **_step([], False)}, start=True)

    async def step(self, tokens: list[int], final: bool, seed: NDArray[np.int64], *, end: bool) -> Pcm:
        """The audio that further tokens settle; `final` ends a segment, `end` the utterance."""
        audio = await self._call({"seed": seed, **_step(tokens, final)}, end=end)
        self._live = not end
        if len(audio):
            began = self._deadline if self._sent else time.monotonic_ns()
            self._deadline = began + round(len(audio) * self._sample_ns)
            self._sent += len(audio)
        return audio

    async def close(self) -> None:
        """End the sequence if it has not ended."""
        if self._live:
            # A sequence that broke is gone already, and its own error is the one to report.
            with suppress(CosyServeError):
                await self._call(_step([], False), end=True)

    async def _call(self, inputs: Tensors, *, start: bool = False, end: bool = False) -> Pcm:
        deadline = np.asarray([self._deadline], np.int64)
        return await self._stages.token2wav(self._sequence, {**inputs, "deadline": deadline}, start=start, end=end)


class _Speech:
    """Runs the LLM over the segments of a request, one after another, ahead of the audio but not too far."""

    def __init__(self, stages: Stages, features: Tensors, segments: list[_Segment], grid: Grid) -> None:
        self._stages = stages
        self._prompt = {name: features[name] for name in _LLM_PROMPT}
        self._segments = segments
        self._most_ahead = MAX_SECONDS_AHEAD * grid.sample_rate / grid.samples_per_token
        self._ahead = 0  # tokens that no piece has taken
        self._taken = asyncio.Event()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def piece(self, segment: _Segment, plan: ChunkPlan) -> Piece:
        """The next piece of a segment, once its tokens are there."""
        while (piece := plan.next(len(segment.tokens), segment.ended)) is None:
            if self._task.done():
                self._task.result()
            self._changed.clear()
            await self._changed.wait()
        self._ahead -= piece.stop - piece.start
        self._taken.set()
        return piece

    async def close(self) -> None:
        """Stop generating."""
        self._task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self._task

    async def _run(self) -> None:
        try:
            for segment in self._segments:
                if segment.ended:
                    continue
                await self._room()
                inputs: Tensors = {"text_tokens": segment.text, "seed": segment.seed, **self._prompt}
                async with aclosing(self._stages.speech_tokens(inputs)) as groups:
                    async for group in groups:
                        segment.tokens.extend(group.tolist())
                        self._ahead += len(group)
                        self._changed.set()
                segment.ended = True
                self._changed.set()
        finally:
            self._changed.set()

    async def _room(self) -> None:
        """Wait until another segment may begin."""
        while self._ahead > self._most_ahead:
            self._taken.clear()
            await self._taken.wait()


def _timeline(grid: Grid, request: Tensors, features: Tensors, sample_rate: int) -> Timeline:
    speed = float(request["speed"][0]) if "speed" in request else 1.0
    samples_per_token = grid.samples_per_token / speed * sample_rate / grid.sample_rate
    if "timestamps" not in request or not request["timestamps"][0]:
        return Timeline(samples_per_token)
    texts = [text.decode() for text in features["segment_texts"]]
    return Timeline(samples_per_token, Captions(texts, sample_rate, speed) if texts else None)


_LLM_PROMPT = ("prompt_text_tokens", "llm_prompt_tokens", "llm_speaker_embedding")


def _split(features: Tensors, seed: int) -> list[_Segment]:
    bounds = np.cumsum(features["segment_lengths"])[:-1]
    given = len(features["speech_tokens"]) > 0
    parts = np.split(features["speech_tokens" if given else "text_tokens"].astype(np.int32), bounds)
    seeds = (_segment_seed(seed, index) for index in range(len(parts)))
    if given:
        nothing = np.zeros(0, np.int32)
        return [_Segment(nothing, seed, part.tolist(), ended=True) for part, seed in zip(parts, seeds, strict=True)]
    return [_Segment(part, seed) for part, seed in zip(parts, seeds, strict=True)]


def _segment_seed(seed: int, index: int) -> NDArray[np.int64]:
    words = np.random.SeedSequence([seed % 2**64, index]).generate_state(1, np.uint64)
    return (words >> np.uint64(1)).astype(np.int64)


def _step(tokens: list[int], final: bool) -> Tensors:
    return {"speech_tokens": np.asarray(tokens, np.int32), "final": np.asarray([final])}
