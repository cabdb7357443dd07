"""The sequence-batched models `flow` and `hift`: one thread that plans the calls of every sequence."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cosyserve.contracts import FLOW, HIFT, Model
from cosyserve.hift.sessions import HiftSessions
from cosyserve.jobs import Call
from cosyserve.limits import SEQUENCE_IDLE_SECONDS
from cosyserve.load import load_flow_sessions, load_hift_networks
from cosyserve.metrics import COMPUTE, FLOW_CACHE, FLOW_FRAMES, FLOW_SEQUENCES, HIFT_SEQUENCES, Metric
from cosyserve.sessions import SessionFactory, Sessions, Step
from cosyserve.settings import Settings
from cosyserve.triton.adapter import (
    SEQUENCE_END,
    SEQUENCE_START,
    Asker,
    Instrument,
    asked,
    give_way,
    read_inputs,
    read_settings,
)


class SequenceModel:
    """Takes requests at any time and answers each when its step is done.

    `execute` only queues, so that a batch is what is ready when the networks are free, and the most urgent stream is
    answered first, whatever Triton handed over together.
    """

    model: Model
    held: Metric

    def load(self, settings: Settings) -> SessionFactory:
        """What opens this model's sessions."""
        raise NotImplementedError

    def show(self) -> None:
        """Update further gauges after each call."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        give_way()
        settings = read_settings(args)
        self._sessions = Sessions(self.load(settings), SEQUENCE_IDLE_SECONDS, settings.max_batch)
        self._held = Instrument(self.held)
        self._compute_seconds = Instrument(COMPUTE, model=self.model.name)
        self._lanes = settings.lanes if settings.runtime == "onnx" else 1
        self._running = 0
        self._pool = ThreadPoolExecutor(self._lanes, thread_name_prefix=f"{self.model.name}-call")
        self._events: queue.SimpleQueue[Step | Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=self.model.name, daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Queue each request."""
        for request, asker in asked(requests, self.model):
            try:
                self._events.put(self._step(request, asker))
            except Exception as error:
                asker.fail(error)

    def finalize(self) -> None:
        """Called by Triton at shutdown."""
        self._events.put(None)
        self._thread.join(timeout=5)

    def _step(self, request: Any, asker: Asker) -> Step:
        inputs = read_inputs(request, self.model)
        return Step(
            request.correlation_id(),
            inputs,
            start=bool(request.flags() & SEQUENCE_START),
            end=bool(request.flags() & SEQUENCE_END),
            urgency=int(inputs["deadline"][0]) if "deadline" in inputs else 0,
            done=asker.answer,
            failed=asker.fail,
        )

    def _run(self) -> None:
        while self._take_turn():
            pass

    def _take_turn(self) -> bool:
        """Wait for what happens next and go on from there. False: the server shuts down.

        Nothing of a turn is kept while the next one is waited for: a call holds the states of its streams.
        """
        event = self._events.get()
        if event is None:
            return False
        if isinstance(event, Call):
            self._running -= 1
            self._compute_seconds.add(event.seconds)
            self._sessions.finish(event)
        else:
            self._sessions.submit(event)
        while self._running < self._lanes and self._events.empty() and (call := self._sessions.call()):
            self._running += 1
            self._pool.submit(self._compute, call)
        self._show()
        return True

    def _compute(self, call: Call) -> None:
        call.run()
        self._events.put(call)

    def _show(self) -> None:
        self._held.set(len(self._sessions))
        self.show()


class Flow(SequenceModel):
    """Speech tokens to mel."""

    model = FLOW
    held = FLOW_SEQUENCES

    def load(self, settings: Settings) -> SessionFactory:
        """Flow networks, and the memory that streams and voices share."""
        frames = Instrument(FLOW_FRAMES)
        self._cache = Instrument(FLOW_CACHE)
        self._flow = load_flow_sessions(settings, frames.add)
        return self._flow

    def show(self) -> None:
        """Bytes in use."""
        self._cache.set(self._flow.nbytes)


class Hift(SequenceModel):
    """Mel to PCM."""

    model = HIFT
    held = HIFT_SEQUENCES

    def load(self, settings: Settings) -> SessionFactory:
        """Vocoder networks."""
        return HiftSessions(load_hift_networks(settings))
