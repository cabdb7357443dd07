"""The model `llm`: one engine thread that batches every utterance of the server."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cosyserve.contracts import LLM, Tensors
from cosyserve.errors import Cancelled, InvalidInput, StageFailed
from cosyserve.limits import REMEMBERED_IDS, SEQUENCE_IDLE_SECONDS
from cosyserve.llm.engine import Engine
from cosyserve.llm.sequence import GenerationRequest
from cosyserve.load.llm import load_decoder, load_prompt_encoder
from cosyserve.metrics import COMPUTE, LLM_CUT, LLM_SEQUENCES, SPEECH_TOKENS
from cosyserve.triton.adapter import Reply, TritonMetric, lower_priority, read_inputs, read_settings, with_replies

GROUP = 5
"""Fewest speech tokens in an answer but the last: 0.2 s of audio, so that answers cost little and come soon."""


class Llm:
    """Passes requests to the engine thread, which answers each when it has tokens for it."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        lower_priority()
        settings = read_settings(args)
        config, decoder = load_decoder(settings)
        cut = TritonMetric(LLM_CUT)
        prompt_encoder = load_prompt_encoder(settings)
        self._engine = Engine(
            decoder, config, settings.llm_slots, on_cut=lambda: cut.add(1), prompt_encoder=prompt_encoder
        )
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._live: dict[int, TokenBuffer] = {}
        # A stop may overtake the start it belongs to.
        self._early_cancels: deque[int] = deque(maxlen=REMEMBERED_IDS)
        self._sequences = TritonMetric(LLM_SEQUENCES)
        self._tokens = TritonMetric(SPEECH_TOKENS)
        self._compute_seconds = TritonMetric(COMPUTE, model=LLM.name)
        self._thread = threading.Thread(target=self._run, name="llm-engine", daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Queue each request; its answers come from the engine thread."""
        for request, reply in with_replies(requests, LLM):
            try:
                self._orders.put(self._read_order(read_inputs(request, LLM), reply))
            except Exception as error:
                reply.fail(error)

    def finalize(self) -> None:
        """Called by Triton at shutdown."""
        self._orders.put(None)
        self._thread.join(timeout=5)

    def _read_order(self, inputs: Tensors, reply: Reply) -> Callable[[], None]:
        """The work of the engine thread for a request."""
        utterance = int(inputs["utterance"][0])
        if "stop" in inputs:
            return lambda: self._cancel(utterance, reply)
        if "seed" in inputs:
            return self._start(inputs, reply)
        if "text_tokens" in inputs:
            return lambda: self._add(utterance, inputs, reply)
        return lambda: self._more(utterance, reply)

    def _start(self, inputs: Tensors, reply: Reply) -> Callable[[], None]:
        if "text_tokens" not in inputs:
            raise InvalidInput("text_tokens", "is required")
        buffer = TokenBuffer(self._tokens)
        none = np.zeros(0, np.int32)
        request = GenerationRequest(
            id=int(inputs["utterance"][0]),
            text=inputs["text_tokens"].astype(np.int32),
            prompt_text=inputs.get("prompt_text_tokens", none).astype(np.int32),
            prompt_speech=inputs.get("llm_prompt_tokens", none).astype(np.int32),
            speaker=inputs.get("llm_speaker_embedding", np.zeros(0, np.float32)).astype(np.float32),
            seed=int(inputs["seed"][0]),
            emit=buffer.emit,
            fail=buffer.fail,
            more=_more_follows(inputs),
            pause=buffer.flush,
        )

        def order() -> None:
            buffer.ask(reply)
            if request.id in self._early_cancels:
                self._early_cancels.remove(request.id)
                buffer.fail(Cancelled("the utterance was stopped"))
                return
            try:
                self._engine.admit(request)
            except Exception as error:  # it concerns this request only
                buffer.fail(error)
                return
            self._live[request.id] = buffer
            if request.more:
                buffer.flush()

        return order

    def _add(self, utterance: int, inputs: Tensors, reply: Reply) -> None:
        try:
            self._engine.add_text(utterance, inputs["text_tokens"].astype(np.int32), more=_more_follows(inputs))
        except InvalidInput as error:
            reply.fail(error)
            return
        reply.answer(_answer([], final=False))
        if utterance in self._live:
            self._live[utterance].flush()

    def _more(self, utterance: int, reply: Reply) -> None:
        if utterance in self._live:
            self._live[utterance].ask(reply)
        else:
            reply.fail(InvalidInput("text_tokens", "is required to open an utterance; one of this id has ended"))

    def _cancel(self, utterance: int, reply: Reply) -> None:
        buffer = self._live.pop(utterance, None)
        if buffer is None:
            self._early_cancels.append(utterance)
        else:
            buffer.fail(Cancelled("the utterance was stopped"))
        self._engine.cancel(utterance)
        reply.answer(_answer([], final=True))

    def _run(self) -> None:
        running = True
        while running:
            # Nothing that goes wrong with one step or one client may end this thread, which serves all of them.
            try:
                running = self._run_orders()
                began = time.perf_counter()
                self._engine.step()
                self._compute_seconds.add(time.perf_counter() - began)
                self._release_ended()
            except Exception as error:
                self._fail_all(error)

    def _run_orders(self) -> bool:
        """Run queued orders; wait for one while the engine is idle. False: the server shuts down."""
        while not self._engine.busy or not self._orders.empty():
            try:
                order = self._orders.get(timeout=SEQUENCE_IDLE_SECONDS)
            except queue.Empty:
                self._release_ended()
                continue
            if order is None:
                return False
            order()
            self._release_ended()
        return True

    def _release_ended(self) -> None:
        for utterance, buffer in list(self._live.items()):
            if buffer.idle:
                self._engine.cancel(utterance)
            if buffer.idle or buffer.done:
                del self._live[utterance]
        self._sequences.set(len(self._live))

    def _fail_all(self, error: Exception) -> None:
        """A step serves every sequence at once, so what breaks it ends them all; later ones start afresh."""
        with suppress(Exception):  # a decoder that cannot be emptied fails the next step too
            self._engine.clear()
        for buffer in self._live.values():
            buffer.fail(error)


@dataclass
class TokenBuffer:
    """Speech tokens of one segment that no answer has taken, and the request that waits for them."""

    counter: TritonMetric
    done: bool = False  # the end, or the error, has been sent
    _tokens: list[int] = field(default_factory=list)
    _ended: bool = False
    _flushed: bool = False
    _error: Exception | None = None
    _reply: Reply | None = None
    _asked: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether no request has come for `SEQUENCE_IDLE_SECONDS`: the caller is gone."""
        return time.monotonic() - self._asked > SEQUENCE_IDLE_SECONDS

    def ask(self, reply: Reply) -> None:
        """Take a request; it is answered when there are tokens, or the end."""
        if self._reply is not None:
            reply.fail(StageFailed("the utterance was asked twice at once"))
            return
        self._reply, self._asked = reply, time.monotonic()
        self._answer()

    def emit(self, token: int | None) -> None:
        """Take the next token, or None at the end."""
        if token is None:
            self._ended = True
        else:
            self._tokens.append(token)
        self._answer()

    def flush(self) -> None:
        """Answer the waiting or next request with whatever there is: more tokens may take long."""
        self._flushed = True
        self._answer()

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self._error = error
        self._answer()

    def _answer(self) -> None:
        ready = self._ended or self._error or self._flushed or len(self._tokens) >= GROUP
        if self._reply is None or self.done or not ready:
            return
        reply, self._reply = self._reply, None
        self.done, self._flushed = self._ended or self._error is not None, False
        self.counter.add(len(self._tokens))
        tokens, self._tokens = self._tokens, []
        if self._error:
            reply.fail(self._error)
        else:
            reply.answer(_answer(tokens, final=self._ended))


def _more_follows(inputs: Tensors) -> bool:
    return "more" in inputs and bool(inputs["more"][0])


def _answer(tokens: list[int], *, final: bool) -> Tensors:
    return {"speech_tokens": np.asarray(tokens, np.int32), "final": np.asarray([final])}
