"""Telemetry of the real server: correct metrics for every outcome, a log line and spans of each utterance, no text."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from collector import Collector, collecting, told
from live import Live, running, wait_until
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from raw import Input, call, words

from cosyserve import repository
from cosyserve.metrics import (
    CANCELLED,
    CHUNK_GAP,
    FIRST_AUDIO,
    REAL_TIME_FACTOR,
    REFUSED,
    UNDERRUNS,
    UTTERANCES,
    Metric,
)
from cosyserve_client import Client, InvalidArgument, NotFound, ServerError, SpeechOptions, SpeechRequest, Unavailable

TEXT = "It is spoken in more than one chunk, and each of them is counted as it leaves. " * 2
COUNTED = (UTTERANCES, REFUSED, CANCELLED, FIRST_AUDIO, CHUNK_GAP, REAL_TIME_FACTOR, UNDERRUNS)

Change = Callable[[], dict[str, float]]


@pytest.fixture
def change(server: Live) -> Change:
    """Counters of `tts` since the beginning of the test, without zeros."""

    def counts() -> dict[str, float]:
        return {name: server.metric(metric, **labels) for name, metric, labels in _all(COUNTED)}

    server.wait_idle()
    before = counts()
    return lambda: {name: value - before[name] for name, value in counts().items() if value != before[name]}


def _all(metrics: tuple[Metric, ...]) -> list[tuple[str, Metric, dict[str, str]]]:
    """Each metric with each value of its label other than the model."""
    found = []
    for metric in metrics:
        others = [(label, value) for label, values in metric.labels.items() for value in values if label != "model"]
        for label, value in others:
            found.append((f"{metric.name} {value}", metric, {"model": "tts", label: value}))
        if not others:
            found.append((metric.name, metric, {"model": "tts"}))
    return found


def test_an_utterance_counts_once_and_each_of_its_chunks(client: Client, change: Change) -> None:
    spoken = [chunk for chunk in client.stream(TEXT, seed=1) if len(chunk.pcm)]
    assert len(spoken) > 2
    counted = change()
    counted.pop(UNDERRUNS.name, None)  # the cores may be busy
    assert counted == {
        f"{UTTERANCES.name} complete": 1,
        FIRST_AUDIO.name: 1,
        CHUNK_GAP.name: len(spoken) - 1,
        REAL_TIME_FACTOR.name: 1,
    }


def test_metrics_of_a_session_exclude_pauses_of_its_writer(client: Client, change: Change) -> None:
    with client.session(seed=1) as session:
        session.push("Good morning.")
        session.flush()
        next(session)
        session.push("This came later.")
        session.end()
        chunks = [chunk for chunk in session if len(chunk.pcm)]
    assert chunks
    counted = change()
    assert counted.pop(CHUNK_GAP.name, 0) < len(chunks), "the first chunk of the second text waited for it"
    counted.pop(UNDERRUNS.name, None)
    assert counted == {f"{UTTERANCES.name} complete": 1, FIRST_AUDIO.name: 1}


def test_a_session_ends_as_what_ended_it(client: Client, change: Change, server: Live) -> None:
    with client.session(seed=1) as session:
        session.push(TEXT)
        next(session)
    with client.session(seed=1) as session:
        session.push("x" * 5000)
        with pytest.raises(InvalidArgument):
            list(session)
    server.wait_idle()
    counted = change()
    assert counted[f"{UTTERANCES.name} cancelled"] == counted[f"{CANCELLED.name} client"] == 1
    assert counted[f"{UTTERANCES.name} invalid"] == 1
    assert f"{UTTERANCES.name} complete" not in counted


def test_wrong_requests_are_invalid_and_no_part_of_a_histogram(client: Client, change: Change, server: Live) -> None:
    with pytest.raises(InvalidArgument):
        client.synthesize("")
    with pytest.raises(NotFound):
        client.synthesize("Hi.", voice="nobody")
    call(server.url, words("text", "one", "two"))  # Triton refuses it before anybody could count it
    assert change() == {f"{UTTERANCES.name} invalid": 2}


def test_each_entry_model_counts_its_own(server: Live, change: Change) -> None:
    before = server.metric(UTTERANCES, model="cosyvoice2", outcome="invalid")
    call(server.url, Input("target_text", "BYTES", (1, 1), bytes(4)), model="cosyvoice2")
    assert server.metric(UTTERANCES, model="cosyvoice2", outcome="invalid") == before + 1
    assert change() == {}


SAID = "Quokkas rarely yodel."
"""Texts that no log may contain, however an utterance ends."""

BREAKING = f"""
from cosyserve.contracts import {{contract}}
from cosyserve.triton.adapter import Reply
from cosyserve.triton.{{module}} import {{handler}}

SAID = "{SAID}"  # a traceback shows the lines below


class TritonPythonModel({{handler}}):
    def execute(self, requests):
        for request in requests:
            if request.request_id() == "breaks-{{name}}":
                try:
                    raise ValueError(SAID) from KeyError(SAID)
                except ValueError as error:
                    Reply(request, {{contract}}).fail(error)
            else:
                super().execute([request])
"""
"""Inner model that fails with an unexpected error on request."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def breaking(demo_weights: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that sends spans, with inner models that fail on request, and memory for one stream."""
    folder = tmp_path_factory.mktemp("breaking")
    models = shutil.copytree(repository.source(), folder / "models")
    for name, module, handler in (("frontend", "frontend", "Frontend"), ("flow", "flow", "Flow")):
        code = BREAKING.format(name=name, module=module, handler=handler, contract=name.upper())
        (models / name / "1" / "model.py").write_text(code, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "source", lambda: models)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        settings = {"flow_cache_mib": "30", "otlp_endpoint": collector.url}
        with running(demo_weights, folder / "triton.log", **settings) as live:
            yield live


def test_an_utterance_is_a_log_line_with_its_request_id(server: Live, client: Client) -> None:
    chunks = list(client.stream(TEXT, seed=1, request_id="told-1"))
    (line,) = server.logged(request_id="told-1")
    assert {name: line[name] for name in ("level", "logger", "event", "model", "outcome", "session")} == {
        "level": "info",
        "logger": "cosyserve",
        "event": "utterance",
        "model": "tts",
        "outcome": "complete",
        "session": False,
    }
    assert line["audio_seconds"] == pytest.approx(sum(len(chunk.pcm) for chunk in chunks) / 24_000, abs=1e-3)
    assert (line["chunks"], line["segments"]) == (len(chunks) - 1, chunks[-1].segment + 1)
    assert line["tokens"] == sum(chunk.token_count for chunk in chunks)
    assert 0 < line["first_audio_seconds"] < line["seconds"]
    assert line["real_time_factor"] == pytest.approx(line["seconds"] / line["audio_seconds"], rel=0.5)
    assert "code" not in line


def test_a_session_is_one_line(server: Live, client: Client) -> None:
    with client.session(seed=1, request_id="told-2") as session:
        time.sleep(0.3)
        session.push("Hello ")
        session.push("there.")
        session.end()
        list(session)
    (line,) = server.logged(request_id="told-2")
    assert (line["outcome"], line["session"]) == ("complete", True)
    assert line["first_audio_seconds"] <= line["seconds"] - 0.3, "nobody waits before there is a text"
    assert "real_time_factor" not in line


def test_a_refusal_is_logged_with_its_code_and_without_the_request(server: Live) -> None:
    call(server.url, words("text", "Hi."), words("voice", SAID), id="told-3")
    (line,) = server.logged(request_id="told-3")
    assert (line["outcome"], line["code"], line["level"]) == ("invalid", "NOT_FOUND", "info")


def test_the_docs_list_every_field_of_a_log_line(server: Live) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    told_there = page.partition("## Logs")[2].partition("The gateway writes")[0]
    call(server.url, words("text", "Hi."), id="whole", seconds=60)
    call(server.url, words("text", ""), id="wrong")
    for id in ("whole", "wrong"):
        (line,) = server.logged(request_id=id)
        assert all(f"`{name}`" in told_there for name in line)


@pytest.mark.parametrize("id", ['x\n{"event": "forged"}', "a b", '"', "x" * 65, ""])
def test_an_id_that_is_no_plain_word_is_replaced(server: Live, id: str) -> None:
    before = len(server.logged(event="utterance"))
    call(server.url, words("text", "Hi."), id=id, seconds=60)
    wait_until(lambda: len(server.logged(event="utterance")) > before, lambda: "no line")
    (line,) = server.logged(event="utterance")[before:]
    assert line["request_id"].isalnum()
    assert "forged" not in server.log.read_text("utf-8")


def test_an_unexpected_error_is_logged_with_its_request_id_and_without_text(
    breaking: Live, collector: Collector, prompt: SpeechOptions
) -> None:
    with Client(breaking.url) as client:
        said = SpeechRequest.of(SAID, **{**prompt, "prompt_text": SAID, "instruct": SAID, "mode": "instruct"})
        client.synthesize(said, request_id="well")
        for name in ("frontend", "flow"):
            with pytest.raises(ServerError, match="internal error"):
                client.synthesize(SAID, request_id=f"breaks-{name}")
            (line,) = breaking.logged(request_id=f"breaks-{name}", event="utterance")
            unforeseen = breaking.logged(request_id=f"breaks-{name}", event="unexpected error")[0]
            assert unforeseen["level"] == "error"
            assert unforeseen["traceback"].endswith("ValueError\n")
            assert f'models/{name}/1/model.py", line ' in unforeseen["traceback"]
            assert (line["outcome"], line["code"], line["level"]) == ("failed", "INTERNAL", "error")
            whole, stages = collector.tree(f"breaks-{name}")
            broken = [span.name for span in stages if span.status.code == Status.STATUS_CODE_ERROR]
            assert whole.status.code == Status.STATUS_CODE_ERROR
            assert broken[0] == {"frontend": "frontend", "flow": "token2wav"}[name]
        breaking.wait_idle()
        assert breaking.metric(UTTERANCES, model="tts", outcome="failed") == 2
        with pytest.raises(InvalidArgument):
            client.synthesize(SAID, mode=SAID)
        assert len(client.synthesize("Hi.").pcm)
    for told_of in (breaking.log.read_bytes(), collector.received):
        assert not any(word.encode() in told_of for word in SAID.split())


def test_a_refusal_for_want_of_memory_has_its_reason(breaking: Live) -> None:
    with Client(breaking.url) as client, client.session(seed=1) as session:
        session.push("One stream fits.")
        session.flush()
        next(session)
        long = (
            "A stream reserves memory for its longest segment, and this one is so long that ten seconds are reserved."
        )
        with pytest.raises(Unavailable, match="memory"):
            client.synthesize(long, voice="slt", request_id="second")
    breaking.wait_idle()
    (line,) = breaking.logged(request_id="second")
    assert (line["outcome"], line["reason"]) == ("refused", "memory")
    assert breaking.metric(REFUSED, model="tts", reason="memory") == 1


TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("header", [True, False])
def test_an_utterance_is_a_tree_of_spans_in_its_callers_trace(
    breaking: Live, client: Client, collector: Collector, header: bool
) -> None:
    traceparent, id = f"00-{TRACE}-{PARENT}-01", f"traced-{header}"
    if header:
        answer = call(breaking.url, words("text", "Hi."), id=id, seconds=60, headers=(("traceparent", traceparent),))
        assert answer.code == "OK"
    else:
        with Client(breaking.url) as traced:
            heard = traced.synthesize("Hi.", seed=1, request_id=id, traceparent=traceparent).pcm
        np.testing.assert_array_equal(heard, client.synthesize("Hi.", seed=1).pcm)
    whole, stages = collector.tree(id)
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, PARENT)
    assert {span.trace_id for span in stages} == {whole.trace_id}
    (line,) = breaking.logged(request_id=id)
    assert {name: line[name] for name in told(whole)} == told(whole)
    assert stages[0].name == "frontend"
    assert sum(span.name == "llm" for span in stages) == line["segments"]
    steps = [told(span) for span in stages if span.name == "token2wav"]
    assert [steps[0]["start"], steps[-1]["end"]] == [True, True]
    assert sum(step["speech_tokens"] for step in steps) == line["tokens"]
    assert sum(step["samples"] for step in steps) == round(line["audio_seconds"] * 24_000)
    assert collector.services == {"cosyserve"}


def test_a_disconnected_client_is_no_failure_in_a_trace(breaking: Live, collector: Collector) -> None:
    with Client(breaking.url) as client, client.stream(TEXT, seed=1, request_id="left") as stream:
        next(stream)
    breaking.wait_idle()
    whole, stages = collector.tree("left")
    assert told(whole)["reason"] == "client"
    assert not any(span.status.code for span in (whole, *stages))


def test_a_collector_that_hangs_delays_no_utterance(breaking: Live, client: Client, collector: Collector) -> None:
    alone = client.synthesize("Hi.", seed=1).pcm
    with Client(breaking.url) as traced:
        collector.answers.clear()
        traced.synthesize("Hi.", seed=1)
        wait_until(lambda: bool(collector.waiting), lambda: "nothing was sent")
        for _ in range(5):
            np.testing.assert_array_equal(traced.synthesize("Hi.", seed=1).pcm, alone)
        assert collector.waiting
        collector.answers.set()
