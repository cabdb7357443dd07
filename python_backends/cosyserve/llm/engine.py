"""Continuous batching of speech-token generation.

Running sequences occupy the decoder's rows ``0..n-1`` without gaps, so every step reads one contiguous piece of its
cache. Those that have a row but no part in the steps rest in rows above: the newcomer whose prompt is fed chunk by
chunk, one chunk between two steps, and sequences that wait for the rest of their text. When a sequence leaves the
steps, the last one moves into the gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import LlmConfig
from cosyserve.errors import InvalidInput, StageFailed, Unsupported
from cosyserve.limits import (
    MAX_SEGMENT_TEXT_TOKENS,
    MAX_TOKENS_PER_TEXT_TOKEN,
    MIN_TOKENS_PER_TEXT_TOKEN,
    PREFILL_CHUNK,
)
from cosyserve.llm.bistream import Interleaver, Piece
from cosyserve.llm.decoder import Decoder, Numbering, Prompt, Scores
from cosyserve.llm.guard import CircleGuard
from cosyserve.llm.sampling import RasSampler
from cosyserve.llm.silence import SilenceFilter

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(eq=False)
class Sequence:
    """One segment to speak.

    Attributes:
        emit: called with each new speech token that is to be spoken, and with None once at the end.
        fail: called instead of the end when this sequence cannot go on.
        more: further text follows, by `Engine.add_text`.
        pause: called when it can say nothing more before that text comes.
        speaker: embedding for models that take one; may be empty.
    """

    id: int
    text: Ints
    prompt_text: Ints
    prompt_speech: Ints
    seed: int
    emit: Callable[[int | None], None]
    fail: Callable[[Exception], None]
    more: bool = False
    pause: Callable[[], None] = lambda: None
    speaker: Floats = field(default_factory=lambda: np.zeros(0, np.float32))


class WholeText:
    """What to feed when all the text is known: see `Interleaver`, whose twin this is."""

    open = False

    def __init__(self, prompt: Prompt, speech: int) -> None:
        self._ids: list[Any] = list(prompt)
        self._speech = speech

    def next(self) -> Piece:
        """The prompt, then each token."""
        return Piece(self._ids)

    def take(self, token: int) -> None:
        """The token that was drawn."""
        self._ids = [self._speech + token]


@dataclass(eq=False)
class Run:
    """How far a sequence has come."""

    sequence: Sequence
    script: WholeText | Interleaver
    sampler: RasSampler
    silence: SilenceFilter
    text_tokens: int
    guard: CircleGuard = field(default_factory=CircleGuard)
    ids: deque[Any] = field(default_factory=deque)  # to feed before the next draw; see `Prompt`
    draws: bool = True
    position: int = 0  # positions in the decoder's row
    emitted: int = 0
    emitted_last: int = 0  # since all of its text was fed
    row: int = -1  # while it is not running

    @property
    def held(self) -> bool:
        """Whether it is too early to end, or to ask for text other than by the count of tokens."""
        return self.script.open or self.emitted < MIN_TOKENS_PER_TEXT_TOKEN * self.text_tokens

    @property
    def outgrown(self) -> bool:
        """Whether it goes on longer than its text can last. Before all text was fed, blocks bound the speech."""
        return not self.script.open and self.emitted_last >= MAX_TOKENS_PER_TEXT_TOKEN * self.text_tokens

    def go_on(self) -> bool:
        """Ask what to feed next; false when that depends on text that has not come."""
        piece = self.script.next()
        if piece is not None:
            self.ids.extend(piece.ids)
            self.draws = piece.draws
        return piece is not None


@dataclass
class Engine:
    """Runs all sequences of one process. Not thread-safe: one thread calls its methods.

    Attributes:
        decoder: the model, with at least ``slots + 1`` empty rows: one is for exchanging two others.
        slots: most sequences that have begun, also those that wait for text.
        on_cut: called when a sequence is cut: it outgrew its text, or went in circles.
        opening: makes the prompt of a sequence for a decoder that takes no ids for it.
        waiting: not begun, oldest first.
        joining: whose prompt is being fed.
        running: the sequence of each of the first rows.
        resting: begun, but the rest of its text has not come.
        silent: not begun, because its text does not suffice for that.
    """

    decoder: Decoder
    config: LlmConfig
    slots: int
    on_cut: Callable[[], None] = lambda: None
    opening: Callable[[Sequence], Prompt] | None = None
    waiting: deque[Run] = field(default_factory=deque, init=False)
    joining: Run | None = field(default=None, init=False)
    running: list[Run] = field(default_factory=list, init=False)
    resting: list[Run] = field(default_factory=list, init=False)
    silent: list[Run] = field(default_factory=list, init=False)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running or self.joining or (self.waiting and self._has_seat))

    def admit(self, sequence: Sequence) -> None:
        """Queue a sequence; it begins at the next step that has a free row and no older newcomer.

        Raises:
            InvalidInput: a live sequence has the same id, a token id lies outside its vocabulary, or text and prompt
                leave no position for speech.
            Unsupported: more text shall follow, but the model needs all of it at once.
        """
        if self._find(sequence.id):
            raise InvalidInput("utterance", "is the id of an utterance that still runs")
        sampler, silence = RasSampler(self.config, sequence.seed), SilenceFilter(self.config)
        run = Run(sequence, self._script(sequence), sampler, silence, len(sequence.text))
        begins = run.go_on()
        if len(run.ids) >= self.decoder.capacity:
            raise InvalidInput("text", f"with its prompt exceeds {self.decoder.capacity} positions")
        (self.waiting if begins else self.silent).append(run)

    def add_text(self, sequence_id: int, text: Ints, *, more: bool) -> None:
        """The next text ids of a sequence that was admitted with `more`; one that has ended ignores them.

        Raises:
            InvalidInput: all its text is known already, it becomes too long, or an id lies outside the vocabulary.
        """
        run = self._find(sequence_id)
        if run is None:
            return
        Numbering(self.config).check(text_tokens=text)
        if not isinstance(run.script, Interleaver) or run.script.ended:
            raise InvalidInput("text_tokens", "come after the end of the text")
        if run.text_tokens + len(text) > MAX_SEGMENT_TEXT_TOKENS:
            raise InvalidInput("text_tokens", f"of one segment are at most {MAX_SEGMENT_TEXT_TOKENS}")
        run.text_tokens += len(text)
        run.script.add(text.tolist())
        if not more:
            run.script.end()
        if run in self.silent and run.go_on():
            self.silent.remove(run)
            self.waiting.append(run)
        elif run in self.resting and run.go_on():
            self._enter(run)
            self.resting.remove(run)

    def stop(self, sequence_id: int) -> None:
        """End a sequence now; unknown ids are ignored."""
        run = self._find(sequence_id)
        if run is None:
            return
        if run in self.running:
            self._release(self.running.index(run))
        elif run is self.joining or run in self.resting:
            self.decoder.erase(run.row)
        if run is self.joining:
            self.joining = None
        for runs in (self.waiting, self.silent, self.resting):
            if run in runs:
                runs.remove(run)
        run.sequence.emit(None)

    def clear(self) -> None:
        """Forget every sequence, without a word to any, and all they left behind."""
        self.joining = None
        for runs in (self.waiting, self.running, self.resting, self.silent):
            runs.clear()
        for row in range(self.slots + 1):
            self.decoder.erase(row)

    def step(self) -> None:
        """Feed at most one chunk of a newcomer's prompt, then feed every running sequence one id."""
        if self.joining is None and self.waiting and self._has_seat:
            self.joining = self.waiting.popleft()
            self.joining.row = self._free_rows()[0]
        if self.joining:
            self._join(self.joining)
        if self.running:
            self._decode()

    @property
    def _has_seat(self) -> bool:
        return len(self.running) + len(self.resting) + (self.joining is not None) < self.slots

    def _find(self, sequence_id: int) -> Run | None:
        joining = [self.joining] if self.joining else []
        runs = (*self.waiting, *joining, *self.running, *self.resting, *self.silent)
        return next((run for run in runs if run.sequence.id == sequence_id), None)

    def _script(self, sequence: Sequence) -> WholeText | Interleaver:
        numbers = Numbering(self.config)
        if self.opening:
            if sequence.more:
                raise Unsupported("this model cannot begin before all of its text is there")
            return WholeText(self.opening(sequence), numbers.speech)
        prompt = numbers.prompt(sequence.prompt_text, sequence.text, sequence.prompt_speech)
        if not sequence.more:
            return WholeText(prompt, numbers.speech)
        prompt_text = sequence.prompt_text.tolist()
        prefix = self.config.prefix(prompt_text)
        script = Interleaver(self.config, prompt_text[prefix:], sequence.prompt_speech.tolist(), prompt_text[:prefix])
        script.add(sequence.text.tolist())
        return script

    def _join(self, run: Run) -> None:
        # Always cut at the same places: other products round differently, and samples must not depend on load.
        chunk = [run.ids.popleft() for _ in range(min(PREFILL_CHUNK, len(run.ids)))]
        scores = self.decoder.prefill(run.row, run.position, np.asarray(chunk))
        run.position += len(chunk)
        if not run.ids:
            self._enter(run)
            self.joining = None
            self._advance(len(self.running) - 1, scores)

    def _decode(self) -> None:
        # One that has filled its row ends here: in the decoder it would end the step of all.
        for row in reversed(range(len(self.running))):
            if self.running[row].position >= self.decoder.capacity:
                self.on_cut()
                self._finish(row)
        if not self.running:
            return
        # Text is fed id by id too: a step costs what it costs, and no one waits for somebody's block of text.
        fed = np.asarray([run.ids.popleft() for run in self.running], np.int64)
        scores = self.decoder.step(fed, np.asarray([run.position for run in self.running], np.int64))
        for run in self.running:
            run.position += 1
        self._advance(0, scores)

    def _advance(self, first: int, scores: Scores) -> None:
        """Draw the next token of each sequence from row `first` on whose piece has been fed."""
        held = np.asarray([run.held for run in self.running[first:]])
        ids, probs = scores.top(self.config.top_k, held)
        # From the last row, because the last one moves into the gap when a sequence leaves.
        for index in reversed(range(len(held))):
            run = self.running[first + index]
            if run.ids:
                continue
            if not run.draws:
                run.sampler.note(self.config.fill)
                self._go_on(first + index)
                continue
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
        run.emitted += 1
        run.emitted_last += not run.script.open
        if run.silence.passes(token):
            run.sequence.emit(token)
        if run.guard.caught(token) or run.outgrown:
            self.on_cut()
            self._finish(row)
            return
        run.script.take(token)
        self._go_on(row)

    def _go_on(self, row: int) -> None:
        run = self.running[row]
        if not run.go_on():
            run.row = self._free_rows()[-1]
            self.decoder.move(row, run.row, run.position)
            self._release(row)
            self.resting.append(run)
            run.sequence.pause()

    def _finish(self, row: int) -> None:
        sequence = self.running[row].sequence
        self._release(row)
        sequence.emit(None)

    def _enter(self, run: Run) -> None:
        """Let a sequence that has a row join the steps."""
        row = len(self.running)
        for other in (*self.resting, self.joining):
            if other and other is not run and other.row == row:
                other.row = self._free_rows()[-1]
                self._move(row, other.row, other)
        if run.row != row:
            self._move(run.row, row, run)
        self.running.append(run)

    def _release(self, row: int) -> None:
        """Empty a row of those running and close the gap."""
        self.decoder.erase(row)
        last = self.running.pop()
        rows = len(self.running)
        if row < rows:
            self._move(rows, row, last)
            self.running[row] = last

    def _free_rows(self) -> list[int]:
        """Rows that hold nothing, ascending."""
        joining = [self.joining] if self.joining else []
        taken = {run.row for run in (*self.resting, *joining)}
        return [row for row in range(len(self.running), self.slots + 1) if row not in taken]

    def _move(self, source: int, target: int, run: Run) -> None:
        self.decoder.move(source, target, run.position)
        self.decoder.erase(source)
