"""The sequence-batched models `flow` and `hift`: one thread that plans the calls of every sequence."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cosyserve.contracts import Model
from cosyserve.errors import NotFinite
from cosyserve.limits import SEQUENCE_IDLE_SECONDS
from cosyserve.metrics import COMPUTE, NOT_FINITE, Metric
from cosyserve.runtimes import registry
from cosyserve.scheduler import Batch
from cosyserve.sequences import SequenceFactory, SequenceRequest, SequenceTable
from cosyserve.settings import Settings
from cosyserve.triton.adapter import (
    SEQUENCE_END,
    SEQUENCE_START,
    Reply,
    TritonMetric,
    lower_priority,
    read_inputs,
    read_settings,
    with_replies,
)


class SequenceModel:
    """Takes requests at any time and answers each when its step is done.

    `execute` only queues, so that a batch is what is ready when the networks are free, and the most urgent stream is
    answered first, whatever Triton handed over together.
    """

    model: Model
    live: Metric

    def load(self, settings: Settings) -> SequenceFactory:
        """Load the networks, and return what opens sequences on them."""
        raise NotImplementedError

    def show(self) -> None:
        """Update further gauges after each batch."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        lower_priority()
        settings = read_settings(args)
        side_by_side = registry.get(settings.runtime).side_by_side
        lanes, batch = (settings.concurrency, 1) if side_by_side else (1, settings.concurrency)
        self._sequences = SequenceTable(self.load(settings), SEQUENCE_IDLE_SECONDS, batch)
        self._live_sequences = TritonMetric(self.live)
        self._compute_seconds = TritonMetric(COMPUTE, model=self.model.name)
        self._not_finite = TritonMetric(NOT_FINITE, model=self.model.name)
        self._lanes = lanes
        self._running = 0
        self._pool = ThreadPoolExecutor(self._lanes, thread_name_prefix=f"{self.model.name}-call")
        self._events: queue.SimpleQueue[SequenceRequest | Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=self.model.name, daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Queue each request."""
        for request, reply in with_replies(requests, self.model):
            try:
                self._events.put(self._sequence_request(request, reply))
            except Exception as error:
                reply.fail(error)

    def finalize(self) -> None:
        """Called by Triton at shutdown."""
        self._events.put(None)
        self._thread.join(timeout=5)

    def _sequence_request(self, request: Any, reply: Reply) -> SequenceRequest:
        inputs = read_inputs(request, self.model)

        def failed(error: Exception) -> None:
            if isinstance(error, NotFinite):
                self._not_finite.add(1)
            reply.fail(error)

        return SequenceRequest(
            request.correlation_id(),
            inputs,
            start=bool(request.flags() & SEQUENCE_START),
            end=bool(request.flags() & SEQUENCE_END),
            urgency=int(inputs["deadline"][0]) if "deadline" in inputs else 0,
            done=reply.answer,
            failed=failed,
        )

    def _run(self) -> None:
        while self._take_turn():
            pass

    def _take_turn(self) -> bool:
        """Wait for what happens next and go on from there. False: the server shuts down.

        Nothing of a turn is kept while the next one is waited for: a batch holds the states of its streams.
        """
        try:
            event = self._events.get(timeout=SEQUENCE_IDLE_SECONDS)
        except queue.Empty:
            self._sequences.release_idle()
            self._show()
            return True
        if event is None:
            return False
        if isinstance(event, Batch):
            self._running -= 1
            self._compute_seconds.add(event.seconds)
            self._sequences.update(event)
        else:
            self._sequences.submit(event)
        while self._running < self._lanes and self._events.empty() and (batch := self._sequences.schedule()):
            self._running += 1
            self._pool.submit(self._compute, batch)
        self._show()
        return True

    def _compute(self, batch: Batch) -> None:
        batch.run()
        self._events.put(batch)

    def _show(self) -> None:
        self._live_sequences.set(len(self._sequences))
        self.show()
