"""Flow streams: every frame once, however the tokens arrive; and the states of recent voices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cosyserve.contracts import Tensors
from cosyserve.errors import InvalidInput
from cosyserve.flow.sessions import FlowSession, FlowSessions
from cosyserve.flow.solver import solve, time_grid
from cosyserve.flow.stream import FlowNetworks, FlowState, FlowStream, FlowVoice
from cosyserve.runtimes.graph import Arrays, Outputs

Float = NDArray[np.float32]
Ints = NDArray[np.int32]
Vectors = dict[str, Float]
SPEECH = 138
PROMPT = 93
cuts = st.lists(st.integers(0, SPEECH), max_size=9)


@pytest.fixture(scope="module")
def tokens(flow_vectors: Vectors) -> Ints:
    recorded: Ints = flow_vectors["token"][0].astype(np.int32)
    return recorded


@pytest.fixture(scope="module")
def after_prompt(flow_networks: FlowNetworks, flow_voice: FlowVoice) -> FlowState:
    return FlowStream(flow_networks, flow_voice).snapshot()


@pytest.fixture(scope="module")
def whole(flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints) -> Float:
    """The streamed mel of one call."""
    return FlowStream(flow_networks, flow_voice).step(tokens, final=True)


def run(stream: FlowStream, tokens: Ints, at: Sequence[int] = ()) -> Float:
    pieces = np.split(tokens, sorted(at))
    mels = [stream.step(piece, final=False) for piece in pieces[:-1]]
    return np.concatenate([*mels, stream.step(pieces[-1], final=True)], axis=1)


def test_one_call_gives_the_recorded_streaming_mel(whole: Float, flow_vectors: Vectors) -> None:
    np.testing.assert_allclose(whole, flow_vectors["full_stream_mel"][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("full", [False, True])
def test_full_attention_gives_the_recorded_offline_mel(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, flow_vectors: Vectors, full: bool
) -> None:
    mel = run(FlowStream(flow_networks, flow_voice, full=full), tokens, at=[40, 41])
    error = float(np.abs(mel - flow_vectors["full_offline_mel"][0]).max())
    assert (error <= 1e-4) is full


def test_full_attention_sends_nothing_before_the_last_token(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints
) -> None:
    stream = FlowStream(flow_networks, flow_voice, full=True)
    assert stream.step(tokens[:100], final=False).shape == (80, 0)
    assert stream.frames == 0
    assert stream.step(tokens[100:], final=True).shape == (80, 2 * SPEECH)


@settings(max_examples=12, deadline=None)
@given(at=cuts)
@example(at=list(range(1, SPEECH)))
@example(at=[0, SPEECH])
@example(at=[32, 35, 57, 60])
def test_any_split_gives_the_same_bits(
    flow_networks: FlowNetworks,
    flow_voice: FlowVoice,
    after_prompt: FlowState,
    tokens: Ints,
    whole: Float,
    at: list[int],
) -> None:
    stream = FlowStream(flow_networks, flow_voice, state=after_prompt)
    np.testing.assert_array_equal(run(stream, tokens, at), whole)
    assert stream.frames == 2 * (PROMPT + SPEECH)


@pytest.mark.parametrize(("case", "given_tokens"), [("chunk0", 35), ("chunk1", 85)])
def test_frames_come_as_soon_as_they_are_settled(
    flow_networks: FlowNetworks,
    flow_voice: FlowVoice,
    tokens: Ints,
    flow_vectors: Vectors,
    case: str,
    given_tokens: int,
) -> None:
    stream = FlowStream(flow_networks, flow_voice)
    mel = stream.step(tokens[:given_tokens], final=False)
    np.testing.assert_allclose(mel, flow_vectors[f"{case}_mel"][0], rtol=0, atol=1e-4)


def test_a_chunk_waits_for_its_look_ahead(flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints) -> None:
    stream = FlowStream(flow_networks, flow_voice)
    # 93 prompt tokens: the next boundary lies 7 tokens on, and 3 more must be known.
    assert stream.step(tokens[:9], final=False).shape[1] == 0
    assert stream.step(tokens[9:10], final=False).shape[1] == 2 * 7


@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 10])
def test_short_speech_is_spoken_whole(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, after_prompt: FlowState, tokens: Ints, length: int
) -> None:
    stream = FlowStream(flow_networks, flow_voice, state=after_prompt)
    assert stream.step(tokens[:length], final=True).shape == (80, 2 * length)
    assert stream.frames == 2 * (PROMPT + length)


@pytest.mark.parametrize("length", [31, 32, 33, 34, 35])
def test_an_end_within_the_look_ahead_does_not_widen_a_chunk(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, after_prompt: FlowState, tokens: Ints, length: int
) -> None:
    """The prompt leaves 18 tokens waiting, so a boundary lies after 7 and 32 tokens of speech."""
    chunks: list[int] = []

    def encoder(inputs: Arrays) -> Outputs:
        chunks.append(np.shape(inputs["tokens"])[1])
        return flow_networks.encoder(inputs)

    stream = FlowStream(replace(flow_networks, encoder=encoder), flow_voice, state=after_prompt)
    assert stream.step(tokens[:length], final=True).shape == (80, 2 * length)
    assert chunks == [25, min(25, length - 7)] + [length - 32] * (length > 32)


def test_no_prompt_works_at_any_split(flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints) -> None:
    bare = FlowVoice(np.zeros(0, np.int32), np.zeros((0, 80), np.float32), flow_voice.embedding)
    once = run(FlowStream(flow_networks, bare), tokens[:60])
    assert once.shape == (80, 120)
    np.testing.assert_array_equal(run(FlowStream(flow_networks, bare), tokens[:60], at=[27, 28, 53]), once)


@settings(max_examples=4, deadline=None)
@given(at=st.integers(0, SPEECH))
@example(at=60)
def test_a_snapshot_goes_on_alike_twice(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, after_prompt: FlowState, tokens: Ints, whole: Float, at: int
) -> None:
    stream = FlowStream(flow_networks, flow_voice, state=after_prompt)
    head = stream.step(tokens[:at], final=False)
    saved = stream.snapshot()
    for _ in range(2):
        tail = stream.step(tokens[at:], final=True)
        np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), whole)
        stream.restore(saved)


def test_two_streams_of_one_state_do_not_touch_each_other(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, after_prompt: FlowState, tokens: Ints, whole: Float
) -> None:
    one, other = (FlowStream(flow_networks, flow_voice, state=after_prompt) for _ in range(2))
    head = one.step(tokens[:70], final=False)
    run(other, tokens[::-1])
    tail = one.step(tokens[70:], final=True)
    np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), whole)


def test_a_segment_longer_than_the_noise_is_refused(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, after_prompt: FlowState, tokens: Ints
) -> None:
    def stream(frames: int) -> FlowStream:
        short = replace(flow_networks, noise=flow_networks.noise[:, :frames])
        return FlowStream(short, flow_voice, state=after_prompt)

    needed = 2 * (PROMPT + 40)
    assert stream(needed).step(tokens[:40], final=True).shape == (80, 80)
    with pytest.raises(InvalidInput, match=f"^text: .* exceed {needed - 1} mel frames"):
        stream(needed - 1).step(tokens[:40], final=True)


def test_time_grid_is_the_recorded_one(flow_vectors: Vectors) -> None:
    np.testing.assert_allclose([t for t, _ in time_grid(10)], flow_vectors["t_steps"], rtol=0, atol=1e-6)
    assert sum(dt for _, dt in time_grid(10)) == pytest.approx(1, abs=1e-6)


def test_solver_integrates_a_constant_velocity_exactly_to_time_one() -> None:
    noise = np.array([[[1.0, -2.0]]], np.float32)
    steps: list[int] = []

    def velocity(step: int, x: Float, t: np.float32) -> Float:
        steps.append(step)
        return np.full_like(x, 3)

    np.testing.assert_allclose(solve(velocity, noise, 10), noise + 3, atol=1e-5)
    assert steps == list(range(10))


# --- sessions and the voice cache ---


def opening(voice: FlowVoice, tokens: Ints, *, final: bool = True) -> Tensors:
    return {
        "speech_tokens": tokens,
        "final": np.array([final]),
        "flow_prompt_tokens": voice.tokens,
        "prompt_mel": voice.mel,
        "speaker_embedding": voice.embedding,
    }


def short_voice(voice: FlowVoice, *, mel: float = 0.0, embedding: float = 0.0) -> FlowVoice:
    """The first 30 tokens of a voice, with another mel or speaker vector."""
    return FlowVoice(voice.tokens[:30], voice.mel[:60] + np.float32(mel), voice.embedding + np.float32(embedding))


class Counter:
    """Mel frames that a step computed."""

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, frames: int) -> None:
        self.frames += frames

    def take(self) -> int:
        taken, self.frames = self.frames, 0
        return taken


def speak(sessions: FlowSessions, inputs: Tensors) -> Float:
    session: FlowSession = sessions.open(inputs)
    out = session.step(inputs)
    assert out["mel_final"].tolist() == inputs["final"].tolist()
    return out["mel"].astype(np.float32)


def test_a_known_voice_speaks_the_same_without_its_prompt(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, whole: Float
) -> None:
    counter = Counter()
    sessions = FlowSessions(flow_networks, 2**30, counter)
    for computed in (2 * (PROMPT + SPEECH), 2 * (PROMPT + SPEECH) - 150, 2 * (PROMPT + SPEECH) - 150):
        np.testing.assert_array_equal(speak(sessions, opening(flow_voice, tokens)), whole)
        assert counter.take() == computed  # 150 prompt frames lie before the last settled boundary


@pytest.mark.parametrize("other", [{"mel": 0.5}, {"embedding": 0.5}])
def test_voices_with_equal_tokens_never_share(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, other: dict[str, float]
) -> None:
    first, second = short_voice(flow_voice), short_voice(flow_voice, **other)
    sessions = FlowSessions(flow_networks, 2**30, Counter())
    heard = [speak(sessions, opening(voice, tokens[:30])) for voice in (first, second, first)]
    fresh = [run(FlowStream(flow_networks, voice), tokens[:30]) for voice in (first, second)]
    np.testing.assert_array_equal(heard[0], fresh[0])
    np.testing.assert_array_equal(heard[1], fresh[1])
    np.testing.assert_array_equal(heard[2], fresh[0])
    assert np.abs(heard[0] - heard[1]).max() > 1e-3


def test_the_least_recently_used_voice_goes_when_the_bytes_are_spent(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints
) -> None:
    counter = Counter()
    a, b, c = (short_voice(flow_voice, mel=i) for i in range(3))
    room = 2 * FlowStream(flow_networks, a).snapshot().nbytes
    sessions = FlowSessions(flow_networks, room, counter)

    def touches_prompt(voice: FlowVoice) -> bool:
        speak(sessions, opening(voice, tokens[:0], final=False))
        return counter.take() > 0

    assert touches_prompt(a)
    assert touches_prompt(b)
    assert not touches_prompt(a)
    assert touches_prompt(c)  # b is dropped: a was used since
    assert not touches_prompt(a)
    assert touches_prompt(b)


def test_a_voice_larger_than_the_cache_is_still_spoken(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints
) -> None:
    voice = short_voice(flow_voice)
    sessions = FlowSessions(flow_networks, 0, Counter())
    expected = run(FlowStream(flow_networks, voice), tokens[:30])
    for _ in range(2):
        np.testing.assert_array_equal(speak(sessions, opening(voice, tokens[:30])), expected)


def test_quality_mode_uses_full_attention(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, flow_vectors: Vectors
) -> None:
    counter = Counter()
    sessions = FlowSessions(flow_networks, 2**30, counter)
    speak(sessions, opening(flow_voice, tokens[:0], final=False))
    assert counter.take() == 150
    mel = speak(sessions, opening(flow_voice, tokens) | {"stream": np.array([False])})
    np.testing.assert_allclose(mel, flow_vectors["full_offline_mel"][0], rtol=0, atol=1e-4)
    assert counter.take() == 2 * (PROMPT + SPEECH)


def test_a_session_needs_a_speaker(flow_networks: FlowNetworks, tokens: Ints) -> None:
    sessions = FlowSessions(flow_networks, 2**30, Counter())
    with pytest.raises(InvalidInput, match=r"^speaker_embedding: "):
        sessions.open({"speech_tokens": tokens, "final": np.array([True])})


def test_a_session_without_prompt_speaks(flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints) -> None:
    sessions = FlowSessions(flow_networks, 2**30, Counter())
    inputs: Tensors = {
        "speech_tokens": tokens[:30],
        "final": np.array([True]),
        "speaker_embedding": flow_voice.embedding,
    }
    assert speak(sessions, inputs).shape == (80, 60)
