"""Streams of both clients against a dummy server with the real protocol."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dummy_server import CHUNK, SAMPLE_RATE, SINE, DummyServer

from cosyserve_client import (
    AsyncClient,
    AudioChunk,
    Cancelled,
    Client,
    ConnectFailed,
    CosyServeClientError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ServerError,
    SpeechRequest,
    StreamTruncated,
    Unavailable,
    Unimplemented,
)

DUMMY = Path(__file__).parents[2] / "loadtest" / "dummy_server.py"

PATIENCE = 30.0
"""Seconds after which a test counts as hanging."""

Speak = Callable[..., None]


@pytest.fixture(params=["sync", "aio"])
def speak(request: pytest.FixtureRequest, server: DummyServer) -> Speak:
    """Stream a text into a list, with ``pause`` seconds after each chunk; other options are the client's."""

    def blocking(heard: list[AudioChunk], text: str, pause: float = 0.0, url: str = server.url, **options: Any) -> None:
        with Client(url, **options) as client:
            for chunk in client.stream(text):
                heard.append(chunk)
                time.sleep(pause)

    def aio(heard: list[AudioChunk], text: str, pause: float = 0.0, url: str = server.url, **options: Any) -> None:
        async def listen() -> None:
            async with AsyncClient(url, **options) as client:
                async for chunk in client.stream(text):
                    heard.append(chunk)
                    await asyncio.sleep(pause)

        asyncio.run(listen())

    return blocking if request.param == "sync" else aio


def test_chunks_come_in_order_and_only_the_last_is_final(speak: Speak, server: DummyServer) -> None:
    heard: list[AudioChunk] = []
    speak(heard, "hello")
    assert [chunk.sample_offset for chunk in heard] == [0, CHUNK, 2 * CHUNK, 3 * CHUNK, 4 * CHUNK]
    assert [(chunk.token_offset, chunk.token_count) for chunk in heard] == [(at, 5) for at in range(0, 25, 5)]
    assert [chunk.final for chunk in heard] == [False] * 4 + [True]
    assert {chunk.sample_rate for chunk in heard} == {SAMPLE_RATE}
    assert {chunk.segment for chunk in heard} == {0}
    assert heard[0].pcm.dtype == np.int16
    np.testing.assert_array_equal(np.concatenate([chunk.pcm for chunk in heard]), SINE)


def test_words_come_with_the_chunks_they_begin_in(speak: Speak) -> None:
    heard: list[AudioChunk] = []
    speak(heard, SpeechRequest(text="three little words", timestamps=True))
    words = [[(word.text, round(word.start, 3)) for word in chunk.words] for chunk in heard]
    assert words == [[("three", 0.05)], [("little", 0.15)], [("words", 0.25)], [], []]
    plain: list[AudioChunk] = []
    speak(plain, "three little words")
    assert not any(chunk.words for chunk in plain)


def test_chunks_carry_the_rate_that_was_asked_for(speak: Speak) -> None:
    heard: list[AudioChunk] = []
    speak(heard, SpeechRequest(text="hello", sample_rate=8000))
    assert {chunk.sample_rate for chunk in heard} == {8000}


def test_every_utterance_is_one_stream_with_its_own_request_id(speak: Speak, server: DummyServer) -> None:
    speak([], "hello")
    speak([], "hello")
    assert server.calls["ModelStreamInfer"] == 2
    assert len(set(server.ids)) == 2
    assert "" not in server.ids


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidArgument),
        ("NOT_FOUND", NotFound),
        ("UNAVAILABLE", Unavailable),
        ("CANCELLED", Cancelled),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("UNIMPLEMENTED", Unimplemented),
        ("INTERNAL", Internal),
        ("RESOURCE_EXHAUSTED", ServerError),
    ],
)
@pytest.mark.parametrize("reason", ["", "voice"])
def test_each_status_has_its_class(speak: Speak, code: str, kind: type[ServerError], reason: str) -> None:
    with pytest.raises(ServerError) as caught:
        speak([], f"{code}{reason and '/'}{reason} text: is empty")
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert str(caught.value) == f"{code} text: is empty"


def test_the_end_behind_an_error_is_read(speak: Speak, server: DummyServer) -> None:
    """Triton does not count a stream as ended if it is cancelled at its end."""
    with pytest.raises(NotFound):
        speak([], "NOT_FOUND no such voice")
    assert not server.cancelled.acquire(timeout=0.3)


def test_audio_before_an_error_is_not_lost_on_a_slow_listener(speak: Speak) -> None:
    heard: list[AudioChunk] = []
    with pytest.raises(Internal):
        speak(heard, "late INTERNAL flow failed", pause=0.1)
    assert len(heard) == 3


def test_a_stream_without_its_final_response_is_truncated(speak: Speak) -> None:
    heard: list[AudioChunk] = []
    with pytest.raises(StreamTruncated, match=str(2 * CHUNK)):
        speak(heard, "truncate")
    assert len(heard) == 2


def test_a_response_without_an_output_is_refused(speak: Speak) -> None:
    with pytest.raises(CosyServeClientError, match="without final"):
        speak([], "bare")


def test_the_stream_timeout_ends_a_silent_stream(speak: Speak, server: DummyServer) -> None:
    """Without the timeout the stream would outlast the test: the default is ten minutes."""
    with pytest.raises(DeadlineExceeded):
        speak([], "silent", stream_timeout=0.3)
    assert server.cancelled.acquire(timeout=PATIENCE), "the stream goes on"


@pytest.mark.parametrize("url", ["127.0.0.1:1", "no-such-host.invalid:1", "dns:///no-such-host.invalid:1"])
def test_no_server_is_a_failed_connection(speak: Speak, url: str) -> None:
    with pytest.raises(ConnectFailed):
        speak([], "hello", url=url, retries=3)


@pytest.mark.parametrize("text", ["slow", "silent"])
def test_a_server_that_is_killed_was_reached(speak: Speak, text: str) -> None:
    command = [sys.executable, DUMMY, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        threading.Timer(0.5, server.kill).start()
        with pytest.raises(Unavailable):
            speak([], text, url=url)


def test_a_full_server_is_tried_again_when_asked(speak: Speak, server: DummyServer) -> None:
    heard: list[AudioChunk] = []
    speak(heard, "full 2", retries=2)
    assert len(heard) == 5
    assert server.calls["ModelStreamInfer"] == 3


def test_a_full_server_is_not_tried_again_by_default(speak: Speak, server: DummyServer) -> None:
    with pytest.raises(Unavailable):
        speak([], "full 1")
    assert server.calls["ModelStreamInfer"] == 1


def test_retries_run_out(speak: Speak, server: DummyServer) -> None:
    with pytest.raises(Unavailable):
        speak([], "full 9", retries=1)
    assert server.calls["ModelStreamInfer"] == 2


@pytest.mark.parametrize("text", ["NOT_FOUND voice", "late UNAVAILABLE shutting down"])
def test_nothing_else_is_tried_again(speak: Speak, server: DummyServer, text: str) -> None:
    with pytest.raises(ServerError):
        speak([], text, retries=3)
    assert server.calls["ModelStreamInfer"] == 1


def test_a_server_without_a_sample_rate_is_refused_before_the_stream(speak: Speak, server: DummyServer) -> None:
    server.parameters.clear()
    with pytest.raises(CosyServeClientError, match="sample_rate"):
        speak([], "hello")
    assert server.calls["ModelStreamInfer"] == 0


def cancelled(server: DummyServer) -> bool:
    """Return whether the server saw a stream cancelled."""
    return server.cancelled.acquire(timeout=PATIENCE)


def test_break_cancels_on_the_server(server: DummyServer) -> None:
    with Client(server.url) as client:
        for _ in client.stream("slow"):
            break
        assert cancelled(server)


async def test_break_cancels_on_the_server_aio(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client:
        async for _ in client.stream("slow"):
            break
        assert await asyncio.to_thread(cancelled, server)


def test_leaving_the_stream_context_cancels(server: DummyServer) -> None:
    with Client(server.url) as client:
        with client.stream("slow") as stream:
            next(stream)
        assert cancelled(server)
        assert list(stream) == []


async def test_leaving_the_stream_context_cancels_aio(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client:
        async with client.stream("slow") as stream:
            await anext(stream)
        assert await asyncio.to_thread(cancelled, server)
        assert [chunk async for chunk in stream] == []


def test_closing_from_another_thread_wakes_the_listener(server: DummyServer) -> None:
    with Client(server.url) as client:
        stream = client.stream("silent")
        threading.Timer(0.3, stream.close).start()
        with pytest.raises(Cancelled):
            next(stream)
        assert cancelled(server)


async def test_closing_from_another_task_wakes_the_listener_aio(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client:
        stream = client.stream("silent")
        listener = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.3)
        await stream.aclose()
        with pytest.raises(Cancelled):
            await listener
        assert await asyncio.to_thread(cancelled, server)


def wait_for_the_third_try(server: DummyServer) -> None:
    while server.calls["ModelStreamInfer"] < 3:
        time.sleep(0.01)


def test_closing_between_two_tries_ends_them(server: DummyServer) -> None:
    with Client(server.url, retries=9) as client:
        stream = client.stream("full 3")

        def close() -> None:
            wait_for_the_third_try(server)
            stream.close()

        closer = threading.Thread(target=close)
        closer.start()
        with pytest.raises(Cancelled):
            next(stream)
        closer.join()


async def test_closing_between_two_tries_ends_them_aio(server: DummyServer) -> None:
    async with AsyncClient(server.url, retries=9) as client:
        stream = client.stream("full 3")
        listener = asyncio.create_task(anext(stream))
        await asyncio.to_thread(wait_for_the_third_try, server)
        await stream.aclose()
        with pytest.raises(Cancelled):
            await listener
        assert server.calls["ModelStreamInfer"] == 3


async def test_cancelling_the_task_cancels_on_the_server(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client:
        task = asyncio.create_task(client.synthesize("silent"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(cancelled, server)


def test_closing_the_client_cancels_its_streams(server: DummyServer) -> None:
    with Client(server.url) as client:
        stream = client.stream("slow")
        next(stream)
    assert cancelled(server)
    with pytest.raises(CosyServeClientError, match="closed"):
        client.synthesize("hello")


async def test_closing_the_client_cancels_its_streams_aio(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client:
        stream = client.stream("slow")
        await anext(stream)
    assert await asyncio.to_thread(cancelled, server)
    with pytest.raises(CosyServeClientError, match="not open"):
        await client.synthesize("hello")


async def test_closing_the_client_wakes_its_listeners_aio(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client:
        listener = asyncio.create_task(client.synthesize("silent"))
        await asyncio.sleep(0.3)
    with pytest.raises(Cancelled):
        await listener


async def test_both_clients_return_the_same_audio(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client:
        ours = await client.synthesize("hello")
    with Client(server.url) as blocking:
        theirs = await asyncio.to_thread(blocking.synthesize, "hello")
    np.testing.assert_array_equal(ours.pcm, SINE)
    np.testing.assert_array_equal(theirs.pcm, SINE)
    assert ours.sample_rate == theirs.sample_rate == SAMPLE_RATE
    assert ours.seconds == pytest.approx(0.5)


async def test_many_streams_share_one_client_and_one_request_for_the_rate(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client:
        await client.sample_rate()
        speeches = await asyncio.gather(*(client.synthesize("hello") for _ in range(8)))
    assert [len(speech.pcm) for speech in speeches] == [len(SINE)] * 8
    assert server.calls["ModelConfig"] == 1


async def test_ready_follows_the_model(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client, AsyncClient("127.0.0.1:1") as nowhere:
        with Client(server.url) as blocking:
            assert await client.ready()
            assert await asyncio.to_thread(blocking.ready)
            assert not await nowhere.ready()
            server.loaded = False
            assert not await client.ready()
            assert not await asyncio.to_thread(blocking.ready)


def test_streams_spread_over_all_addresses(server: DummyServer) -> None:
    with DummyServer() as other, Client(f"ipv4:{server.url},{other.url}") as client:
        deadline = time.monotonic() + PATIENCE
        while not (server.calls["ModelStreamInfer"] and other.calls["ModelStreamInfer"]):
            client.synthesize("hello")
            assert time.monotonic() < deadline, "one address gets all streams"
