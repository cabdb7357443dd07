"""The sequence-batched models `flow` and `hift`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosyserve.contracts import FLOW, HIFT, Model
from cosyserve.flow.sessions import FlowSessions
from cosyserve.hift.sessions import HiftSessions
from cosyserve.limits import SEQUENCE_IDLE_SECONDS
from cosyserve.load import load_flow_networks, load_hift_networks
from cosyserve.metrics import FLOW_FRAMES, FLOW_SEQUENCES, HIFT_SEQUENCES, Metric
from cosyserve.sessions import SessionFactory, Sessions
from cosyserve.settings import Settings
from cosyserve.triton.adapter import (
    SEQUENCE_END,
    SEQUENCE_START,
    Instrument,
    failure,
    read_inputs,
    read_settings,
    response,
)


class SequenceModel:
    """Steps the sessions that Triton batches."""

    model: Model
    held: Metric

    def load(self, settings: Settings) -> SessionFactory:
        """What opens this model's sessions."""
        raise NotImplementedError

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        self._sessions = Sessions(self.load(read_settings(args)), SEQUENCE_IDLE_SECONDS)
        self._held = Instrument(self.held)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One step of each sequence in the batch."""
        responses = [self._step(request) for request in requests]
        self._held.set(len(self._sessions))
        return responses

    def _step(self, request: Any) -> Any:
        try:
            start = bool(request.flags() & SEQUENCE_START)
            end = bool(request.flags() & SEQUENCE_END)
            inputs = read_inputs(request, self.model)
            outputs = self._sessions.step(request.correlation_id(), inputs, start=start, end=end)
            return response(outputs, self.model)
        except Exception as error:
            return failure(error)


class Flow(SequenceModel):
    """Speech tokens to mel."""

    model = FLOW
    held = FLOW_SEQUENCES

    def load(self, settings: Settings) -> SessionFactory:
        """Flow networks and the voice cache."""
        self._frames = Instrument(FLOW_FRAMES)
        return FlowSessions(load_flow_networks(settings), settings.voice_cache_mib * 2**20, self._frames.add)


class Hift(SequenceModel):
    """Mel to PCM."""

    model = HIFT
    held = HIFT_SEQUENCES

    def load(self, settings: Settings) -> SessionFactory:
        """Vocoder networks."""
        return HiftSessions(load_hift_networks(settings))
