"""What the real server tells of its utterances: metrics that are truthful however one ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from live import Live
from raw import Input, call, words

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
from cosyserve_client import Client, InvalidArgument, NotFound

TEXT = "It is spoken in more than one chunk, and each of them is counted as it leaves. " * 2
COUNTED = (UTTERANCES, REFUSED, CANCELLED, FIRST_AUDIO, CHUNK_GAP, REAL_TIME_FACTOR, UNDERRUNS)

Change = Callable[[], dict[str, float]]


@pytest.fixture
def change(server: Live) -> Change:
    """What has been counted for `tts` since the test began, without zeros."""

    def counts() -> dict[str, float]:
        return {name: server.metric(metric, **labels) for name, metric, labels in _all(COUNTED)}

    server.wait_idle()
    before = counts()
    return lambda: {name: value - before[name] for name, value in counts().items() if value != before[name]}


def _all(metrics: tuple[Metric, ...]) -> list[tuple[str, Metric, dict[str, str]]]:
    """Each metric with each value of its label besides the model."""
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


def test_a_session_is_not_judged_by_the_pauses_of_its_writer(client: Client, change: Change) -> None:
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
