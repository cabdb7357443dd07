"""Sequences and their tokens from an engine, shared by unit tests and tests of the networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cosyserve.llm.engine import Engine
from cosyserve.llm.sequence import GenerationRequest

Emitted = list[int | None]


def failed(error: Exception) -> None:
    """Callback of sequences that must not fail."""
    raise error


def sequence(id: int, *, text: int = 4, prompt: int = 0, seed: int | None = None) -> tuple[GenerationRequest, Emitted]:
    """A sequence of `text` text tokens after `prompt` prompt tokens, and the list of its tokens."""
    random = np.random.default_rng(id)
    emitted: Emitted = []
    made = GenerationRequest(
        id=id,
        text=random.integers(0, 256, text).astype(np.int32),
        prompt_text=random.integers(0, 256, prompt).astype(np.int32),
        prompt_speech=random.integers(0, 6561, prompt).astype(np.int32),
        seed=id if seed is None else seed,
        emit=emitted.append,
        fail=failed,
    )
    return made, emitted


def finish(engine: Engine) -> None:
    for _ in range(2000):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")


def said(engine: Engine, made: GenerationRequest) -> Emitted:
    """Tokens of a sequence alone in an engine."""
    emitted: Emitted = []
    engine.admit(replace(made, emit=emitted.append))
    finish(engine)
    return emitted


def opened(id: int, *, prompt: int = 0) -> tuple[GenerationRequest, Emitted, list[int]]:
    """A sequence without text yet, the list of its tokens, and their number at each pause."""
    made, emitted = sequence(id, text=0, prompt=prompt)
    pauses: list[int] = []
    return replace(made, more=True, pause=lambda: pauses.append(len(emitted))), emitted, pauses


def text_of(length: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)
