"""What the engine asks of a language model, whichever runtime holds its weights and its keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import AnyLlm
from cosyserve.errors import InvalidInput

Ids = NDArray[np.int64]
Prompt = NDArray[Any]
"""What a sequence holds up to its first new token, in the form that its decoder takes: ids ``[n]`` of `Numbering`, or
input embeddings ``[n, width]``."""


@dataclass(frozen=True, slots=True)
class VocabLayout:
    """One numbering for all that a model can be fed: text ids, then the rows of the speech embedding, then those of a
    table of its own for special rows, where a version has one.

    Args:
        config: its `vocab` and `speech_vocab` are the lengths of the first two parts.
    """

    config: AnyLlm

    @property
    def speech(self) -> int:
        """Number of speech id 0."""
        return self.config.vocab

    @property
    def start(self) -> int:
        """Number of the row that opens a sequence."""
        return self.config.vocab + self.config.start_row

    @property
    def task(self) -> int:
        """Number of the row between text and speech."""
        return self.config.vocab + self.config.task_row

    def prompt(self, prompt_text: NDArray[np.int32], text: NDArray[np.int32], prompt_speech: NDArray[np.int32]) -> Ids:
        """A sequence up to its first new token: start, prompt text and text, task, prompt speech (facts: Qwen2LM).

        Raises:
            InvalidInput: an id lies outside its vocabulary.
        """
        self.check(prompt_text_tokens=prompt_text, text_tokens=text, llm_prompt_tokens=prompt_speech)
        start, task = np.asarray([[self.start], [self.task]], np.int64)
        return np.concatenate([start, prompt_text, text, task, prompt_speech + np.int64(self.speech)], dtype=np.int64)

    def check(self, **given: NDArray[np.int32]) -> None:
        """Refuses ids outside their vocabulary: text ids but for those called ``llm_prompt_tokens``.

        Raises:
            InvalidInput: naming them.
        """
        for name, ids in given.items():
            size = self.config.speech_tokens if name == "llm_prompt_tokens" else self.config.vocab
            if np.any((ids < 0) | (ids >= size)):
                raise InvalidInput(name, f"holds an id outside 0..{size - 1}")


class Scores(Protocol):
    """Scores of the next speech token of n sequences."""

    def top(self, k: int, suppress_end: NDArray[np.bool_]) -> tuple[Ids, NDArray[np.float64]]:
        """The k likeliest speech ids of each row and their probabilities, both [n, min(k, V)].

        Descending, ties by lower id. Probabilities are a softmax over the ids that the row allows: where
        `suppress_end` [n] is set, ids that end a sequence are not. A row without finite scores has NaN probabilities.
        """
        ...

    def row(self, index: int) -> NDArray[np.float32]:
        """Logits [V] of one row, on the host; nothing is held back."""
        ...


class Decoder(Protocol):
    """A causal model with one sequence of positions in each of a fixed number of rows, all of them empty at first.

    Ids are those of `VocabLayout`. The scores of a row depend on the ids at its positions only, never on other rows.

    Attributes:
        capacity: positions that a row holds at most.
        prefill_chunk: most positions of a piece of a prompt.
        prefill_batch: most prompts of which a piece is appended in one call.
    """

    @property
    def capacity(self) -> int: ...

    @property
    def prefill_chunk(self) -> int: ...

    @property
    def prefill_batch(self) -> int: ...

    def prefill(self, row: int, start: int, prompt: Prompt) -> Scores:
        """Append a piece of a prompt to a row that holds `start` positions; scores of this one row."""
        ...

    def prefill_together(self, rows: Sequence[int], starts: Sequence[int], prompts: Sequence[Prompt]) -> Scores:
        """As `prefill`, for at most `prefill_batch` rows in one call; scores of these rows in their order."""
        ...

    def step(self, ids: Ids, lengths: Ids) -> Scores:
        """Append one id to each of rows 0..n-1, which hold `lengths` [n] positions; scores of the n rows."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source`, which are all it holds, into the empty row `target`."""
        ...

    def release(self, row: int) -> None:
        """Empty a row; nothing of what it held may reach its next sequence, not even a NaN."""
        ...


class OneByOne:
    """Part of a `Decoder` that appends pieces to one row at a time, as is best on a CPU."""

    prefill_batch = 1

    def prefill(self, row: int, start: int, prompt: Prompt) -> Scores:
        """See `Decoder.prefill`."""
        raise NotImplementedError

    def prefill_together(self, rows: Sequence[int], starts: Sequence[int], prompts: Sequence[Prompt]) -> Scores:
        """See `Decoder.prefill_together`."""
        (row,), (start,), (prompt,) = rows, starts, prompts
        return self.prefill(row, start, prompt)
