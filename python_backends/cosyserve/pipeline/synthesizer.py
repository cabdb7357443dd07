"""One request, from tensors to audio chunks. It does not depend on Triton: the stages are passed in."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import FRONTEND, HIFT, Tensors
from cosyserve.limits import MAX_SECONDS_AHEAD
from cosyserve.pipeline.admission import Admission
from cosyserve.pipeline.captions import Captions
from cosyserve.pipeline.chunking import ChunkPlan, TokenSpan
from cosyserve.pipeline.detached import run_detached
from cosyserve.pipeline.segments import Ids, Segment, SegmentSource, WholeTextSource, segment_seed
from cosyserve.pipeline.session_text import SessionTextSource
from cosyserve.pipeline.text_session import TextSession
from cosyserve.pipeline.timeline import Chunk, Pcm, Timeline

WHOLE = 2**31
"""A hop that no segment reaches: everything in one piece."""


class Stages(Protocol):
    """The inner models, as awaitable calls that raise a `CosyServeError` on failure and never hang."""

    async def frontend(self, request: Tensors) -> Tensors:
        """Check a request and compute its features (contract `FRONTEND`)."""
        ...

    def speech_tokens(self, utterance: int, inputs: Tensors) -> AsyncGenerator[NDArray[np.int32], None]:
        """Groups of speech tokens of one segment (contract `LLM`); closing the generator ends the segment there.

        The first group of a segment whose text goes on is empty: from then on `add_text` may be called.
        """
        ...

    async def add_text(self, utterance: int, text: NDArray[np.int32], *, more: bool) -> None:
        """The next text ids of a segment; `more` is false with the last. A segment that has ended ignores them."""
        ...

    async def token2wav(self, sequence: int, inputs: Tensors, *, start: bool, end: bool) -> Pcm:
        """One step of a flow-and-vocoder sequence (contract `TOKEN2WAV`): an utterance, whatever its segments."""
        ...


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """What the orchestrator knows of the model, and the chunk policy."""

    chunk: int  # tokens of one model chunk
    lookahead: int  # tokens
    samples_per_token: int  # at the model's rate, an average where tokens vary
    sample_rate: int  # Hz
    first_hop: int  # tokens
    max_hop: int  # tokens


class Synthesizer:
    """Speaks requests; one object serves all of them and keeps nothing between them.

    Args:
        stages: inner models.
        grid: chunk geometry.
        admission: bound on utterances at once.
    """

    def __init__(self, stages: Stages, grid: ChunkGrid, admission: Admission) -> None:
        self._stages = stages
        self._grid = grid
        self._admission = admission
        # From a random start: other callers of the inner models must not meet these ids.
        self._ids = itertools.count(secrets.randbits(62))

    def sample_rate(self, request: Tensors) -> int:
        """Of the audio of a request, in Hz."""
        return int(request["sample_rate"][0]) if "sample_rate" in request else self._grid.sample_rate

    async def speak(self, request: Tensors, session: TextSession | None = None) -> AsyncGenerator[Chunk, None]:
        """Audio chunks of one request, as they are ready; the last has `final` set and no audio.

        Args:
            request: the inputs of contract `TTS` that were given.
            session: where the text comes from, instead of the request.

        Raises:
            Overloaded, InvalidInput, VoiceNotFound, Unsupported, SessionIdle, StageFailed: see `cosyserve.errors`.

        Cancelling the task or closing the iterator ends every stage within one chunk.
        """
        with self._admission.slot():
            given = {t.name: request[t.name] for t in FRONTEND.inputs if t.name in request}
            seed = int(request["seed"][0]) if "seed" in request else secrets.randbits(63)
            source: SegmentSource
            if session is None:
                features = await self._stages.frontend(given)
                source = WholeTextSource(features, seed)
            else:
                features = await self._stages.frontend({**given, "continues": np.zeros(1, np.int32)})
                source = SessionTextSource(self._stages.frontend, session, seed)
            stream = bool(request["stream"][0]) if "stream" in request else True
            sample_rate = self.sample_rate(request)
            speech = _Generation(self._stages, features, source, self._ids, self._grid)
            wave = _AudioSequence(self._stages, next(self._ids), sample_rate)
            timeline = _timeline(self._grid, request, sample_rate)
            opening = {t.name: request[t.name] for t in HIFT.inputs if t.name in request}
            opening |= {"stream": np.asarray([stream]), "seed": segment_seed(seed, 0)}
            if source.expected_tokens is not None:
                opening["expected_tokens"] = np.asarray([source.expected_tokens], np.int32)
            try:
                # The prompt is worked on, and a full server refuses, while the first tokens are generated.
                await wave.open(features, opening)
                index = 0
                while segment := await speech.segment(index):
                    async for audio, last in self._speak_segment(speech, wave, segment, stream):
                        tokens = len(segment.tokens)
                        yield timeline.chunk(audio, index, segment.spoken, tokens, ended=segment.ended, last=last)
                    index += 1
                yield timeline.end()
            finally:
                await speech.cancel()
                await wave.cancel()

    async def _speak_segment(
        self, speech: _Generation, wave: _AudioSequence, segment: Segment, stream: bool
    ) -> AsyncIterator[tuple[Pcm, bool]]:
        grid = self._grid
        plan = ChunkPlan(wave.prompt, grid.chunk, grid.lookahead, grid.first_hop if stream else WHOLE, grid.max_hop)
        final = False
        while not final:
            piece = await speech.piece(segment, plan)
            final = piece.final
            tokens = segment.tokens[piece.start : piece.stop]
            audio = await wave.step(tokens, final, segment.seed, end=final and segment.ends)
            if len(audio):
                yield audio, final


class _AudioSequence:
    """The token2wav sequence of an utterance.

    Its steps carry the time at which a listener who began with the first chunk runs out of audio, so that the inner
    models serve the most urgent stream first.
    """

    def __init__(self, stages: Stages, sequence: int, sample_rate: int) -> None:
        self._stages = stages
        self._sequence = sequence
        self._sample_ns = 1e9 / sample_rate
        self._deadline = time.monotonic_ns()
        self._live = False
        self.prompt = 0  # tokens

    async def open(self, features: Tensors, options: Tensors) -> None:
        """Start with the voice, the first segment's seed, what is expected of the segments, and the audio format."""
        voice = {name: features[name] for name in ("flow_prompt_tokens", "prompt_mel", "speaker_embedding")}
        self.prompt = len(features["flow_prompt_tokens"])
        self._live = True
        await self._call({**voice, **options, **_step([], False)}, start=True)

    async def step(self, tokens: list[int], final: bool, seed: NDArray[np.int64], *, end: bool) -> Pcm:
        """The audio that further tokens settle; `final` ends a segment, `end` the utterance."""
        audio = await self._call({"seed": seed, **_step(tokens, final)}, end=end)
        self._live = not end
        if len(audio):
            # A stream that fell behind, or had no text, does not overtake all others until it has caught up.
            began = max(self._deadline, time.monotonic_ns())
            self._deadline = began + round(len(audio) * self._sample_ns)
        return audio

    async def cancel(self) -> None:
        """End the sequence if it has not ended."""
        if self._live:
            await run_detached(self._call(_step([], False), end=True))

    async def _call(self, inputs: Tensors, *, start: bool = False, end: bool = False) -> Pcm:
        deadline = np.asarray([self._deadline], np.int64)
        return await self._stages.token2wav(self._sequence, {**inputs, "deadline": deadline}, start=start, end=end)


class _Generation:
    """Runs the LLM over the segments of a request, one after another, ahead of the audio but not too far."""

    def __init__(
        self, stages: Stages, features: Tensors, source: SegmentSource, ids: Iterator[int], grid: ChunkGrid
    ) -> None:
        self._stages = stages
        self._prompt = {name: features[name] for name in _LLM_PROMPT}
        self._source = source
        self._ids = ids
        self._begun: list[Segment] = []
        self._most_ahead = MAX_SECONDS_AHEAD * grid.sample_rate / grid.samples_per_token
        self._ahead = 0  # tokens that no piece has taken
        self._taken = asyncio.Event()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def segment(self, index: int) -> Segment | None:
        """The segment of this index, once it has begun; None when there are no more."""
        while index >= len(self._begun):
            if self._task.done():
                self._task.result()
                return None
            await self._change()
        return self._begun[index]

    async def piece(self, segment: Segment, plan: ChunkPlan) -> TokenSpan:
        """The next piece of a segment, once its tokens are there."""
        while (piece := plan.next(len(segment.tokens), segment.ended)) is None:
            if self._task.done():
                self._task.result()
            await self._change()
        self._ahead -= piece.stop - piece.start
        self._taken.set()
        return piece

    async def cancel(self) -> None:
        """Stop generating."""
        self._task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self._task

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._source.read())
                async with aclosing(self._source.segments()) as segments:
                    async for segment in segments:
                        self._begun.append(segment)
                        self._changed.set()
                        if not segment.ended:
                            await self._generate(segment, tasks)
        except ExceptionGroup as several:  # the first has ended the others
            raise several.exceptions[0] from None
        finally:
            self._changed.set()

    async def _generate(self, segment: Segment, tasks: asyncio.TaskGroup) -> None:
        await self._room()
        utterance = next(self._ids)
        inputs: Tensors = {"text_tokens": segment.text, "seed": segment.seed, **self._prompt}
        arriving = segment.arriving
        if arriving is not None:
            inputs["more"] = np.asarray([True])
        async with aclosing(self._stages.speech_tokens(utterance, inputs)) as groups:
            async for group in groups:
                if arriving is not None:
                    tasks.create_task(self._forward(utterance, arriving))
                    arriving = None
                segment.tokens.extend(group.tolist())
                self._ahead += len(group)
                self._changed.set()
        segment.ended = True
        self._changed.set()

    async def _forward(self, utterance: int, arriving: asyncio.Queue[Ids | None]) -> None:
        more = True
        while more:
            pieces = [await arriving.get()]
            while not arriving.empty():
                pieces.append(arriving.get_nowait())
            more = pieces[-1] is not None
            ids = np.concatenate([np.zeros(0, np.int32), *(piece for piece in pieces if piece is not None)])
            await self._stages.add_text(utterance, ids, more=more)

    async def _room(self) -> None:
        """Wait until another segment may begin."""
        while self._ahead > self._most_ahead:
            self._taken.clear()
            await self._taken.wait()


def _timeline(grid: ChunkGrid, request: Tensors, sample_rate: int) -> Timeline:
    speed = float(request["speed"][0]) if "speed" in request else 1.0
    samples_per_token = grid.samples_per_token / speed * sample_rate / grid.sample_rate
    timed = "timestamps" in request and request["timestamps"][0]
    return Timeline(samples_per_token, Captions(sample_rate, speed) if timed else None)


_LLM_PROMPT = ("prompt_text_tokens", "llm_prompt_tokens", "llm_speaker_embedding")


def _step(tokens: list[int], final: bool) -> Tensors:
    return {"speech_tokens": np.asarray(tokens, np.int32), "final": np.asarray([final])}
