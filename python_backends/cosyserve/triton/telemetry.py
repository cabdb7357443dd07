"""What is counted, logged and traced of each utterance, from its request to its end; never its text or audio."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from cosyserve.contracts import Model
from cosyserve.errors import CosyServeError
from cosyserve.logs import request_id
from cosyserve.metrics import (
    AUDIO_SAMPLES,
    CANCELLED,
    CHUNK_GAP,
    FIRST_AUDIO,
    REAL_TIME_FACTOR,
    REFUSED,
    UNDERRUNS,
    UTTERANCES,
    outcome,
)
from cosyserve.pipeline.delivery import Delivery
from cosyserve.pipeline.text_session import TextSession
from cosyserve.pipeline.timeline import Chunk
from cosyserve.triton.adapter import REQUEST_ID, TritonMetric

if TYPE_CHECKING:
    from cosyserve.traces import UtteranceSpan

_LOG = logging.getLogger("cosyserve")


class UtteranceMetrics:
    """The metrics of one entry model that count utterances."""

    def __init__(self, model: Model) -> None:
        name = model.name
        self.utterances = TritonMetric(UTTERANCES, model=name)
        self.refused = TritonMetric(REFUSED, model=name)
        self.cancelled = TritonMetric(CANCELLED, model=name)
        self.first_audio = TritonMetric(FIRST_AUDIO, model=name)
        self.chunk_gap = TritonMetric(CHUNK_GAP, model=name)
        self.underruns = TritonMetric(UNDERRUNS, model=name)
        self.real_time_factor = TritonMetric(REAL_TIME_FACTOR, model=name)
        self.samples = TritonMetric(AUDIO_SAMPLES, model=name)


class UtteranceTelemetry:
    """Counts, logs and traces one utterance.

    Args:
        given_id: request id of the client; may be empty.
        span: span of the utterance, if traces are on.

    Attributes:
        id: request id in the logs.
        session: source of text in pieces; set before the first audio.
    """

    def __init__(self, given_id: str, model: Model, instruments: UtteranceMetrics, span: UtteranceSpan | None) -> None:
        self.id = request_id(given_id)
        self.session: TextSession | None = None
        self._model = model
        self._instruments = instruments
        self._span = span
        self._arrived = time.monotonic()
        self._delivery = Delivery(self._arrived)
        self._tokens = 0
        self._segments = 0

    def enter(self) -> None:
        """Attribute the work of this task, and of those that it starts, to this utterance."""
        REQUEST_ID.set(self.id)
        if self._span is not None:
            self._span.enter()

    def chunk_sent(self, chunk: Chunk, sample_rate: int) -> None:
        """Count a chunk that is sent now."""
        counts, delivery, session = self._instruments, self._delivery, self.session
        samples = len(chunk.audio)
        counts.samples.add(samples)
        self._tokens += chunk.token_count
        self._segments = chunk.segment + 1
        if not samples:
            return
        if session is not None and session.began is not None:
            delivery.began = session.began
        late = delivery.chunk_sent(
            samples / sample_rate, time.monotonic(), written=session.written if session else None
        )
        if delivery.chunks == 1 and delivery.first_audio is not None:
            counts.first_audio.observe(delivery.first_audio)
        if delivery.gap is not None:
            counts.chunk_gap.observe(delivery.gap)
        if late:
            counts.underruns.add(1)

    def ended(self, error: CosyServeError | None = None) -> None:
        """Count and log the end, with an error or without."""
        counts, outcome_name = self._instruments, outcome(error)
        counts.utterances.add(1, outcome_name)
        if error is not None and outcome_name == "refused":
            counts.refused.add(1, error.reason)
        if error is not None and outcome_name == "cancelled":
            counts.cancelled.add(1, error.reason)
        if (factor := self._real_time_factor) is not None and error is None:
            counts.real_time_factor.observe(factor)
        line = {
            "request_id": self.id,
            "model": self._model.name,
            "outcome": outcome_name,
            **self._summary,
            **_error_fields(error),
        }
        _LOG.log(logging.ERROR if outcome_name == "failed" else logging.INFO, "utterance", extra={"fields": line})
        if self._span is not None:
            self._span.end(line, failed=outcome_name == "failed")

    @property
    def _real_time_factor(self) -> float | None:
        # Of a session it would measure how fast its writer is.
        return None if self.session else self._delivery.real_time_factor

    @property
    def _summary(self) -> dict[str, str | float]:
        delivery, factor = self._delivery, self._real_time_factor
        fields: dict[str, str | float] = {
            "session": self.session is not None,
            "seconds": round(time.monotonic() - self._arrived, 4),
            "audio_seconds": round(delivery.seconds, 3),
        }
        if delivery.first_audio is not None:
            fields["first_audio_seconds"] = round(delivery.first_audio, 4)
            fields |= {"chunks": delivery.chunks, "underruns": delivery.underruns}
            fields |= {"segments": self._segments, "tokens": self._tokens}
        return fields if factor is None else {**fields, "real_time_factor": round(factor, 4)}


def _error_fields(error: CosyServeError | None) -> dict[str, str]:
    """Log fields of an error. Its message is left out where it may quote the request."""
    if error is None:
        return {}
    fields = {"code": error.code, "reason": error.reason, "detail": str(error) if outcome(error) == "failed" else ""}
    return {name: value for name, value in fields.items() if value}
