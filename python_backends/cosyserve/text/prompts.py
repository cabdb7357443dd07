"""What the language model reads before the text. Upstream leaves this to its callers since its version 3."""

from __future__ import annotations

from collections.abc import Callable

from cosyserve.text.special_tokens import END_OF_INSTRUCTION, END_OF_PROMPT
from cosyserve.text.tokenizer import Tokenizer

SYSTEM = "You are a helpful assistant."
"""What version 3 was trained to read first; an instruction follows it."""


class Prompts:
    """Of version 2: an instruction and its end mark, or the transcript of the prompt audio, or nothing.

    Args:
        tokenizer: the text tokenizer.
        spoken: normalises what is said.
    """

    def __init__(self, tokenizer: Tokenizer, spoken: Callable[[str], str]) -> None:
        self._tokenizer = tokenizer
        self._spoken = spoken

    def split(self, text: str) -> tuple[str, str]:
        """The instruction that stands in a text before what is said, if there may be one, and what is said."""
        return "", text

    def instruction(self, text: str) -> list[int]:
        """Ids of an instruction, with its end mark."""
        return [*self._tokenizer.encode_user(text), self._tokenizer.special(END_OF_PROMPT)]

    def transcript(self, text: str) -> list[int]:
        """Ids of what the prompt audio says."""
        return self._tokenizer.encode_user(self._spoken(text))

    def opened(self, ids: list[int], instruction: str) -> list[int]:
        """A prompt text, or none, with what this version reads first; `instruction` is what `split` found."""
        return ids


class Prompts1(Prompts):
    """Of version 1: the end mark of an instruction is plain text to its tokenizer."""

    def instruction(self, text: str) -> list[int]:
        """See `Prompts.instruction`."""
        return self._tokenizer.encode_user(self._spoken(text) + END_OF_INSTRUCTION)


class Prompts3(Prompts):
    """Of version 3: every sequence has an instruction and its end mark, and the transcript follows.

    What upstream expects of its callers is accepted, but not needed: the instruction in a transcript or, for
    cross-lingual speech, in the text itself. It is no part of the text here, so it does not count for its length and
    does not keep the rest from being normalised and split, as upstream's does.
    """

    def split(self, text: str) -> tuple[str, str]:
        """See `Prompts.split`."""
        instruction, mark, said = text.partition(END_OF_PROMPT)
        return (instruction.strip(), said) if mark else ("", text)

    def instruction(self, text: str) -> list[int]:
        """See `Prompts.instruction`."""
        return super().instruction(text if text.startswith(SYSTEM) else f"{SYSTEM} {text}")

    def transcript(self, text: str) -> list[int]:
        """See `Prompts.transcript`; with the instruction that it brings along."""
        instruction, said = self.split(text)
        ids = super().transcript(said)
        return [*super().instruction(instruction), *ids] if instruction else ids

    def opened(self, ids: list[int], instruction: str) -> list[int]:
        """See `Prompts.opened`."""
        if self._tokenizer.special(END_OF_PROMPT) in ids:
            return ids
        return [*super().instruction(instruction or SYSTEM), *ids]
