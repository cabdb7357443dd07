"""A sequence of the LLM, which is one segment: what was asked for, and how far it has come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.limits import MAX_TOKENS_PER_TEXT_TOKEN, MIN_TOKENS_PER_TEXT_TOKEN
from cosyserve.llm.decoder import Prompt
from cosyserve.llm.interleave import FeedStep, Interleaver
from cosyserve.llm.repetition import RepetitionGuard
from cosyserve.llm.sampling import RasSampler
from cosyserve.llm.silence import SilenceFilter

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(eq=False)
class GenerationRequest:
    """One segment to speak.

    Attributes:
        text: text token ids, int32 [n].
        prompt_text: text token ids before them, int32 [m].
        prompt_speech: speech tokens of the prompt, int32 [P].
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
    """What to feed when all the text is known: see `Interleaver`, whose twin this is.

    Args:
        prompt: what is fed before the first token.
        speech: id of speech token 0, see `VocabLayout.speech`.
    """

    open = False

    def __init__(self, prompt: Prompt, speech: int) -> None:
        self._ids: list[Any] = list(prompt)
        self._speech = speech

    def next(self) -> FeedStep:
        """The prompt, then each token."""
        return FeedStep(self._ids)

    def take(self, token: int) -> None:
        """The token that was drawn."""
        self._ids = [self._speech + token]


class Status(Enum):
    """Where a sequence stands."""

    BLOCKED = auto()
    """Not begun: its text does not suffice for that."""
    WAITING = auto()
    """In the queue for a slot."""
    PREFILL = auto()
    """Its prompt is being fed, a chunk a step."""
    RUNNING = auto()
    """One id a step is fed, and one token drawn."""
    PAUSED = auto()
    """It has a slot, but the rest of its text has not come."""


@dataclass(eq=False)
class Sequence:
    """How far a request has come.

    Attributes:
        feed: says what to feed next.
        text_tokens: text ids that are known.
        ids: to feed before the next draw; see `Prompt`.
        draws: a token is drawn behind them.
        row: of the decoder, from `Status.PREFILL` on.
        position: positions written in that row, which are the length of its KV cache.
        emitted: speech tokens drawn, those included that are not spoken.
        emitted_last: of these, since all of its text was fed.
    """

    request: GenerationRequest
    feed: WholeText | Interleaver
    sampler: RasSampler
    silence: SilenceFilter
    text_tokens: int
    status: Status = Status.BLOCKED
    repetition: RepetitionGuard = field(default_factory=RepetitionGuard)
    ids: deque[Any] = field(default_factory=deque)
    draws: bool = True
    row: int = -1
    position: int = 0
    emitted: int = 0
    emitted_last: int = 0

    @property
    def suppress_end(self) -> bool:
        """Whether it is too early to end, or to ask for text other than by the count of tokens."""
        return self.feed.open or self.emitted < MIN_TOKENS_PER_TEXT_TOKEN * self.text_tokens

    @property
    def too_long(self) -> bool:
        """Whether it goes on longer than its text can last. Before all text was fed, blocks bound the speech."""
        return not self.feed.open and self.emitted_last >= MAX_TOKENS_PER_TEXT_TOKEN * self.text_tokens

    def feed_next(self) -> bool:
        """Ask what to feed next; false when that depends on text that has not come."""
        step = self.feed.next()
        if step is not None:
            self.ids.extend(step.ids)
            self.draws = step.draws
        return step is not None
