"""A disconnected client frees every stage, and other streams are not affected."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from live import Live, wait_until

from cosyserve.metrics import ACTIVE_STREAMS, CANCELLED, SPEECH_TOKENS
from cosyserve_client import AsyncClient, Client, DeadlineExceeded

SHORT = "Hello there."
LONG = " ".join(
    f"Sentence number {word} is here to be spoken, and it is long enough to fill a segment by itself I hope."
    for word in ("one", "two", "three", "four", "five", "six")
)
SAMPLES_PER_TOKEN = 960


def assert_all_is_free(server: Live, client: Client, cancelled: float) -> None:
    """Check that no stage holds anything, the count is right, and only the next request generates tokens."""
    wait_until(lambda: server.metric(CANCELLED) >= cancelled, lambda: "the cancellation was not counted")
    server.wait_idle()
    assert server.metric(CANCELLED) == cancelled
    tokens = server.metric(SPEECH_TOKENS)
    heard = client.synthesize(SHORT, seed=9).pcm
    assert server.metric(SPEECH_TOKENS) == tokens + len(heard) // SAMPLES_PER_TOKEN


@pytest.mark.parametrize("chunks", [1, 4])
def test_closing_a_stream_frees_every_stage(server: Live, client: Client, chunks: int) -> None:
    server.wait_idle()
    before = server.metric(CANCELLED)
    with client.stream(LONG, seed=1) as stream:
        for _ in range(chunks):
            assert not next(stream).final
        assert server.metric(ACTIVE_STREAMS) == 1
    assert_all_is_free(server, client, before + 1)


def test_a_cancelled_utterance_stops_generating(server: Live, client: Client) -> None:
    server.wait_idle()
    before = server.metric(SPEECH_TOKENS)
    whole = len(client.synthesize(LONG, seed=1).pcm) // SAMPLES_PER_TOKEN
    after = server.metric(SPEECH_TOKENS)
    assert after - before == whole
    with client.stream(LONG, seed=1) as stream:
        next(stream)
    server.wait_idle()
    assert server.metric(SPEECH_TOKENS) - after < whole / 2


async def test_cancelling_before_any_audio_frees_every_stage(server: Live, client: Client) -> None:
    await asyncio.to_thread(server.wait_idle)
    before = server.metric(CANCELLED)
    async with AsyncClient(server.url) as impatient:
        speaking = asyncio.create_task(impatient.synthesize(LONG, seed=1, stream=False))
        await asyncio.to_thread(wait_until, lambda: any(server.held().values()), lambda: "the utterance never began")
        speaking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await speaking
    await asyncio.to_thread(assert_all_is_free, server, client, before + 1)


def test_a_deadline_ends_an_utterance_as_a_cancellation_does(server: Live, client: Client) -> None:
    server.wait_idle()
    before = server.metric(CANCELLED)
    with Client(server.url, stream_timeout=0.5) as hasty, pytest.raises(DeadlineExceeded):
        hasty.synthesize(LONG, seed=1)
    assert_all_is_free(server, client, before + 1)


def test_a_closed_connection_ends_its_streams(server: Live, client: Client) -> None:
    server.wait_idle()
    before = server.metric(CANCELLED)
    with Client(server.url) as leaving:
        streams = [leaving.stream(LONG, seed=seed) for seed in range(3)]
        for stream in streams:
            next(stream)
    assert_all_is_free(server, client, before + 3)


async def test_others_do_not_notice_a_cancellation(server: Live, client: Client) -> None:
    text = "This one is spoken to its end while its neighbours come and go."
    alone = client.synthesize(text, seed=2).pcm
    async with AsyncClient(server.url, stream_timeout=120) as crowd:
        staying = asyncio.create_task(crowd.synthesize(text, seed=2))
        for seed in range(4):
            async with crowd.stream(LONG, seed=seed) as leaving:
                await anext(leaving)
        np.testing.assert_array_equal((await staying).pcm, alone)


def test_thirty_cancellations_leave_no_trace(server: Live, client: Client) -> None:
    server.wait_idle()
    before = server.metric(CANCELLED)
    untouched = client.synthesize(SHORT, seed=4).pcm
    for seed in range(30):
        with client.stream(LONG, seed=seed) as stream:
            next(stream)
    np.testing.assert_array_equal(client.synthesize(SHORT, seed=4).pcm, untouched)
    assert_all_is_free(server, client, before + 30)
