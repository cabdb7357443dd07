"""Spans of stages: attributes, and data that they omit."""

from __future__ import annotations

import subprocess
import sys
from contextlib import aclosing

import numpy as np
import pytest
from fakes import GRID, FakeStages
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from cosyserve.contracts import Tensors
from cosyserve.errors import StageFailed, WeightsError
from cosyserve.load.tts import load_traces
from cosyserve.pipeline.admission import Admission
from cosyserve.pipeline.synthesizer import Synthesizer
from cosyserve.serve import free_port
from cosyserve.settings import Settings
from cosyserve.traces import TracedStages, Traces

REQUEST: Tensors = {"text": np.array([b"hello"], np.object_), "seed": np.array([11])}


class Traced:
    """A synthesizer whose stages are traced into memory."""

    def __init__(self, stages: FakeStages) -> None:
        self._memory = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.synthesizer = Synthesizer(TracedStages(stages, provider.get_tracer("test")), GRID, Admission(1))

    def spans(self, name: str) -> list[ReadableSpan]:
        """The spans that have ended."""
        return [span for span in self._memory.get_finished_spans() if span.name == name]

    async def speak(self, chunks: int = 2**31) -> list[int]:
        """Samples of each chunk; the stream is left after so many."""
        heard: list[int] = []
        async with aclosing(self.synthesizer.speak(REQUEST)) as audio:
            async for chunk in audio:
                heard.append(len(chunk.audio))
                if len(heard) == chunks:
                    break
        return heard


def total(spans: list[ReadableSpan], name: str) -> int:
    return sum(int((span.attributes or {})[f"cosyserve.{name}"]) for span in spans)  # type: ignore[arg-type]


async def test_each_call_of_a_stage_is_a_span() -> None:
    traced = Traced(FakeStages([60, 10]))
    heard = await traced.speak()
    assert len(traced.spans("frontend")) == 1
    assert total(traced.spans("llm"), "speech_tokens") == 70
    assert [(span.attributes or {})["cosyserve.text_tokens"] for span in traced.spans("llm")] == [2, 3]
    assert total(traced.spans("token2wav"), "samples") == sum(heard)
    assert total(traced.spans("token2wav"), "speech_tokens") == 70
    assert {span.status.status_code for span in traced.spans("token2wav")} == {StatusCode.UNSET}


async def test_a_stage_that_fails_says_so_by_code_alone() -> None:
    stages = FakeStages([60])

    async def hook(point: str) -> None:
        if point == "llm 0.3":
            raise StageFailed("secret")

    stages.hook = hook
    traced = Traced(stages)
    with pytest.raises(StageFailed):
        await traced.speak()
    (span,) = traced.spans("llm")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "INTERNAL")
    assert "secret" not in span.to_json()


async def test_a_closed_stream_ends_all_spans_without_failure() -> None:
    stages = FakeStages([60, 1000])
    traced = Traced(stages)
    await traced.speak(chunks=1)
    assert stages.idle
    assert traced.spans("llm")
    assert {span.status.status_code for span in traced.spans("llm")} == {StatusCode.UNSET}


async def test_a_missing_collector_has_no_effect() -> None:
    traces = Traces(f"http://127.0.0.1:{free_port()}")
    traced, plain = (
        Synthesizer(stages, GRID, Admission(1)) for stages in (traces.stages(FakeStages([60])), FakeStages([60]))
    )
    heard = [[chunk.audio async for chunk in each.speak(REQUEST)] for each in (traced, plain)]
    for ours, alone in zip(*heard, strict=True):
        np.testing.assert_array_equal(ours, alone)
    traces.close()


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    program = """
import sys
from cosyserve.load.tts import load_traces
from cosyserve.serve import free_port
from cosyserve.settings import Settings
assert load_traces(Settings()) is None
assert not any(name.startswith("opentelemetry") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_the_extra_the_start_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cosyserve.traces")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(WeightsError, match=r"^setting otlp_endpoint: needs `pip install 'cosyserve\[tracing\]'`$"):
        load_traces(Settings(otlp_endpoint="http://collector:4318"))


@pytest.mark.parametrize("endpoint", ["collector:4317", "grpc://collector", "file:///etc"])
def test_an_endpoint_is_an_address_of_http(endpoint: str) -> None:
    with pytest.raises(WeightsError, match="otlp_endpoint"):
        Settings(otlp_endpoint=endpoint)
