"""Speech while the text is still arriving: text and speech interleaved (upstream llm/llm.py :: inference_bistream)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import LlmConfig
from cosyserve.errors import StageFailed

Embeddings = NDArray[np.float32]
Forward = Callable[[Embeddings], NDArray[Any]]
"""Appends positions [n, hidden] to the model's cache and returns the logits [V] of the last one."""

Embed = Callable[[Sequence[int]], Embeddings]
"""Ids to embeddings [n, hidden]."""

Sample = Callable[[NDArray[Any], Sequence[int], bool], int]
"""Logits [V], all tokens so far with the fill tokens among them, whether the end is forbidden -> the next token."""


class Interleaver:
    """Feeds blocks of text and speech to a language model and yields speech tokens as soon as they are known.

    The sequence is ``start, (5 text, 15 speech)*, rest of the text, task, speech``. After each full speech block the
    model is taken to ask for text by the fill token, which is never fed back. As upstream does, the last phase feeds
    the last speech embedding a second time, and prompt speech that waits for text is dropped when the text ends.
    Nothing bounds the length of the last phase: the caller stops reading when it has enough.

    Args:
        config: block sizes and special ids.
        start: [1, hidden] embedding that opens the sequence.
        task: [1, hidden] embedding between text and speech.
        prompt_text: token ids of the transcript or instruction.
        prompt_speech: speech tokens of the prompt.
        embed_text: text ids to embeddings.
        embed_speech: speech ids to embeddings.
        forward: the model.
        sample: the sampler.
    """

    def __init__(
        self,
        config: LlmConfig,
        *,
        start: Embeddings,
        task: Embeddings,
        prompt_text: Sequence[int],
        prompt_speech: Sequence[int],
        embed_text: Embed,
        embed_speech: Embed,
        forward: Forward,
        sample: Sample,
    ) -> None:
        self._config = config
        self._task = task
        self._embed_text = embed_text
        self._embed_speech = embed_speech
        self._forward = forward
        self._sample = sample
        self._input = start
        self._text = embed_text(prompt_text)
        self._speech = embed_speech(prompt_speech)
        self._tokens: list[int] = []
        self._started = False
        block = config.mix_ratio[1]
        self._next_fill = block - len(prompt_speech) % block

    def feed(self, text_ids: Iterable[int]) -> Iterator[int]:
        """Speech tokens that become known with these text ids, which are taken one at a time.

        Raises:
            StageFailed: the model produced a special token that has no meaning here.
        """
        for text_id in text_ids:
            self._text = np.concatenate([self._text, self._embed_text([text_id])])
            self._place_prompt()
            if len(self._speech) == 0 and self._place_text():
                yield from self._block()

    def finish(self) -> Iterator[int]:
        """The remaining speech tokens, once no more text follows. Call it once."""
        self._input = np.concatenate([self._input, self._text, self._task])
        while (token := self._step(self._forward(self._input), hold=False)) < self._config.end:
            yield token
            self._input = self._embed_speech([token])
        if token != self._config.end:
            raise StageFailed("the language model ended with an unexpected token")

    def _place_prompt(self) -> None:
        """Moves blocks of prompt speech, each behind its text, to the input while there is text for them."""
        text, speech = self._config.mix_ratio
        while len(self._speech) and len(self._text) >= text:
            self._input = np.concatenate([self._input, self._text[:text], self._speech[:speech]])
            self._text, self._speech = self._text[text:], self._speech[speech:]
            self._started = True

    def _place_text(self) -> bool:
        """Puts the text of the next block into the input, where one is due; false when it has not arrived yet."""
        text = self._config.mix_ratio[0]
        asked = bool(self._tokens)  # a block always ends with the fill token
        if not asked and self._started:
            return True
        if len(self._text) < text:
            return False
        block, self._text = self._text[:text], self._text[text:]
        self._input = block if asked else np.concatenate([self._input, block])
        self._started = True
        return True

    def _block(self) -> Iterator[int]:
        """Decodes until the fill token."""
        while True:
            logits = self._forward(self._input)
            if len(self._tokens) == self._next_fill:
                token = self._config.fill
                self._tokens.append(token)
            else:
                token = self._step(logits, hold=True)
            if token == self._config.fill:
                self._next_fill = len(self._tokens) + self._config.mix_ratio[1]
                return
            if token >= self._config.end:
                raise StageFailed("the language model ended before the text did")
            yield token
            self._input = self._embed_speech([token])

    def _step(self, logits: NDArray[Any], *, hold: bool) -> int:
        token = self._sample(logits, self._tokens, hold)
        self._tokens.append(token)
        return token
