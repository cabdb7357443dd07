"""One request over fake stages: order, offsets, errors, cancellation."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import numpy as np
import pytest
from fakes import GRID, FakeStages

from cosyserve.contracts import FRONTEND, TTS, Tensors
from cosyserve.errors import CosyServeError, InvalidInput, Overloaded, StageFailed, VoiceNotFound
from cosyserve.limits import EXPECTED_TOKENS_PER_TEXT_TOKEN, MAX_SECONDS_AHEAD
from cosyserve.pipeline.admission import Admission
from cosyserve.pipeline.synthesizer import Synthesizer
from cosyserve.pipeline.timeline import Chunk

SPT = GRID.samples_per_token
REQUEST: Tensors = {"text": np.array([b"hello"], np.object_), "seed": np.array([11])}


def synthesizer(stages: FakeStages, limit: int = 4) -> tuple[Synthesizer, Admission]:
    admission = Admission(limit)
    return Synthesizer(stages, GRID, admission), admission


async def consume(speaker: Synthesizer, request: Tensors = REQUEST) -> list[Chunk]:
    async with aclosing(speaker.speak(request)) as chunks:
        return [chunk async for chunk in chunks]


async def speak(stages: FakeStages, request: Tensors = REQUEST) -> list[Chunk]:
    return await consume(synthesizer(stages)[0], request)


def said(chunks: list[Chunk]) -> list[int]:
    """Tokens in the audio."""
    audio = np.concatenate([chunk.audio for chunk in chunks])
    heard = audio.reshape(-1, SPT)
    assert (heard == heard[:, :1]).all()
    return [int(token) for token in heard[:, 0]]


async def test_every_token_is_spoken_once_and_in_order() -> None:
    stages = FakeStages([60, 10, 130], prompt=93)
    chunks = await speak(stages)
    assert said(chunks) == [*range(60), *range(1000, 1010), *range(2000, 2130)]
    assert stages.idle


async def test_offsets_count_what_was_sent_before() -> None:
    chunks = await speak(FakeStages([60, 10]))
    sent = np.cumsum([0, *(len(chunk.audio) for chunk in chunks)]).tolist()
    assert [chunk.sample_offset for chunk in chunks] == sent[:-1]
    assert [(chunk.segment, chunk.token_offset) for chunk in chunks[:-1]] == [(0, 0), (0, 25), (0, 50), (1, 0)]
    assert [len(chunk.audio) for chunk in chunks] == [25 * SPT, 25 * SPT, 10 * SPT, 10 * SPT, 0]


async def test_token_ranges_join_and_add_up_to_the_segments() -> None:
    chunks = await speak(FakeStages([60, 10]))
    ranges = [(chunk.segment, chunk.token_offset, chunk.token_count) for chunk in chunks]
    assert ranges == [(0, 0, 25), (0, 25, 25), (0, 50, 10), (1, 0, 10), (1, 10, 0)]


@pytest.mark.parametrize(("speed", "rate"), [(2.0, 100), (0.5, 100), (1.0, 400), (0.8, 200)])
async def test_offsets_and_deadlines_count_the_audio_that_is_sent(speed: float, rate: int) -> None:
    """At another speed and rate a chunk has the same tokens and other samples, which determine its duration."""
    stages = FakeStages([60, 10])
    shape: Tensors = {"speed": np.array([speed], np.float32), "sample_rate": np.array([rate], np.int32)}
    chunks = await speak(stages, REQUEST | shape)
    opening = stages.steps[0][1]
    assert {name: opening[name].tolist() for name in shape} == {name: shape[name].tolist() for name in shape}
    assert [(chunk.token_offset, chunk.token_count) for chunk in chunks[:-1]] == [(0, 25), (25, 25), (50, 10), (0, 10)]
    sizes = [len(chunk.audio) for chunk in chunks]
    assert sizes == [round(tokens * SPT * rate / GRID.sample_rate / speed) for tokens in (25, 25, 10, 10, 0)]
    assert [chunk.sample_offset for chunk in chunks] == np.cumsum([0, *sizes[:-1]]).tolist()
    deadlines = [int(inputs["deadline"][0]) / 1e9 for _, inputs, _, _ in stages.steps]
    np.testing.assert_allclose(np.diff(deadlines[2:]), np.array(sizes[1:3]) / rate, rtol=1e-6)


async def test_only_the_last_chunk_is_final_and_it_has_no_audio() -> None:
    chunks = await speak(FakeStages([60, 10]))
    assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert (len(chunks[-1].audio), chunks[-1].segment) == (0, 1)
    assert all(len(chunk.audio) for chunk in chunks[:-1])


async def test_chunks_come_while_the_language_model_still_speaks() -> None:
    stages = FakeStages([200])
    hold = asyncio.Event()

    async def hook(point: str) -> None:
        if point == "llm 0.6":  # 30 tokens are out
            await hold.wait()

    stages.hook = hook
    async with aclosing(synthesizer(stages)[0].speak(REQUEST)) as chunks:
        first = await asyncio.wait_for(anext(chunks), 5)
        assert len(first.audio) == 25 * SPT
        hold.set()
        assert said([first, *[chunk async for chunk in chunks]]) == list(range(200))


async def test_segments_are_generated_ahead_of_the_audio() -> None:
    stages = FakeStages([30, 30, 30])
    hold = asyncio.Event()

    async def hook(point: str) -> None:
        if point == "token2wav 1.0":
            await hold.wait()

    stages.hook = hook
    task = asyncio.create_task(speak(stages))
    while "llm 2.6" not in stages.points:
        await asyncio.wait_for(asyncio.sleep(0), 5)
        assert not task.done()
    # Nor do they wait for the voice.
    assert [point for point in stages.points if point.startswith("token2wav")] == ["token2wav 1.0"]
    hold.set()
    assert said(await task) == [*range(30), *range(1000, 1030), *range(2000, 2030)]


async def test_a_segment_begins_only_when_little_waits_for_its_audio() -> None:
    """It does not wait for earlier audio either; GRID has 25 tokens per second."""
    stages = FakeStages([200] * 12)
    taken = 0
    waiting: list[int] = []

    async def hook(point: str) -> None:
        nonlocal taken
        kind, _, place = point.partition(" ")
        if kind == "llm" and place.endswith(".0"):
            waiting.append(200 * int(place.split(".")[0]) - taken)
        elif kind == "token2wav":
            taken = sum(len(inputs["speech_tokens"]) for _, inputs, _, _ in stages.steps)
            for _ in range(500):  # the language model is fast
                await asyncio.sleep(0)

    stages.hook = hook
    chunks = await asyncio.wait_for(speak(stages), 30)
    assert said(chunks) == [1000 * segment + token for segment in range(12) for token in range(200)]
    assert len(waiting) == 12
    assert 0 < max(waiting) <= MAX_SECONDS_AHEAD * 25
    assert min(waiting[2:]) > 0


async def test_cancelling_while_the_language_model_waits_frees_everything() -> None:
    stages = FakeStages([300] * 3)
    async with aclosing(synthesizer(stages)[0].speak(REQUEST)) as chunks:
        await anext(chunks)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not any(point.startswith("llm 1") for point in stages.points)
    assert stages.idle
    assert asyncio.all_tasks() == {asyncio.current_task()}


TIMED: Tensors = REQUEST | {"timestamps": np.array([True])}


@pytest.mark.parametrize("stream", [True, False])
async def test_every_word_begins_once_in_its_chunk(stream: bool) -> None:
    chunks = await speak(FakeStages([160, 90, 30]), TIMED | {"stream": np.array([stream])})
    words = [word for chunk in chunks for word in chunk.words]
    assert [word.text for word in words] == [w for s in range(3) for w in ("segment", str(s), "of", "many")]
    assert [word.start for word in words] == sorted(word.start for word in words)
    for chunk in chunks:
        begins, ends = (at / GRID.sample_rate for at in (chunk.sample_offset, chunk.sample_offset + len(chunk.audio)))
        assert all(begins <= word.start < ends for word in chunk.words)
        assert all(word.text != "segment" or chunk.token_offset == 0 for word in chunk.words)


async def test_words_come_only_when_asked_for() -> None:
    for request in (REQUEST, REQUEST | {"timestamps": np.array([False])}):
        assert not any(chunk.words for chunk in await speak(FakeStages([60]), request))


async def test_an_utterance_opens_with_its_voice_and_goes_on_without() -> None:
    stages = FakeStages([60, 60], prompt=10)
    await speak(stages)
    step = {"speech_tokens", "final", "seed", "deadline"}
    (_, opening, start, end), *steps = stages.steps
    voice = {"flow_prompt_tokens", "prompt_mel", "speaker_embedding"}
    assert set(opening) == step | voice | {"stream", "expected_tokens"}
    assert (start, end) == (True, False)
    assert len(opening["speech_tokens"]) == 0
    assert not opening["final"][0]
    for _, inputs, start, _ in steps:
        assert set(inputs) == step
        assert not start


async def test_one_sequence_speaks_all_segments_and_ends_with_the_very_last_piece() -> None:
    stages = FakeStages([60, 30, 60])
    await speak(stages)
    assert {sequence for sequence, _, _, _ in stages.steps} == {1}
    assert [bool(inputs["final"][0]) for _, inputs, _, _ in stages.steps] == [
        *(False, False, False, True),
        *(False, True),
        *(False, False, True),
    ]
    assert [end for _, _, _, end in stages.steps] == [False] * 8 + [True]


async def test_each_utterance_gets_a_sequence_of_its_own() -> None:
    stages = FakeStages([60, 30])
    speaker, _ = synthesizer(stages)
    results = await asyncio.gather(*(consume(speaker) for _ in range(3)))
    assert [said(chunks) for chunks in results] == [[*range(60), *range(1000, 1030)]] * 3
    assert sorted(sequence for sequence, _, start, _ in stages.steps if start) == [1, 2, 3]


async def test_a_refused_opening_surfaces_at_once() -> None:
    """It does not wait for the language model."""
    stages = FakeStages([60])
    speaker, admission = synthesizer(stages)
    refusal = Overloaded("the cache memory is in use")

    async def hook(point: str) -> None:
        if point == "token2wav 1.0":
            raise refusal
        if point == "llm 0.0":
            await asyncio.Event().wait()

    stages.hook = hook
    with pytest.raises(Overloaded) as caught:
        await asyncio.wait_for(anext(speaker.speak(REQUEST)), 5)
    assert caught.value is refusal
    assert stages.idle
    assert admission.active == 0


async def test_a_late_stream_precedes_others_by_at_most_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second chunk is 50 s late, as after a pause in a session; GRID has 100 samples per second."""
    now = [7.0]
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(now[0] * 1e9))
    stages = FakeStages([160])

    async def hook(point: str) -> None:
        if point.startswith("token2wav 1.") and len(stages.steps) == 3:
            now[0] += 50.0

    stages.hook = hook
    await speak(stages)
    deadlines = [int(inputs["deadline"][0]) / 1e9 for _, inputs, _, _ in stages.steps]
    np.testing.assert_allclose(deadlines, [7, 7, 8, 58, 60])


async def test_deadlines_are_when_a_listener_runs_out_of_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is at 7 s until first audio, at 9 s; GRID has 100 samples per second."""
    now = [7.0]
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(now[0] * 1e9))
    stages = FakeStages([160, 30])

    async def hook(point: str) -> None:
        if point.startswith("token2wav 1."):
            now[0] += 1.0

    stages.hook = hook
    chunks = await speak(stages)
    deadlines = [int(inputs["deadline"][0]) / 1e9 for _, inputs, _, _ in stages.steps]
    heard = np.cumsum([len(chunk.audio) for chunk in chunks]) / GRID.sample_rate
    assert deadlines[:2] == [7.0, 7.0]  # before first audio: first come, first served
    np.testing.assert_allclose(deadlines[2:], 9.0 + heard[: len(deadlines) - 2])
    assert all(inputs["deadline"].dtype == np.int64 for _, inputs, _, _ in stages.steps)


async def test_the_language_model_gets_each_segment_s_text_and_the_prompt() -> None:
    stages = FakeStages([5, 5, 5])
    await speak(stages)
    assert [inputs["text_tokens"].tolist() for inputs in stages.llm_inputs] == [[0, 1], [2, 3, 4], [5, 6, 7, 8]]
    for inputs in stages.llm_inputs:
        assert set(inputs) == {
            "text_tokens",
            "seed",
            "prompt_text_tokens",
            "llm_prompt_tokens",
            "llm_speaker_embedding",
        }
        assert inputs["prompt_text_tokens"].tolist() == [7, 8]
        assert inputs["llm_prompt_tokens"].tolist() == [9]


async def test_the_frontend_gets_what_it_knows_and_no_more() -> None:
    request: Tensors = REQUEST | {"voice": np.array([b"v"], np.object_), "stream": np.array([True])}
    stages = FakeStages([5])
    await speak(stages, request)
    assert set(stages.requests[0]) == {"text", "voice"} <= {t.name for t in FRONTEND.inputs}
    assert set(request) <= {t.name for t in TTS.inputs}


async def test_without_streaming_a_segment_is_one_piece() -> None:
    stages = FakeStages([260, 60])
    chunks = await speak(stages, REQUEST | {"stream": np.array([False])})
    assert [len(chunk.audio) for chunk in chunks] == [260 * SPT, 60 * SPT, 0]
    assert [(start, end) for _, _, start, end in stages.steps] == [(True, False), (False, False), (False, True)]
    assert stages.steps[0][1]["stream"].tolist() == [False]


async def test_streaming_is_the_default() -> None:
    stages = FakeStages([60])
    await speak(stages)
    assert stages.steps[0][1]["stream"].tolist() == [True]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_source_is_spoken_in_chunks_without_the_language_model(stream: bool) -> None:
    stages = FakeStages([60, 130], prompt=93, source=True)
    chunks = await speak(stages, TIMED | {"stream": np.array([stream])})
    assert said(chunks) == [*range(60), *range(1000, 1130)]
    assert not any(chunk.words for chunk in chunks)  # it has no text
    assert len(chunks) == (8 if stream else 3)
    assert chunks[-1].segment == 1
    assert stages.llm_inputs == []
    assert stages.idle


def seeds(stages: FakeStages) -> list[int]:
    ends = [inputs["seed"] for _, inputs, _, _ in stages.steps if inputs["final"][0]]
    given = [inputs["seed"] for inputs in stages.llm_inputs]
    assert all(seed.dtype == np.int64 and seed.shape == (1,) for seed in given)
    np.testing.assert_array_equal(ends, given)
    assert stages.steps[0][1]["seed"] == given[0]
    return [int(seed[0]) for seed in given]


async def seeds_of(seed: int | None) -> list[int]:
    stages = FakeStages([60, 10])
    request = {name: value for name, value in REQUEST.items() if name != "seed"}
    await speak(stages, request if seed is None else request | {"seed": np.array([seed])})
    return seeds(stages)


@pytest.mark.parametrize("seed", [0, 11, -1, 2**63 - 1, -(2**63)])
async def test_equal_seeds_give_equal_inputs(seed: int) -> None:
    first = await seeds_of(seed)
    assert first == await seeds_of(seed)
    assert len(set(first)) == 2  # each segment has its own
    assert all(value >= 0 for value in first)


async def test_other_seeds_and_no_seed_give_other_inputs() -> None:
    found = [await seeds_of(seed) for seed in (1, 2, -1, None, None)]
    assert len({tuple(values) for values in found}) == 5


@pytest.mark.parametrize(
    "point", ["frontend", "llm 0.0", "llm 0.4", "llm 1.2", "token2wav 1.0", "token2wav 1.1", "token2wav 1.4"]
)
@pytest.mark.parametrize("error", [InvalidInput("text", "is too odd"), StageFailed("out of order")])
async def test_the_error_of_a_stage_surfaces_and_ends_the_others(point: str, error: CosyServeError) -> None:
    stages = FakeStages([60, 60])
    speaker, admission = synthesizer(stages)

    async def hook(reached: str) -> None:
        if reached == point:
            raise error

    stages.hook = hook
    with pytest.raises(type(error)) as caught:
        await asyncio.wait_for(consume(speaker), 5)
    assert caught.value is error
    assert point in stages.points
    assert stages.idle
    assert admission.active == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_unknown_voice_starts_no_stage() -> None:
    stages = FakeStages([60])

    async def hook(point: str) -> None:
        raise VoiceNotFound("no voice 'x'")

    stages.hook = hook
    with pytest.raises(VoiceNotFound):
        await speak(stages)
    assert stages.points == ["frontend"]
    assert stages.llm_inputs == []


async def points_of_a_run() -> list[str]:
    stages = FakeStages([60, 40], prompt=10)
    await speak(stages)
    return stages.points


async def test_cancelling_at_any_point_frees_everything() -> None:
    points = await points_of_a_run()
    assert len(points) > 20
    for stuck in range(len(points)):
        stages = FakeStages([60, 40], prompt=10)
        speaker, admission = synthesizer(stages)
        reached = asyncio.Event()

        async def hook(
            point: str, stages: FakeStages = stages, reached: asyncio.Event = reached, stuck: int = stuck
        ) -> None:
            if len(stages.points) == stuck + 1:
                reached.set()
                await asyncio.Event().wait()

        stages.hook = hook
        task = asyncio.create_task(consume(speaker))
        await asyncio.wait_for(reached.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)
        assert stages.idle, points[stuck]
        assert admission.active == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_between_chunks_frees_everything() -> None:
    whole = await speak(FakeStages([60, 40]))
    for taken in range(1, len(whole) + 1):
        stages = FakeStages([60, 40])
        speaker, admission = synthesizer(stages)
        async with aclosing(speaker.speak(REQUEST)) as chunks:
            for _ in range(taken):
                await anext(chunks)
            assert admission.active == 1
        assert stages.idle
        assert admission.active == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_cancelled_sequence_gets_an_end_that_is_not_final() -> None:
    stages = FakeStages([60])
    async with aclosing(synthesizer(stages)[0].speak(REQUEST)) as chunks:
        await anext(chunks)
    sequence, inputs, start, end = stages.steps[-1]
    assert (sequence, start, end) == (1, False, True)
    assert inputs["speech_tokens"].tolist() == []
    assert inputs["final"].tolist() == [False]


async def test_beyond_the_limit_a_request_is_refused_at_once() -> None:
    stages = FakeStages([60])
    speaker, admission = synthesizer(stages, limit=1)
    async with aclosing(speaker.speak(REQUEST)) as first:
        await anext(first)
        before = list(stages.points)
        with pytest.raises(Overloaded):
            await anext(speaker.speak(REQUEST))
        assert stages.points == before
        assert admission.active == 1
    assert said(await consume(speaker)) == list(range(60))


async def test_the_flow_is_told_how_long_the_longest_segment_may_become() -> None:
    stages = FakeStages([60, 10, 130])  # of 2, 3 and 4 text tokens
    await speak(stages)
    opening = stages.steps[0][1]
    assert opening["expected_tokens"].tolist() == [4 * EXPECTED_TOKENS_PER_TEXT_TOKEN]
    assert all("expected_tokens" not in inputs for _, inputs, _, _ in stages.steps[1:])


async def test_speech_that_is_given_is_as_long_as_it_is() -> None:
    stages = FakeStages([60, 130], source=True)
    await speak(stages)
    assert stages.steps[0][1]["expected_tokens"].tolist() == [130]
