"""Spans of utterances and of their stages, for an OpenTelemetry collector; never text or audio.

Only imported when a collector is configured. OpenTelemetry's own variables (``OTEL_...``) say what the setting does
not: headers, sampling, attributes of the resource.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager

import numpy as np
from numpy.typing import NDArray
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cosyserve.contracts import Tensors
from cosyserve.errors import CosyServeError
from cosyserve.limits import LAST_SPANS_SECONDS
from cosyserve.pipeline.synthesizer import Stages
from cosyserve.pipeline.timeline import Pcm

Values = Mapping[str, str | bool | int | float]


class Traces:
    """Where spans go: to the collector, in batches, from a thread of its own. What it does not take is dropped.

    Args:
        endpoint: of the collector's OTLP over HTTP, without a path.
    """

    def __init__(self, endpoint: str) -> None:
        os.environ.setdefault("OTEL_SERVICE_NAME", "cosyserve")
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
        self._tracer = self._provider.get_tracer("cosyserve")

    def utterance(self, traceparent: str) -> UtteranceSpan:
        """The span of an utterance, which begins now.

        Args:
            traceparent: what it is part of (W3C trace context); nothing when that is malformed.
        """
        whole = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        return UtteranceSpan(self._tracer.start_span("utterance", whole, SpanKind.SERVER))

    def stages(self, stages: Stages) -> Stages:
        """The same stages, each call a span of the utterance in progress."""
        return TracedStages(stages, self._tracer)

    def close(self) -> None:
        """Sends what is left, but does not wait for long."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(LAST_SPANS_SECONDS)


class UtteranceSpan:
    """One utterance in a trace."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def enter(self) -> None:
        """What this task, and those that it starts, do from now on is part of the utterance."""
        context.attach(trace.set_span_in_context(self._span))

    def end(self, attributes: Values, *, failed: bool) -> None:
        """It is over."""
        self._span.set_attributes(_named(attributes))
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class TracedStages:
    """Implements `cosyserve.pipeline.synthesizer.Stages` on others."""

    def __init__(self, stages: Stages, tracer: Tracer) -> None:
        self._stages = stages
        self._tracer = tracer

    async def frontend(self, request: Tensors) -> Tensors:
        """See `Stages.frontend`."""
        with self._span("frontend"):
            return await self._stages.frontend(request)

    async def speech_tokens(self, utterance: int, inputs: Tensors) -> AsyncGenerator[NDArray[np.int32], None]:
        """See `Stages.speech_tokens`. The span is the segment's."""
        with self._span("llm", text_tokens=len(inputs["text_tokens"])) as span:
            count = 0
            async with aclosing(self._stages.speech_tokens(utterance, inputs)) as groups:
                async for group in groups:
                    count += len(group)
                    span.set_attributes(_named({"speech_tokens": count}))
                    yield group

    async def add_text(self, utterance: int, text: NDArray[np.int32], *, more: bool) -> None:
        """See `Stages.add_text`. It is part of the segment's span."""
        await self._stages.add_text(utterance, text, more=more)

    async def token2wav(self, sequence: int, inputs: Tensors, *, start: bool, end: bool) -> Pcm:
        """See `Stages.token2wav`."""
        with self._span("token2wav", speech_tokens=len(inputs["speech_tokens"]), start=start, end=end) as span:
            audio = await self._stages.token2wav(sequence, inputs, start=start, end=end)
            span.set_attributes(_named({"samples": len(audio)}))
            return audio

    @contextmanager
    def _span(self, stage: str, **attributes: bool | int) -> Iterator[Span]:
        # Never the current span: a generator is entered and left in different contexts.
        span = self._tracer.start_span(stage, attributes=_named(attributes))
        try:
            yield span
        except Exception as error:
            code = error.code if isinstance(error, CosyServeError) else CosyServeError.code
            span.set_status(StatusCode.ERROR, code)
            raise
        finally:
            span.end()


def _named(attributes: Values) -> Values:
    return {f"cosyserve.{name}": value for name, value in attributes.items()}
