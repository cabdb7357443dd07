"""Fake stages for the orchestrator: each token's audio is its own number, so that tests can read the tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import Tensors
from cosyserve.errors import CosyServeError, StageFailed
from cosyserve.pipeline.synthesizer import ChunkGrid
from cosyserve.scheduler import Scheduler
from cosyserve.sequences import SequenceTable

GRID = ChunkGrid(chunk=25, lookahead=3, samples_per_token=4, sample_rate=100, first_hop=25, max_hop=100)
GROUP = 5


def turn(scheduler: Scheduler | SequenceTable) -> bool:
    """Run the next call in this thread; False when there is none."""
    call = scheduler.schedule()
    if call is None:
        return False
    call.run()
    scheduler.update(call)
    return True


async def nothing(point: str) -> None:
    """The hook of stages that work."""


class FakeStages:
    """Implements `cosyserve.pipeline.synthesizer.Stages` and records its calls.

    Every wait of a stage has a name, and `hook` is called there: it may wait, or raise what the stage then raises.
    The names are ``frontend``, ``llm <segment>.<group>``, ``llm stop``, ``token2wav <sequence>.<step>``.

    Args:
        speech: number of speech tokens of each segment; segment s speaks ``1000 s``, ``1000 s + 1``, ...
        prompt: prompt speech tokens of the voice.
        source: whether the speech is that of a source, and all there.
    """

    def __init__(self, speech: Sequence[int], prompt: int = 0, *, source: bool = False) -> None:
        self.speech = speech
        self.prompt = prompt
        self.source = source
        self.hook: Callable[[str], Awaitable[None]] = nothing
        self.points: list[str] = []
        self.requests: list[Tensors] = []
        self.llm_inputs: list[Tensors] = []
        self.steps: list[tuple[int, Tensors, bool, bool]] = []
        self.generating = 0
        self.live: dict[int, tuple[list[int], int]] = {}
        self.numbers: dict[int, int] = {}  # tokens taken, tokens spoken
        self.samples_per_token = GRID.samples_per_token  # as the last utterance wants its audio

    @property
    def idle(self) -> bool:
        """Return whether no stage holds anything."""
        return self.generating == 0 and not self.live

    async def frontend(self, request: Tensors) -> Tensors:
        self.requests.append(request)
        await self._reach("frontend")
        texts = range(0 if self.source else len(self.speech))
        lengths = list(self.speech) if self.source else [2 + segment for segment in range(len(self.speech))]
        speech = [1000 * segment + np.arange(count, dtype=np.int32) for segment, count in enumerate(self.speech)]
        return {
            "text_tokens": np.arange(0 if self.source else sum(lengths), dtype=np.int32),
            "speech_tokens": np.concatenate(speech)[: None if self.source else 0],
            "segment_lengths": np.array(lengths, np.int32),
            "segment_texts": np.array([b"segment %d of many" % index for index in texts], object),
            "prompt_text_tokens": np.array([7, 8], np.int32),
            "llm_prompt_tokens": np.array([9], np.int32),
            "llm_speaker_embedding": np.full(3, 0.5, np.float32),
            "flow_prompt_tokens": np.arange(self.prompt, dtype=np.int32),
            "prompt_mel": np.ones((2 * self.prompt, 80), np.float32),
            "speaker_embedding": np.ones(192, np.float32),
        }

    async def speech_tokens(self, utterance: int, inputs: Tensors) -> AsyncGenerator[NDArray[np.int32], None]:
        segment = len(inputs["text_tokens"]) - 2
        self.llm_inputs.append(inputs)
        self.generating += 1
        ended = False
        try:
            tokens = 1000 * segment + np.arange(self.speech[segment], dtype=np.int32)
            for index, start in enumerate(range(0, len(tokens) + 1, GROUP)):
                await self._reach(f"llm {segment}.{index}")
                yield tokens[start : start + GROUP]
            ended = True
        finally:
            if not ended:
                await self._reach("llm stop")
            self.generating -= 1

    async def token2wav(self, sequence: int, inputs: Tensors, *, start: bool, end: bool) -> NDArray[np.int16]:
        # Ids are random; here they count from 1 in the order in which sequences begin.
        sequence = self.numbers.setdefault(sequence, len(self.numbers) + 1)
        self.steps.append((sequence, inputs, start, end))
        if end and not start and sequence not in self.live:
            return np.zeros(0, np.int16)
        if start:
            self.samples_per_token = round(
                GRID.samples_per_token
                * float(inputs.get("sample_rate", [GRID.sample_rate])[0])
                / GRID.sample_rate
                / float(inputs.get("speed", [1])[0])
            )
        taken, spoken = ([], 0) if start else self.live.pop(sequence, ([], -1))
        if spoken < 0:
            raise StageFailed("no such sequence")
        step = sum(s == sequence for s, _, _, _ in self.steps) - 1
        try:
            await self._reach(f"token2wav {sequence}.{step}")
        except CosyServeError:
            raise  # a step that fails ends its sequence
        except BaseException:
            self.live[sequence] = taken, spoken  # the caller was cancelled, the step goes on
            self._drop(sequence, end)
            raise
        taken = taken + inputs["speech_tokens"].tolist()
        settled = len(taken) if inputs["final"][0] else max(spoken, len(taken) - GRID.lookahead)
        # After its last token a segment's state is gone, and the next one begins.
        self.live[sequence] = ([], 0) if inputs["final"][0] else (taken, settled)
        self._drop(sequence, end)
        return np.repeat(np.array(taken[spoken:settled], np.int16), self.samples_per_token)

    def _drop(self, sequence: int, end: bool) -> None:
        if end:
            del self.live[sequence]

    async def _reach(self, point: str) -> None:
        self.points.append(point)
        await self.hook(point)
