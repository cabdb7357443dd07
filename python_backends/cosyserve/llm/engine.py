"""Continuous batching of speech-token generation: schedule, run, update."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cosyserve.config import AnyLlm, LlmConfig, expect
from cosyserve.errors import InvalidInput, StageFailed, Unsupported
from cosyserve.limits import MAX_SEGMENT_TEXT_TOKENS
from cosyserve.llm.decoder import Decoder, Prompt, Scores, VocabLayout
from cosyserve.llm.interleave import Interleaver
from cosyserve.llm.rows import Rows
from cosyserve.llm.sampling import RasSampler
from cosyserve.llm.scheduler import SequenceScheduler
from cosyserve.llm.sequence import GenerationRequest, Ints, Sequence, Status, WholeText
from cosyserve.llm.silence import SilenceFilter

EncodePrompt = Callable[[GenerationRequest], Prompt]
"""Makes the prompt of a request for a decoder that takes no ids for it."""


class Engine:
    """Runs all sequences of one process. Not thread-safe: one thread calls its methods.

    Args:
        decoder: the model, with at least ``slots + 1`` empty rows.
        slots: most sequences that have begun, paused ones included.
        on_cut: called when a sequence is cut: it outgrew its text or its row, or went in circles.
        prompt_encoder: see `EncodePrompt`.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: AnyLlm,
        slots: int,
        on_cut: Callable[[], None] = lambda: None,
        prompt_encoder: EncodePrompt | None = None,
    ) -> None:
        self.decoder = decoder
        self._config = config
        self.on_cut = on_cut
        self._prompt_encoder = prompt_encoder
        self.scheduler = SequenceScheduler(Rows(decoder, slots))

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.busy

    def admit(self, request: GenerationRequest) -> None:
        """Queue a request; it begins at the next step that has a free slot and no older newcomer.

        Raises:
            InvalidInput: a live sequence has the same id, a token id lies outside its vocabulary, or text and prompt
                leave no position for speech.
            Unsupported: more text shall follow, but the model needs all of it at once.
        """
        if self.scheduler.find(request.id):
            raise InvalidInput("utterance", "is the id of an utterance that still runs")
        sampler, silence = RasSampler(self._config, request.seed), SilenceFilter(self._config)
        sequence = Sequence(request, self._text_feed(request), sampler, silence, len(request.text))
        sequence.feed_next()
        if len(sequence.ids) >= self.decoder.capacity:
            raise InvalidInput("text", f"with its prompt exceeds {self.decoder.capacity} positions")
        self.scheduler.add(sequence)

    def add_text(self, id: int, text: Ints, *, more: bool) -> None:
        """The next text ids of a sequence that was admitted with `more`; one that has ended ignores them.

        Raises:
            InvalidInput: all its text is known already, it becomes too long, or an id lies outside the vocabulary.
        """
        sequence = self.scheduler.find(id)
        if sequence is None:
            return
        VocabLayout(self._config).check(text_tokens=text)
        if not isinstance(sequence.feed, Interleaver) or sequence.feed.ended:
            raise InvalidInput("text_tokens", "come after the end of the text")
        if sequence.text_tokens + len(text) > MAX_SEGMENT_TEXT_TOKENS:
            raise InvalidInput("text_tokens", f"of one segment are at most {MAX_SEGMENT_TEXT_TOKENS}")
        sequence.text_tokens += len(text)
        sequence.feed.add(text.tolist())
        if not more:
            sequence.feed.end()
        if sequence.status in (Status.BLOCKED, Status.PAUSED) and sequence.feed_next():
            self.scheduler.run(sequence)

    def cancel(self, id: int) -> None:
        """End a sequence now; unknown ids are ignored."""
        if (sequence := self.scheduler.find(id)) is not None:
            self._finish(sequence)

    def clear(self) -> None:
        """Forget every sequence without calling back, and empty the KV cache."""
        self.scheduler.clear()

    def step(self) -> None:
        """Feed a chunk of the prompts of newcomers, then feed every running sequence one id."""
        if newcomers := self.scheduler.schedule_prefill(self.decoder.prefill_batch):
            scores = self._prefill(newcomers)
            for newcomer in newcomers:
                if not newcomer.ids:
                    self.scheduler.run(newcomer)
            self._update(newcomers, scores)
        self._cut_full_rows()
        if batch := self.scheduler.schedule_decode():
            self._update(batch, self._decode(batch))

    def _text_feed(self, request: GenerationRequest) -> WholeText | Interleaver:
        layout = VocabLayout(self._config)
        if self._prompt_encoder:
            if request.more:
                raise Unsupported("this model cannot begin before all of its text is there")
            return WholeText(self._prompt_encoder(request), layout.speech)
        prompt = layout.prompt(request.prompt_text, request.text, request.prompt_speech)
        if not request.more:
            return WholeText(prompt, layout.speech)
        config, prompt_text = expect(LlmConfig, self._config), request.prompt_text.tolist()
        prefix = config.prefix(prompt_text)
        feed = Interleaver(config, prompt_text[prefix:], request.prompt_speech.tolist(), prompt_text[:prefix])
        feed.add(request.text.tolist())
        return feed

    def _prefill(self, batch: list[Sequence]) -> Scores:
        # Always cut at the same places: other products round differently, and samples must not depend on load.
        most = self.decoder.prefill_chunk
        chunks: list[list[Any]] = [[s.ids.popleft() for _ in range(min(most, len(s.ids)))] for s in batch]
        scores = self.decoder.prefill_together(
            [sequence.row for sequence in batch],
            [sequence.position for sequence in batch],
            [np.asarray(chunk) for chunk in chunks],
        )
        for sequence, chunk in zip(batch, chunks, strict=True):
            sequence.position += len(chunk)
        return scores

    def _cut_full_rows(self) -> None:
        # In the decoder, a sequence that has filled its row would end the step of all.
        for sequence in reversed(self.scheduler.schedule_decode()):
            if sequence.position >= self.decoder.capacity:
                self.on_cut()
                self._finish(sequence)

    def _decode(self, batch: list[Sequence]) -> Scores:
        # Text is fed id by id too: a step costs the same, and no sequence waits for the block of text of another.
        fed = np.asarray([sequence.ids.popleft() for sequence in batch], np.int64)
        scores = self.decoder.step(fed, np.asarray([sequence.position for sequence in batch], np.int64))
        for sequence in batch:
            sequence.position += 1
        return scores

    def _update(self, batch: list[Sequence], scores: Scores) -> None:
        """Draw the next token of each sequence all of whose ids have been fed; `scores` are by index in the batch."""
        suppress_end = np.asarray([sequence.suppress_end for sequence in batch])
        ids, probs = scores.top(self._config.top_k, suppress_end)
        for index, sequence in reversed(list(enumerate(batch))):
            if sequence.ids:
                continue
            if not sequence.draws:
                sequence.sampler.note(expect(LlmConfig, self._config).fill)
                self._go_on(sequence)
                continue
            try:
                token = sequence.sampler(
                    ids[index], probs[index], partial(scores.row, index), suppress_end=bool(suppress_end[index])
                )
            except StageFailed as error:
                self.scheduler.remove(sequence)
                sequence.request.fail(error)
            else:
                self._take(sequence, token)

    def _take(self, sequence: Sequence, token: int) -> None:
        if token >= self._config.end:
            self._finish(sequence)
            return
        sequence.emitted += 1
        sequence.emitted_last += not sequence.feed.open
        if sequence.silence.passes(token):
            sequence.request.emit(token)
        if sequence.repetition.repeats(token) or sequence.too_long:
            self.on_cut()
            self._finish(sequence)
            return
        sequence.feed.take(token)
        self._go_on(sequence)

    def _go_on(self, sequence: Sequence) -> None:
        if not sequence.feed_next():
            self.scheduler.pause(sequence)
            sequence.request.pause()

    def _finish(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        sequence.request.emit(None)
