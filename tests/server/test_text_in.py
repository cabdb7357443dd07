"""Text in pieces on the real server: audio comes before the text has ended, and pieces do not change it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from live import Live, wait_until
from numpy.typing import NDArray
from raw import IN_BODY, Input, call, numbers, words

from cosyserve.limits import MAX_TEXT_CHARS
from cosyserve.text.words import words as caption
from cosyserve_client import AsyncClient, AudioChunk, Client, InvalidArgument, NotFound, SpeechOptions, wire

Pcm = NDArray[np.int16]

TEXT = "Hello there, this text comes in pieces; on 3 lines: one, two, and three. 你好，今天天气很好。"
SHORT = "Hi."


def by_word(text: str) -> list[str]:
    return [word + " " for word in text.split(" ")]


CUTS: dict[str, Callable[[str], Iterable[str]]] = {
    "whole": lambda text: [text],
    "characters": list,
    "words": by_word,
    "threes": lambda text: [text[start : start + 3] for start in range(0, len(text), 3)],
}


def told(client: Client, pieces: Iterable[str], **options: object) -> list[AudioChunk]:
    """Audio of a text whose pieces are sent immediately one after another."""
    with client.session(**options) as session:  # type: ignore[arg-type]
        for piece in pieces:
            session.push(piece)
        session.end()
        return list(session)


def pcm(chunks: list[AudioChunk]) -> Pcm:
    return np.concatenate([chunk.pcm for chunk in chunks])


async def tell(client: AsyncClient, pieces: Iterable[str], seed: int, pause: float) -> Pcm:
    """Audio of a text whose pieces are sent with this pause while the audio is read."""
    async with client.session(seed=seed) as session:

        async def write() -> None:
            for piece in pieces:
                await session.push(piece)
                await asyncio.sleep(random.uniform(0, 2 * pause))
            await session.end()

        writing = asyncio.create_task(write())
        chunks = [chunk async for chunk in session]
        await writing
    return pcm(chunks)


async def test_audio_comes_before_the_text_has_ended(server: Live) -> None:
    async with AsyncClient(server.url, stream_timeout=120) as client, client.session(seed=1) as session:
        listening = asyncio.create_task(anext(session))
        while not listening.done():
            await session.push("and one more word ")
            await asyncio.sleep(0.05)
        assert len((await listening).pcm)
        await session.end()
        assert [chunk async for chunk in session][-1].final


@pytest.mark.parametrize("cut", list(CUTS)[1:])
def test_pieces_do_not_change_the_samples(client: Client, prompt: SpeechOptions, cut: str) -> None:
    whole = pcm(told(client, [TEXT], seed=3, **prompt))
    assert len(whole)
    np.testing.assert_array_equal(pcm(told(client, CUTS[cut](TEXT), seed=3, **prompt)), whole)


async def test_sixteen_sessions_at_once_equal_the_same_alone(server: Live, client: Client) -> None:
    text = "Each of them is written in its own time, and heard as if alone."
    alone = [pcm(told(client, [text], seed=seed)) for seed in (0, 1)]
    async with AsyncClient(server.url, stream_timeout=120) as crowd:
        cuts = list(CUTS.values())
        together = await asyncio.gather(*(tell(crowd, cuts[i % 4](text), i % 2, 0.01 * (i % 3)) for i in range(16)))
    for index, heard in enumerate(together):
        np.testing.assert_array_equal(heard, alone[index % 2])


def test_a_flush_ends_a_segment_and_the_next_goes_on(client: Client) -> None:
    with client.session(seed=4) as session:
        session.push("Good morning to")
        session.push(" you")
        session.flush()
        session.flush()
        first = []
        while sum(chunk.token_count for chunk in first) * 960 < len(pcm(told(client, ["Good morning to you"], seed=4))):
            first.append(next(session))
        session.push("How are you?")
        session.end()
        rest = list(session)
    np.testing.assert_array_equal(pcm(first), pcm(told(client, ["Good morning to you"], seed=4)))
    chunks = [*first, *rest]
    assert [chunk.segment for chunk in chunks] == [0] * len(first) + [1] * len(rest)
    offsets = np.cumsum([0, *(len(chunk.pcm) for chunk in chunks)]).tolist()
    assert [chunk.sample_offset for chunk in chunks] == offsets[:-1]


def test_a_long_text_becomes_several_segments(client: Client) -> None:
    sentence = ", ".join(["One", *["two", "three", "four", "five"] * 8]) + ". "
    chunks = told(client, by_word(2 * sentence), seed=5)
    assert {chunk.segment for chunk in chunks} == {0, 1}
    offsets = np.cumsum([0, *(len(chunk.pcm) for chunk in chunks)]).tolist()
    assert [chunk.sample_offset for chunk in chunks] == offsets[:-1]


def test_slow_writers_do_not_block_others(server: Live, client: Client) -> None:
    alone = client.synthesize(SHORT, seed=2).pcm
    sessions = [client.session(seed=seed) for seed in range(12)]
    for session in sessions:
        session.__enter__()
        session.push("Some words, but by no means all of ")
    try:
        for _ in range(3):
            np.testing.assert_array_equal(client.synthesize(SHORT, seed=2).pcm, alone)
        sessions[0].push("them.")
        sessions[0].end()
        assert list(sessions[0])[-1].final
    finally:
        for session in sessions:
            session.close()
    server.wait_idle()


@pytest.mark.parametrize(
    "text",
    ["", "Hi ", "Good morning, and welcome to London, my friend. The next train to Boston leaves at seven thirty. "],
)
def test_leaving_a_session_that_waits_for_text_frees_every_stage(server: Live, client: Client, text: str) -> None:
    server.wait_idle()
    with client.session(seed=1) as session:
        session.push(text)
        if len(text) > 10:
            assert len(next(session).pcm)
        else:
            wait_until(lambda: any(server.held().values()), lambda: "the session never began")
    server.wait_idle()


def test_a_session_without_a_word_says_so(client: Client) -> None:
    for pieces in ([], [""], [" ", "...", "\n"]):
        with pytest.raises(InvalidArgument, match="text: holds nothing that can be spoken"):
            told(client, pieces)


def test_an_id_that_is_in_use_is_refused_and_its_owner_not_disturbed(
    server: Live, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = pcm(told(client, [TEXT], seed=6))
    monkeypatch.setattr(wire.secrets, "randbits", lambda bits: 76)
    with client.session(seed=6) as session:
        session.push(TEXT[:20])
        wait_until(lambda: any(server.held().values()), lambda: "the session never began")
        answer = call(server.url, words("text", "Hi."), sequence=77, start=True)
        assert answer.code == IN_BODY
        assert answer.message.startswith("INVALID_ARGUMENT | sequence_id: ")
        session.push(TEXT[20:])
        session.end()
        np.testing.assert_array_equal(pcm(list(session)), alone)


@pytest.mark.parametrize(
    ("field", "inputs"),
    [
        ("text", (words("text", b"caf\xe9"),)),
        ("seed", (words("text", "Hi."), numbers("seed", "INT64", [1]))),
        ("voice", (words("voice", "demo"),)),
    ],
)
def test_a_wrong_piece_ends_its_session_and_names_the_field(
    server: Live, client: Client, monkeypatch: pytest.MonkeyPatch, field: str, inputs: tuple[Input, ...]
) -> None:
    monkeypatch.setattr(wire.secrets, "randbits", lambda bits: 78)
    with client.session() as session:
        session.push("Hello there, ")
        wait_until(lambda: any(server.held().values()), lambda: "the session never began")
        assert call(server.url, *inputs, sequence=79).code == "OK"
        with pytest.raises(InvalidArgument, match=f"{field}: "):
            list(session)
    # Text that was sent before the writer got the error causes no further error.
    assert call(server.url, words("text", "Hi."), sequence=79).code == "OK"
    server.wait_idle()


def test_a_piece_of_no_session_is_refused(server: Live) -> None:
    answer = call(server.url, words("text", "Hi."), sequence=2**40)
    assert answer.code == IN_BODY
    assert answer.message.startswith("INVALID_ARGUMENT | sequence_id: ")


@pytest.mark.parametrize(
    ("field", "inputs"),
    [
        ("text", (words("text", (MAX_TEXT_CHARS + 1) * "x"),)),
        ("source_audio", (words("mode", "vc"),)),
        ("mode", (words("mode", "opera"),)),
        ("voice", (words("voice", "nobody"),)),
    ],
)
def test_wrong_openings_are_refused_and_leave_the_id_free(
    server: Live, client: Client, field: str, inputs: tuple[Input, ...]
) -> None:
    for _ in range(2):
        answer = call(server.url, *inputs, sequence=2**41, start=True)
        assert answer.code == IN_BODY, answer
        assert field in answer.message
        assert "sequence_id" not in answer.message
    server.wait_idle()


def test_pieces_right_after_a_refused_opening_have_no_effect(server: Live, client: Client) -> None:
    for _ in range(5):
        with client.session(voice="nobody") as session:
            for word in by_word(TEXT):
                session.push(word)
            with pytest.raises(NotFound, match="nobody"):
                next(session)
            with pytest.raises(NotFound, match="nobody"):
                session.push("more")
        assert client.synthesize(SHORT, seed=2).pcm.size
    server.wait_idle()


def test_a_flush_needs_a_session(server: Live) -> None:
    answer = call(server.url, words("text", "Hi."), numbers("flush", "BOOL", [1]))
    assert (answer.code, answer.message.partition(":")[0]) == (IN_BODY, "flush")


def test_a_piece_that_is_too_long_ends_the_session_with_a_reason(server: Live, client: Client) -> None:
    with client.session() as session:
        session.push((MAX_TEXT_CHARS + 1) * "x")
        with pytest.raises(InvalidArgument, match=f"text: has {MAX_TEXT_CHARS + 1} characters"):
            next(session)
    server.wait_idle()


def test_a_session_has_speeds_rates_and_words_too(client: Client) -> None:
    text = TEXT.replace("3", "three")
    plain = told(client, by_word(text), seed=3)
    shaped = told(client, CUTS["threes"](text), seed=3, speed=0.5, sample_rate=8000, timestamps=True)
    assert len(pcm(shaped)) == len(pcm(plain)) * 2 // 3
    timed = [word for chunk in shaped for word in chunk.words]
    assert [word.text for word in timed] == caption(text)
    assert [word.start for word in timed] == sorted(word.start for word in timed)
    assert timed[-1].start < shaped[-1].sample_offset / 8000
