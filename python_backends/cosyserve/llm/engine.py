"""Continuous batching of speech-token generation over a slot cache.

Running sequences occupy slots ``0..n-1`` without gaps, so every step reads one contiguous piece of the cache. A
sequence joins by a prefill of its own between two steps and leaves when it ends; the last slot then moves into the gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import LlmConfig
from cosyserve.errors import InvalidInput, StageFailed
from cosyserve.limits import MAX_TOKENS_PER_TEXT_TOKEN, MIN_TOKENS_PER_TEXT_TOKEN
from cosyserve.llm.sampling import RasSampler, stop_ids
from cosyserve.llm.slots import SlotCache
from cosyserve.runtimes.graph import Graph

Float = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class LlmNetworks:
    """The decoder graph ``llm`` and its embedding tables ``[ids, hidden]`` (memory-mapped where large).

    Attributes:
        special: row 0 starts a sequence, row 1 starts the speech (upstream llm_embedding).
    """

    config: LlmConfig
    graph: Graph
    text: Float
    speech: Float
    special: Float

    def prompt(self, prompt_text: Ints, text: Ints, prompt_speech: Ints) -> Float:
        """Input embeddings ``[1, T, hidden]``: start, prompt text and text, task, prompt speech (facts: Qwen2LM)."""
        rows = [
            self.special[:1],
            self.text[np.concatenate([prompt_text, text])],
            self.special[1:2],
            self.speech[prompt_speech],
        ]
        return np.concatenate(rows, dtype=np.float32)[None]


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
    sampler: RasSampler | None = None
    position: int = 0  # positions in the cache
    last: int = 0  # the token to feed next
    emitted: int = 0

    @property
    def min_tokens(self) -> int:
        """Tokens before which generation cannot end."""
        return MIN_TOKENS_PER_TEXT_TOKEN * len(self.text)

    @property
    def max_tokens(self) -> int:
        """Tokens after which generation is cut."""
        return MAX_TOKENS_PER_TEXT_TOKEN * len(self.text)


@dataclass
class Engine:
    """Runs all sequences of one process. Not thread-safe: one thread calls `admit`, `stop` and `step`."""

    networks: LlmNetworks
    slots: int
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.networks.config
        self._stops = stop_ids(config)
        self._cache = SlotCache(config.layers, self.slots, config.kv_heads, config.head_dim)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    def admit(self, sequence: Sequence) -> None:
        """Queue a sequence; it joins at the next step that has a free slot.

        Raises:
            InvalidInput: a live sequence has the same id.
        """
        if any(s.id == sequence.id for s in (*self.waiting, *self.running)):
            raise InvalidInput("utterance", "is the id of an utterance that still runs")
        self.waiting.append(sequence)

    def stop(self, sequence_id: int) -> None:
        """End a sequence now; unknown ids are ignored."""
        for sequence in [s for s in self.waiting if s.id == sequence_id]:
            self.waiting.remove(sequence)
            sequence.emit(None)
        for slot in [i for i, s in enumerate(self.running) if s.id == sequence_id]:
            self._finish(slot)

    def clear(self) -> None:
        """Forget every sequence, without a word to any, and all they left behind."""
        self.waiting.clear()
        self.running.clear()
        self.__post_init__()

    def step(self) -> None:
        """Admit at most one sequence, then advance every running one by one token."""
        if self.waiting and len(self.running) < self.slots:
            self._prefill(self.waiting.popleft())
        if self.running:
            self._decode()

    def _prefill(self, sequence: Sequence) -> None:
        slot = len(self.running)
        try:
            embeds = self.networks.prompt(sequence.prompt_text, sequence.text, sequence.prompt_speech)
        except IndexError:
            sequence.fail(InvalidInput("text_tokens", "or a prompt holds an id beyond the vocabulary"))
            return
        sequence.sampler = RasSampler.of(self.networks.config, sequence.seed)
        self.running.append(sequence)
        logits = self._forward(embeds, slice(slot, slot + 1), np.zeros(1, np.int64))
        self._advance(slot, embeds.shape[1], logits[0])

    def _decode(self) -> None:
        fed = [s.last for s in self.running]
        lengths = np.asarray([s.position for s in self.running], np.int64)
        logits = self._forward(self.networks.speech[fed][:, None], slice(0, len(fed)), lengths)
        for slot in reversed(range(len(fed))):
            self._advance(slot, 1, logits[slot])

    def _forward(self, embeds: Float, rows: slice, lengths: NDArray[np.int64]) -> Float:
        self._cache.fit(max([embeds.shape[1], *(s.position + 1 for s in self.running)]), len(self.running))
        out = self.networks.graph(
            {
                "embeds": embeds,
                "lengths": lengths,
                "past_k": self._cache.keys(rows),
                "past_v": self._cache.values(rows),
            }
        )
        new_k, new_v = out.many("new_k"), out.many("new_v")
        for row, length in enumerate(lengths):
            slot = rows.start + row
            one = slice(row, row + 1)
            self._cache.write(slice(slot, slot + 1), int(length), [k[one] for k in new_k], [v[one] for v in new_v])
        return out["logits"]

    def _advance(self, slot: int, fed: int, logits: Float) -> None:
        sequence = self.running[slot]
        assert sequence.sampler is not None
        sequence.position += fed
        try:
            token = sequence.sampler(logits, hold=sequence.emitted < sequence.min_tokens)
        except StageFailed as error:
            # What is not finite would leak through the mask to the next sequence of this slot.
            self._cache.erase(slot)
            self._release(slot)
            sequence.fail(error)
            return
        if token in self._stops:
            self._finish(slot)
            return
        sequence.last = token
        sequence.emitted += 1
        sequence.emit(token)
        if sequence.emitted >= sequence.max_tokens:
            self._finish(slot)

    def _finish(self, slot: int) -> None:
        sequence = self.running[slot]
        self._release(slot)
        sequence.emit(None)

    def _release(self, slot: int) -> None:
        last = self.running.pop()
        if slot < len(self.running):
            self._cache.move(len(self.running), slot, last.position)
            self.running[slot] = last
