"""A filter that shortens long silence (upstream cli/model.py :: CosyVoice3Model.llm_job)."""

from __future__ import annotations

from cosyserve.config import AnyLlm

LONGEST = 5
"""Silent tokens in a row that are spoken, 0.2 s: a constant upstream."""


class SilenceFilter:
    """Watches the tokens of one sequence. The language model remembers also those that are not spoken."""

    def __init__(self, config: AnyLlm) -> None:
        self._silent = config.silent_tokens
        self._run = 0

    def passes(self, token: int) -> bool:
        """Whether the next token is to be spoken."""
        self._run = self._run + 1 if token in self._silent else 0
        return self._run <= LONGEST
