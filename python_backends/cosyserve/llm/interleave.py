"""Speech while the text is still arriving: text and speech interleaved (upstream llm/llm.py :: inference_bistream)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cosyserve.config import LlmConfig
from cosyserve.errors import StageFailed
from cosyserve.llm.decoder import VocabLayout


@dataclass(frozen=True, slots=True)
class FeedStep:
    """Ids of `VocabLayout` to feed next. `draws`: a token is drawn behind them; else the model asks for text there."""

    ids: list[int]
    draws: bool = True


class Interleaver:
    """Says what to feed a language model whose text arrives little by little.

    The sequence is ``start, (5 text, 15 speech)*, rest of the text, task, speech``. After each full speech block the
    model is taken to ask for text by the fill token, which is never fed. The caller feeds what `next` returns until it
    returns None, and passes each drawn token to `take`. Blocks are cut by count alone, so what is fed does not depend
    on when text arrives.

    Args:
        config: block sizes and special ids.
        prompt_text: token ids of the transcript or instruction.
        prompt_speech: speech tokens of the prompt.
        prefix: token ids right behind the start, outside the blocks.
        as_upstream: keep what the original does by accident: the last phase feeds the last piece a second time, prompt
            speech that still waits for text is dropped when the text ends, a prompt of whole blocks is spoken on
            without a block of text, and so is a prefix without a prompt. The server does none of it: prompt speech
            left over follows the task, as in a sequence whose text is known.

    Attributes:
        ended: no more text follows.
        open: the last phase has not begun.
    """

    def __init__(
        self,
        config: LlmConfig,
        prompt_text: Iterable[int] = (),
        prompt_speech: Iterable[int] = (),
        prefix: Iterable[int] = (),
        *,
        as_upstream: bool = False,
    ) -> None:
        self._config = config
        self._numbers = VocabLayout(config)
        self._as_upstream = as_upstream
        self._input = [self._numbers.start, *prefix]  # placed, but not fed
        self._fed: list[int] = []  # the last piece
        self._text = list(prompt_text)  # not placed
        self._speech = [self._numbers.speech + token for token in prompt_speech]  # not placed
        self._drawn = 0  # fill tokens included
        block = config.mix_ratio[1]
        self._next_fill = block - len(self._speech) % block
        self._text_is_due = not (as_upstream and len(self._input) > 1)
        self.ended = False
        self.open = True

    def add(self, text_ids: Iterable[int]) -> None:
        """More text."""
        self._text += text_ids

    def end(self) -> None:
        """No more text follows."""
        self.ended = True

    def next(self) -> FeedStep | None:
        """What to feed next, which is not to be asked before it was fed and its token taken; None: more text first.

        With the piece that begins the last phase, where the model says how much speech is left, `open` becomes false.
        """
        self._place_blocks()
        if self.open and (self._speech or self._text_is_due):
            if not self.ended:
                return None
            self._place_rest()
        ids, self._input = self._input, []
        self._fed = ids
        if self.open and self._drawn == self._next_fill:
            self._ask()
            return FeedStep(ids, draws=False)
        return FeedStep(ids)

    def take(self, token: int) -> None:
        """The token that was drawn behind the last piece.

        Raises:
            StageFailed: it is a special token that has no meaning here.
        """
        if token < self._config.end:
            self._drawn += 1
            self._input = [self._numbers.speech + token]
        elif self.open and token == self._config.fill:
            self._ask()
        else:
            phase = "before the text did" if self.open else "with an unexpected token"
            raise StageFailed(f"the language model ended {phase}")

    def _ask(self) -> None:
        """The model asks for text."""
        self._drawn += 1
        self._next_fill = self._drawn + self._config.mix_ratio[1]
        self._text_is_due = True

    def _place_blocks(self) -> None:
        """Moves blocks for which there is text to the input: the prompt's, then text that the model asked for."""
        text, speech = self._config.mix_ratio
        while self._speech and len(self._text) >= text:
            block = self._speech[:speech]
            self._input += self._text[:text] + block
            del self._text[:text], self._speech[:speech]
            self._text_is_due = len(block) == speech and not self._as_upstream
        if self._text_is_due and not self._speech and len(self._text) >= text:
            self._input += self._text[:text]
            del self._text[:text]
            self._text_is_due = False

    def _place_rest(self) -> None:
        if self._as_upstream:
            self._input, self._speech = self._input or self._fed, []
        self._input = [*self._input, *self._text, self._numbers.task, *self._speech]
        self._text, self._speech = [], []
        self.open = False
