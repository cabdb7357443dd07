"""Text in pieces to segments, and their speech over fake stages."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
from fakes import GRID, FakeStages

from cosyserve.contracts import Tensors
from cosyserve.errors import InvalidInput, SessionIdle, StageFailed
from cosyserve.limits import MAX_SESSION_CHARS, MAX_TEXT_CHARS
from cosyserve.pipeline.admission import Admission
from cosyserve.pipeline.synthesizer import Synthesizer
from cosyserve.pipeline.text_session import TextPiece, TextSession, TextSessions
from cosyserve.pipeline.timeline import Chunk

SPEECH = 3
"""Speech tokens that the fake language model generates for each character."""


class Dictated(FakeStages):
    """Token ids are characters. The language model generates `SPEECH` tokens for each, as soon as it arrives.

    Attributes:
        told: text ids of each segment, piece by piece, with None at the end of a text.
    """

    def __init__(self, segment: int = 1000) -> None:
        super().__init__([])
        self.segment = segment
        self.told: list[list[str | None]] = []
        self.queues: dict[int, asyncio.Queue[str | None]] = {}

    async def frontend(self, request: Tensors) -> Tensors:
        self.requests.append(request)
        await self._reach("frontend")
        ids = [ord(char) for char in request["text"][0].decode()] if "text" in request else []
        lengths, texts = [0], [""]
        held = int(request["continues"][0])
        for id in ids:
            lengths[-1] += 1
            texts[-1] += chr(id)
            held += 1
            if held == self.segment:
                lengths.append(0)
                texts.append("")
                held = 0
        return {
            "text_tokens": np.array(ids, np.int32),
            "speech_tokens": np.zeros(0, np.int32),
            "segment_lengths": np.array(lengths, np.int32),
            "segment_texts": np.array([part.encode() for part in texts], object),
            "prompt_text_tokens": np.array([7], np.int32),
            "llm_prompt_tokens": np.array([9], np.int32),
            "llm_speaker_embedding": np.zeros(0, np.float32),
            "flow_prompt_tokens": np.zeros(0, np.int32),
            "prompt_mel": np.zeros((0, 80), np.float32),
            "speaker_embedding": np.ones(192, np.float32),
        }

    async def speech_tokens(self, utterance, inputs):  # type: ignore[no-untyped-def]
        assert inputs["more"][0]
        queue = self.queues[utterance] = asyncio.Queue()
        told = [_text(inputs["text_tokens"])]
        self.told.append(told)
        self.generating += 1
        self.llm_inputs.append(inputs)
        text: str | None = told[0]
        try:
            await self._reach("llm")
            yield np.zeros(0, np.int32)
            while text is not None:
                yield np.repeat(np.array([ord(char) for char in text], np.int32), SPEECH)
                text = await queue.get()
                told.append(text)
        finally:
            self.generating -= 1
            del self.queues[utterance]

    async def add_text(self, utterance: int, text: np.ndarray, *, more: bool) -> None:  # type: ignore[type-arg]
        await self._reach("add")
        if len(text):
            self.queues[utterance].put_nowait(_text(text))
        if not more:
            self.queues[utterance].put_nowait(None)


def _text(ids) -> str:  # type: ignore[no-untyped-def]
    return "".join(map(chr, ids.tolist()))


def heard(chunks: list[Chunk]) -> dict[int, str]:
    """The text in the audio of each segment."""
    step = GRID.samples_per_token * SPEECH
    audio = {
        index: np.concatenate([c.audio for c in chunks if c.segment == index]) for index in {c.segment for c in chunks}
    }
    return {index: "".join(chr(char) for char in samples[::step]) for index, samples in audio.items()}


def session(*pieces: str, idle: float = 5, end: bool = True) -> TextSession:
    made = TextSession(idle)
    for piece in pieces:
        made.write(TextPiece(piece.rstrip("|"), flush=piece.endswith("|"), end=False))
    if end:
        made.write(TextPiece("", flush=False, end=True))
    return made


async def speak(stages: Dictated, written: TextSession) -> list[Chunk]:
    speaker = Synthesizer(stages, GRID, Admission(1))
    request: Tensors = {"seed": np.array([5]), "timestamps": np.array([True])}
    async with aclosing(speaker.speak(request, written)) as chunks:
        return [chunk async for chunk in chunks]


@pytest.mark.parametrize("pieces", [["one two"], ["o", "ne", " ", "tw", "o"], ["one ", "", "two"]])
async def test_the_text_is_spoken_whatever_its_pieces(pieces: list[str]) -> None:
    stages = Dictated()
    chunks = await speak(stages, session(*pieces))
    assert heard(chunks) == {0: "one two"}
    assert [word.text for chunk in chunks for word in chunk.words] == ["one", "two"]
    assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert stages.idle


async def test_unfinished_words_are_held_back() -> None:
    stages = Dictated()
    written = session("one tw", end=False)
    task = asyncio.create_task(speak(stages, written))
    await asyncio.sleep(0.05)
    assert stages.told == [["one"]]
    written.write(TextPiece("o", flush=False, end=False))
    await asyncio.sleep(0.05)
    assert stages.told == [["one"]]
    written.write(TextPiece("", flush=False, end=True))
    assert heard(await task) == {0: "one two"}
    assert stages.told == [["one", " two", None]]


async def test_audio_comes_while_text_is_awaited() -> None:
    stages = Dictated()
    written = session("more than nine characters ", end=False)
    speaker = Synthesizer(stages, GRID, Admission(1))
    async with aclosing(speaker.speak({}, written)) as chunks:
        assert len((await asyncio.wait_for(anext(chunks), 5)).audio)
        written.write(TextPiece("end", flush=False, end=True))
        assert [chunk async for chunk in chunks][-1].final
    assert stages.idle


async def test_flushes_and_long_texts_begin_segments() -> None:
    assert heard(await speak(Dictated(), session("one two|", "|", "three"))) == {0: "one two", 1: "three"}
    assert heard(await speak(Dictated(segment=4), session("one two"))) == {0: "one ", 1: "two"}


async def test_segments_have_seeds_of_their_own_and_end_the_utterance_once() -> None:
    stages = Dictated()
    await speak(stages, session("one|", "two"))
    first, second = (int(inputs["seed"][0]) for inputs in stages.llm_inputs)
    assert first != second
    assert [end for _, _, _, end in stages.steps] == [False] * (len(stages.steps) - 1) + [True]
    flushed = Dictated()
    await speak(flushed, session("one|"))
    assert [end for _, _, _, end in flushed.steps] == [False] * (len(flushed.steps) - 1) + [True]
    assert flushed.idle


async def test_nothing_to_say_is_an_error() -> None:
    stages = Dictated()
    with pytest.raises(InvalidInput, match="text: holds nothing"):
        await speak(stages, session(" ", "\n"))
    assert stages.idle


@pytest.mark.parametrize("text", ["", "one", "enough for a chunk of audio "])
async def test_an_idle_session_is_closed_and_everything_freed(text: str) -> None:
    stages = Dictated()
    with pytest.raises(SessionIdle, match="nothing was written for 0.05 s"):
        await speak(stages, session(text, idle=0.05, end=False))
    assert stages.idle
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("point", ["llm", "add", "frontend", "token2wav 1.1"])
async def test_the_error_of_a_stage_surfaces_though_text_is_awaited(point: str) -> None:
    stages = Dictated()
    error = StageFailed("out of order")

    async def hook(reached: str) -> None:
        if reached == point and len(stages.requests) > 1:
            raise error

    stages.hook = hook
    with pytest.raises(StageFailed) as caught:
        await speak(stages, session("one two three four ", "five six seven eight ", end=False, idle=1))
    assert caught.value is error
    assert stages.idle
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_while_text_is_awaited_frees_everything() -> None:
    for text in ("", "one", "enough for a chunk of audio "):
        stages = Dictated()
        task = asyncio.create_task(speak(stages, session(text, end=False)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stages.idle
        assert asyncio.all_tasks() == {asyncio.current_task()}


def test_pieces_that_a_session_accepts() -> None:
    with pytest.raises(InvalidInput, match="text: has"):
        session((MAX_TEXT_CHARS + 1) * "x")
    with pytest.raises(InvalidInput, match=f"text: of one session has at most {MAX_SESSION_CHARS}"):
        session(*[MAX_TEXT_CHARS * "x"] * 17)
    with pytest.raises(InvalidInput, match="text: comes after the end"):
        session().write(TextPiece("more", flush=False, end=False))


def test_ids_of_sessions() -> None:
    sessions, first = TextSessions(1), TextPiece("", flush=False, end=False)
    opened = sessions.open("a", first)
    assert sessions.find("a") is opened
    with pytest.raises(InvalidInput, match="sequence_id: is the id of a session that is open"):
        sessions.open("a", first)
    with pytest.raises(InvalidInput, match="text"):
        sessions.open("b", TextPiece((MAX_TEXT_CHARS + 1) * "x", flush=False, end=False))
    sessions.close("a")
    sessions.open("c", first)
    sessions.close_failed("c")
    sessions.find("c").write(first)  # goes nowhere
    assert sessions.open("c", first) is sessions.find("c")
    for id in ("a", "b"):
        with pytest.raises(InvalidInput, match="sequence_id: names no open session"):
            sessions.find(id)


async def test_a_session_is_idle_when_nothing_is_written_or_heard() -> None:
    written = session(idle=0.3, end=False)
    reading = asyncio.create_task(written.read())
    for _ in range(5):
        await asyncio.sleep(0.1)
        written.touch()
    assert not reading.done()
    for blank in ("", " "):
        await asyncio.sleep(0.1)
        written.write(TextPiece(blank, flush=False, end=False))
        assert (await reading).text == blank
        reading = asyncio.create_task(written.read())
    with pytest.raises(SessionIdle):
        await asyncio.wait_for(reading, 0.2)
