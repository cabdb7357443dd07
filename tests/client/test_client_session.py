"""Sessions of both clients: text, audio and errors."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from dummy_server import SINE, DummyServer

from cosyserve_client import AsyncClient, Client, CosyServeClientError, InvalidArgument, NotFound, Session


def written(server: DummyServer) -> list[dict[str, object]]:
    return [{name: array[0] for name, array in inputs.items()} for inputs in server.requests]


PIECES: list[dict[str, object]] = [
    {"voice": b"anna", "seed": 3},
    {"text": b"Hello "},
    {"text": "世".encode()},
    {"flush": True},
    {},
]


def test_text_can_be_pushed_while_audio_arrives(server: DummyServer) -> None:
    with Client(server.url) as client, client.session(voice="anna", seed=3) as session:
        session.push("Hello ")
        first = next(session)
        assert not first.final
        session.push("世")
        session.flush()
        session.end()
        rest = list(session)
    np.testing.assert_array_equal(np.concatenate([chunk.pcm for chunk in (first, *rest)]), SINE)
    assert rest[-1].final
    assert written(server) == PIECES


async def test_text_can_be_pushed_while_audio_arrives_async(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client, client.session(voice="anna", seed=3) as session:
        await session.push("Hello ")
        first = await anext(session)
        assert not first.final
        await session.push("世")
        await session.flush()
        await session.end()
        rest = [chunk async for chunk in session]
    np.testing.assert_array_equal(np.concatenate([chunk.pcm for chunk in (first, *rest)]), SINE)
    assert rest[-1].final
    assert written(server) == PIECES


async def test_one_task_writes_and_one_listens(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client, client.session() as session:
        listening = asyncio.create_task(anext(session))
        await asyncio.sleep(0.05)
        assert not listening.done()
        await session.push("Hello ")
        assert len((await listening).pcm)


def test_one_thread_writes_and_one_listens(server: DummyServer) -> None:
    def write(session: Session) -> None:
        session.push("Hello ")
        session.end()

    with Client(server.url) as client, client.session() as session:
        threading.Thread(target=write, args=(session,)).start()
        assert list(session)[-1].final


async def test_leaving_cancels(server: DummyServer) -> None:
    with Client(server.url) as client, client.session() as session:
        session.push("Hello ")
        next(session)
    assert server.cancelled.acquire(timeout=5)
    async with AsyncClient(server.url) as other, other.session() as session_:
        await session_.push("Hello ")
        await anext(session_)
    assert await asyncio.to_thread(server.cancelled.acquire, timeout=5)


async def test_nothing_can_be_written_after_the_end(server: DummyServer) -> None:
    with Client(server.url) as client, client.session() as session:
        session.push("Hello ")
        session.end()
        for write in (lambda: session.push("more"), session.flush, session.end):
            with pytest.raises(InvalidArgument, match="session: has ended"):
                write()
        assert list(session)[-1].final
    async with AsyncClient(server.url) as other, other.session() as session_:
        await session_.push("Hello ")
        await session_.end()
        with pytest.raises(InvalidArgument, match="session: has ended"):
            await session_.push("more")


async def test_a_session_that_the_server_closed_says_why(server: DummyServer) -> None:
    with Client(server.url) as client, client.session() as session:
        session.push("NOT_FOUND voice")
        with pytest.raises(NotFound, match="voice"):
            next(session)
        with pytest.raises(NotFound, match="voice"):
            session.push("more")
    async with AsyncClient(server.url) as other, other.session() as session_:
        await session_.push("NOT_FOUND voice")
        with pytest.raises(NotFound, match="voice"):
            await anext(session_)
        with pytest.raises(NotFound, match="voice"):
            await session_.push("more")


async def test_a_session_is_a_context(server: DummyServer) -> None:
    with Client(server.url) as client, pytest.raises(CosyServeClientError, match="with"):
        client.session().push("Hello ")
    async with AsyncClient(server.url) as other:
        with pytest.raises(CosyServeClientError, match="async with"):
            await other.session().push("Hello ")


def test_wrong_pieces_are_not_sent(server: DummyServer) -> None:
    with Client(server.url) as client, client.session() as session:
        for text in (b"bytes", 3, "\ud800"):
            with pytest.raises(InvalidArgument, match="^INVALID_ARGUMENT text: "):
                session.push(text)  # type: ignore[arg-type]


async def test_a_task_cancelled_while_it_opens_a_session_leaves_nothing_open(server: DummyServer) -> None:
    async with AsyncClient(server.url) as client:
        await client.sample_rate()

        async def talk() -> None:
            async with client.session():
                await asyncio.sleep(60)

        ended = []
        for steps in range(1, 12):
            task = asyncio.create_task(talk())
            for _ in range(steps):
                await asyncio.sleep(0)
            await asyncio.sleep(0.002 * steps)
            task.cancel()
            ended += await asyncio.gather(task, return_exceptions=True)  # kept from the collector
        for _ in range(100):
            if not server.active:
                break
            await asyncio.sleep(0.02)
        assert server.active == 0
