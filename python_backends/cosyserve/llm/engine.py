"""Continuous batching of speech-token generation.

Running sequences occupy the decoder's rows ``0..n-1`` without gaps, so every step reads one contiguous piece of its
cache. A newcomer's prompt is fed chunk by chunk into row ``n``, one chunk between two steps; when a sequence ends, the
last one moves into the gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import LlmConfig
from cosyserve.errors import InvalidInput, StageFailed
from cosyserve.limits import MAX_TOKENS_PER_TEXT_TOKEN, MIN_TOKENS_PER_TEXT_TOKEN, PREFILL_CHUNK
from cosyserve.llm.decoder import Decoder, Ids, Numbering, Scores
from cosyserve.llm.guard import CircleGuard
from cosyserve.llm.sampling import RasSampler

Ints = NDArray[np.int32]


@dataclass(eq=False)
class Sequence:
    """One segment to speak.

    Attributes:
        emit: called with each new speech token, and with None once at the end.
        fail: called instead of the end when this sequence cannot go on.
    """

    id: int
    text: Ints
    prompt_text: Ints
    prompt_speech: Ints
    seed: int
    emit: Callable[[int | None], None]
    fail: Callable[[Exception], None]

    @property
    def min_tokens(self) -> int:
        """Tokens before which generation cannot end."""
        return MIN_TOKENS_PER_TEXT_TOKEN * len(self.text)

    @property
    def max_tokens(self) -> int:
        """Tokens after which generation is cut."""
        return MAX_TOKENS_PER_TEXT_TOKEN * len(self.text)


@dataclass(eq=False)
class Run:
    """How far a sequence has come."""

    sequence: Sequence
    prompt: Ids
    sampler: RasSampler
    guard: CircleGuard = field(default_factory=CircleGuard)
    position: int = 0  # positions in the decoder's row
    last: int = 0  # the token to feed next
    emitted: int = 0

    @property
    def held(self) -> bool:
        """Whether it is too early to end."""
        return self.emitted < self.sequence.min_tokens


@dataclass
class Engine:
    """Runs all sequences of one process. Not thread-safe: one thread calls `admit`, `stop`, `clear` and `step`.

    Attributes:
        decoder: the model, with at least `slots` empty rows.
        slots: most sequences in one step.
        on_cut: called when a sequence is cut: it outgrew its text, or went in circles.
        waiting: not begun, oldest first.
        joining: whose prompt is being fed.
        running: the sequence of each of the decoder's rows.
    """

    decoder: Decoder
    config: LlmConfig
    slots: int
    on_cut: Callable[[], None] = lambda: None
    waiting: deque[Run] = field(default_factory=deque, init=False)
    joining: Run | None = field(default=None, init=False)
    running: list[Run] = field(default_factory=list, init=False)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.joining or self.running)

    def admit(self, sequence: Sequence) -> None:
        """Queue a sequence; it begins at the next step that has a free row and no older newcomer.

        Raises:
            InvalidInput: a live sequence has the same id, or a token id lies outside its vocabulary.
        """
        joining = [self.joining] if self.joining else []
        if any(run.sequence.id == sequence.id for run in (*self.waiting, *joining, *self.running)):
            raise InvalidInput("utterance", "is the id of an utterance that still runs")
        prompt = Numbering(self.config).prompt(sequence.prompt_text, sequence.text, sequence.prompt_speech)
        self.waiting.append(Run(sequence, prompt, RasSampler(self.config, sequence.seed)))

    def stop(self, sequence_id: int) -> None:
        """End a sequence now; unknown ids are ignored."""
        for run in [r for r in self.waiting if r.sequence.id == sequence_id]:
            self.waiting.remove(run)
            run.sequence.emit(None)
        if self.joining and self.joining.sequence.id == sequence_id:
            run, self.joining = self.joining, None
            self.decoder.erase(len(self.running))
            run.sequence.emit(None)
        for row in [i for i, r in enumerate(self.running) if r.sequence.id == sequence_id]:
            self._finish(row)

    def clear(self) -> None:
        """Forget every sequence, without a word to any, and all they left behind."""
        self.waiting.clear()
        self.joining = None
        self.running.clear()
        for row in range(self.slots):
            self.decoder.erase(row)

    def step(self) -> None:
        """Feed at most one chunk of a newcomer's prompt, then advance every running sequence by one token."""
        if self.joining is None and self.waiting and len(self.running) < self.slots:
            self.joining = self.waiting.popleft()
        if self.joining:
            self._join(self.joining)
        if self.running:
            self._decode()

    def _join(self, run: Run) -> None:
        # Always cut at the same places: other products round differently, and samples must not depend on load.
        chunk = run.prompt[run.position : run.position + PREFILL_CHUNK]
        scores = self.decoder.prefill(len(self.running), run.position, chunk)
        run.position += len(chunk)
        if run.position == len(run.prompt):
            self.joining = None
            self.running.append(run)
            self._advance(len(self.running) - 1, scores)

    def _decode(self) -> None:
        fed = np.asarray([run.last for run in self.running], np.int64) + Numbering(self.config).speech
        scores = self.decoder.step(fed, np.asarray([run.position for run in self.running], np.int64))
        for run in self.running:
            run.position += 1
        self._advance(0, scores)

    def _advance(self, first: int, scores: Scores) -> None:
        """Draw the next token of each sequence from row `first` on."""
        held = np.asarray([run.held for run in self.running[first:]])
        ids, probs = scores.top(self.config.top_k, held)
        # From the last row, because the last one moves into the gap when a sequence ends.
        for index in reversed(range(len(held))):
            run = self.running[first + index]
            try:
                token = run.sampler(ids[index], probs[index], partial(scores.row, index), hold=bool(held[index]))
            except StageFailed as error:
                self._release(first + index)
                run.sequence.fail(error)
            else:
                self._take(first + index, token)

    def _take(self, row: int, token: int) -> None:
        run = self.running[row]
        if token >= self.config.end:
            self._finish(row)
            return
        run.last = token
        run.emitted += 1
        run.sequence.emit(token)
        if run.guard.caught(token) or run.emitted >= run.sequence.max_tokens:
            self.on_cut()
            self._finish(row)

    def _finish(self, row: int) -> None:
        sequence = self.running[row].sequence
        self._release(row)
        sequence.emit(None)

    def _release(self, row: int) -> None:
        """Empty a row and close the gap."""
        self.decoder.erase(row)
        last = self.running.pop()
        rows = len(self.running)
        if row < rows:
            self._move(rows, row, last)
            self.running[row] = last
        if self.joining:
            self._move(rows + 1, rows, self.joining)

    def _move(self, source: int, target: int, run: Run) -> None:
        self.decoder.move(source, target, run.position)
        self.decoder.erase(source)
