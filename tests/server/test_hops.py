"""A server with other settings: same samples with other chunks, refusals of a full server, idle sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live import Live, running

from cosyserve.metrics import CANCELLED, REFUSED
from cosyserve_client import Cancelled, Client, SpeechOptions, SpeechRequest, Unavailable

TEXT = "The same sentence, cut into larger pieces, must sound exactly the same; chunks are an affair of the network."


@pytest.fixture(scope="module")
def other(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    log = tmp_path_factory.mktemp("other") / "triton.log"
    settings = {"first_hop": "75", "max_hop": "150", "max_streams": "1", "llm_slots": "2", "session_idle": "2"}
    with running(demo_weights, log, **settings) as live:
        yield live


@pytest.fixture(scope="module")
def other_client(other: Live) -> Iterator[Client]:
    with Client(other.url, stream_timeout=120) as client:
        yield client


@pytest.mark.parametrize("cloned", [True, False])
def test_larger_chunks_give_the_same_samples(
    client: Client, other_client: Client, prompt: SpeechOptions, cloned: bool
) -> None:
    request = SpeechRequest.of(TEXT, **prompt) if cloned else SpeechRequest.of(TEXT)
    fine = list(client.stream(request, seed=5))
    coarse = list(other_client.stream(request, seed=5))
    assert len(coarse[0].pcm) > len(fine[0].pcm)
    assert len(coarse) < len(fine)
    ours, theirs = (np.concatenate([chunk.pcm for chunk in chunks]).astype(np.int32) for chunks in (fine, coarse))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1)


def test_a_full_server_refuses_at_once_and_serves_again(other: Live, other_client: Client) -> None:
    refused = other.metric(REFUSED, model="tts", reason="streams")
    with other_client.stream(TEXT, seed=5) as speaking:
        next(speaking)
        with pytest.raises(Unavailable, match="all 1 streams are in use"):
            other_client.synthesize("Hi.")
        assert list(speaking)[-1].final
    assert other.metric(REFUSED, model="tts", reason="streams") == refused + 1
    other.wait_idle()
    assert len(other_client.synthesize("Hi.").pcm)


def test_a_patient_client_waits_for_its_turn(other: Live, other_client: Client) -> None:
    with Client(other.url, retries=9) as patient, other_client.stream(TEXT, seed=5) as speaking:
        next(speaking)
        assert len(patient.synthesize("Hi.").pcm)


@pytest.mark.parametrize("text", ["", "Some words that are spoken, and then "])
def test_an_idle_session_is_closed_with_a_reason(other: Live, other_client: Client, text: str) -> None:
    idle = other.metric(CANCELLED, model="tts", reason="idle")
    with other_client.session(seed=1) as session:
        session.push(text)
        with pytest.raises(Cancelled, match="nothing was written for 2 s"):
            list(session)
        with pytest.raises(Cancelled, match="nothing was written for 2 s"):
            session.push("too late")
    other.wait_idle()
    assert other.metric(CANCELLED, model="tts", reason="idle") == idle + 1
    assert len(other_client.synthesize("Hi.").pcm)
