"""The model `llm`: one engine thread that batches every utterance of the server."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cosyserve.contracts import LLM, Tensors
from cosyserve.errors import InvalidInput
from cosyserve.llm.engine import Engine, Sequence
from cosyserve.load import load_decoder
from cosyserve.metrics import LLM_CUT, LLM_SEQUENCES, SPEECH_TOKENS
from cosyserve.triton.adapter import FINAL, Instrument, failure, read_inputs, read_settings, response

GROUP = 5
"""Speech tokens in one response: 0.2 s of audio, so that responses cost little and none is waited for long."""


class Llm:
    """Hands requests to the engine thread, which answers them token group by token group."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        settings = read_settings(args)
        config, decoder = load_decoder(settings)
        cut = Instrument(LLM_CUT)
        self._engine = Engine(decoder, config, settings.llm_slots, on_cut=lambda: cut.add(1))
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._answers: dict[int, Answer] = {}
        # A stop may overtake the start it belongs to.
        self._early_stops: deque[int] = deque(maxlen=1024)
        self._held = Instrument(LLM_SEQUENCES)
        self._tokens = Instrument(SPEECH_TOKENS)
        self._thread = threading.Thread(target=self._run, name="llm-engine", daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Queue each request; its answers come from the engine thread."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                inputs = read_inputs(request, LLM)
                self._orders.put(self._stop(inputs, sender) if "stop" in inputs else self._start(inputs, sender))
            except Exception as error:
                sender.send(failure(error), flags=FINAL)

    def finalize(self) -> None:
        """Called by Triton at shutdown."""
        self._orders.put(None)
        self._thread.join(timeout=5)

    def _start(self, inputs: Tensors, sender: Any) -> Callable[[], None]:
        for name in ("text_tokens", "seed"):
            if name not in inputs:
                raise InvalidInput(name, "is required")
        answer = Answer(sender, self._tokens)
        none = np.zeros(0, np.int32)
        sequence = Sequence(
            id=int(inputs["utterance"][0]),
            text=inputs["text_tokens"].astype(np.int32),
            prompt_text=inputs.get("prompt_text_tokens", none).astype(np.int32),
            prompt_speech=inputs.get("llm_prompt_tokens", none).astype(np.int32),
            seed=int(inputs["seed"][0]),
            emit=answer.emit,
            fail=answer.fail,
        )

        def order() -> None:
            if sequence.id in self._early_stops:
                self._early_stops.remove(sequence.id)
                answer.emit(None)
                return
            try:
                self._engine.admit(sequence)
            except InvalidInput as error:
                answer.fail(error)
                return
            self._answers[sequence.id] = answer
            answer.open()

        return order

    def _stop(self, inputs: Tensors, sender: Any) -> Callable[[], None]:
        def order() -> None:
            utterance = int(inputs["utterance"][0])
            if utterance not in self._answers:
                self._early_stops.append(utterance)
            self._engine.stop(utterance)
            sender.send(flags=FINAL)

        return order

    def _run(self) -> None:
        running = True
        while running:
            # Nothing that goes wrong with one step or one client may end this thread, which serves all of them.
            try:
                running = self._obey()
                self._engine.step()
                self._forget_ended()
            except Exception as error:
                self._fail_all(error)

    def _obey(self) -> bool:
        """Carry out waiting orders, or wait for one when there is nothing to do. False: the server shuts down."""
        while not self._engine.busy or not self._orders.empty():
            order = self._orders.get()
            if order is None:
                return False
            order()
            self._forget_ended()
        return True

    def _forget_ended(self) -> None:
        self._answers = {id: answer for id, answer in self._answers.items() if not answer.ended}
        self._held.set(len(self._answers))

    def _fail_all(self, error: Exception) -> None:
        """A step serves every sequence at once, so what breaks it ends them all; later ones start afresh."""
        with suppress(Exception):  # a decoder that cannot be emptied fails the next step too
            self._engine.clear()
        for answer in self._answers.values():
            with suppress(Exception):  # a client that cannot be told is gone
                answer.fail(error)
        self._answers.clear()


@dataclass
class Answer:
    """The responses of one request: collects tokens and sends them in groups."""

    sender: Any
    counter: Instrument
    ended: bool = False
    _tokens: list[int] = field(default_factory=list)

    def open(self) -> None:
        """Send an empty group: a BLS call holds a thread of its caller until the first response."""
        self._send()

    def emit(self, token: int | None) -> None:
        """Take the next token, or None at the end."""
        if token is not None:
            self._tokens.append(token)
            if len(self._tokens) < GROUP:
                return
        self.ended = token is None
        self._send()

    def fail(self, error: Exception) -> None:
        """End with an error."""
        if not self.ended:
            self.ended = True
            self.sender.send(failure(error), flags=FINAL)

    def _send(self) -> None:
        outputs: Tensors = {
            "speech_tokens": np.asarray(self._tokens, np.int32),
            "final": np.asarray([self.ended]),
        }
        self.counter.add(len(self._tokens))
        self._tokens.clear()
        self.sender.send(response(outputs, LLM), flags=FINAL if self.ended else 0)
