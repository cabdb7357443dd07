"""Every metric of the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.websockets import WebSocketDisconnect

from cosyserve.metrics import FIRST_AUDIO
from cosyserve_client import AudioChunk
from cosyserve_gateway.errors import ClientLeft

OUTCOMES = ("complete", "cancelled", "failed")
"""Outcomes of an utterance: all audio sent, cancelled by its client, anything else."""

ADVICE = {
    "cosyserve_gateway_requests_total": "429: a client is too fast; 5xx: the log says why",
    "cosyserve_gateway_active_streams": "near `--streams`: more gateways",
    "cosyserve_gateway_first_audio_seconds": "the measure of what listeners wait; p95 above 1 s: more servers",
    "cosyserve_gateway_utterances_total": "failed: the log says why",
}
"""Advice for operators on each metric, for docs/operations.md."""


class Metrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "cosyserve_gateway_requests",
            "Requests by route and status; a WebSocket counts when it closes.",
            ("route", "status"),
            registry=self._registry,
        )
        self.active_streams = Gauge(
            "cosyserve_gateway_active_streams", "Utterances in progress.", registry=self._registry
        )
        self.first_audio = Histogram(
            "cosyserve_gateway_first_audio_seconds",
            "From a request, or the first text of an utterance on a WebSocket, to its first audio.",
            buckets=FIRST_AUDIO.buckets,
            registry=self._registry,
        )
        self.audio = Counter("cosyserve_gateway_audio_seconds", "Audio sent.", registry=self._registry)
        self.utterances = Counter(
            "cosyserve_gateway_utterances",
            "Utterances by outcome: complete, cancelled, failed.",
            ("outcome",),
            registry=self._registry,
        )
        for outcome in OUTCOMES:
            self.utterances.labels(outcome)

    def exposition(self) -> bytes:
        """Returns all metrics in the format of Prometheus."""
        return generate_latest(self._registry)


class SpeechTelemetry:
    """Telemetry of one utterance.

    Attributes:
        samples: sent so far.
        tokens: speech tokens of them.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = time.perf_counter()
        self._first_audio: float | None = None
        self._seconds = 0.0
        self.samples = 0
        self.tokens = 0

    def chunk_sent(self, chunk: AudioChunk) -> None:
        """Counts a chunk that is sent now."""
        if len(chunk.pcm) and self._first_audio is None:
            self._first_audio = time.perf_counter() - self._started
            self._metrics.first_audio.observe(self._first_audio)
        self.samples += len(chunk.pcm)
        self.tokens += chunk.token_count
        seconds = len(chunk.pcm) / chunk.sample_rate
        self._seconds += seconds
        self._metrics.audio.inc(seconds)

    @contextmanager
    def noted(self, notes: dict[str, object]) -> Iterator[None]:
        """Counts the outcome of the context, and adds the utterance's figures to the `notes` of its request."""
        outcome = "failed"
        try:
            yield
            outcome = "complete"
        except (asyncio.CancelledError, ClientLeft, WebSocketDisconnect):
            outcome = "cancelled"
            raise
        finally:
            self._metrics.utterances.labels(outcome).inc()
            notes |= {"outcome": outcome, "audio_seconds": round(self._seconds, 3)}
            if self._first_audio is not None:
                notes["first_audio_seconds"] = round(self._first_audio, 4)
