"""Flow sessions: voices that are computed once and shared, and the bound on memory."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import turn
from numpy.typing import NDArray

from cosyserve.contracts import Tensors
from cosyserve.errors import Cancelled, InvalidInput, Overloaded
from cosyserve.flow import sessions as flow_sessions
from cosyserve.flow.networks import FlowNetworks
from cosyserve.flow.sessions import FlowSession, FlowSessions
from cosyserve.flow.stream import FlowStream, FlowVoice
from cosyserve.jobs import Rounds, Task, alone

Float = NDArray[np.float32]
Ints = NDArray[np.int32]
Vectors = dict[str, Float]
SPEECH = 138
PROMPT = 93
SETTLED = 150
"""Frames of the prompt before its last settled boundary."""
SHORT = 60
"""Frames of a short voice's prompt."""
AMPLE = 2**40


@pytest.fixture(scope="module")
def tokens(flow_vectors: Vectors) -> Ints:
    recorded: Ints = flow_vectors["token"][0].astype(np.int32)
    return recorded


def step(tokens: Ints, *, final: bool = True) -> Tensors:
    return {"speech_tokens": tokens, "final": np.array([final])}


def opening(voice: FlowVoice, tokens: Ints, *, final: bool = True) -> Tensors:
    prompt: Tensors = {"flow_prompt_tokens": voice.tokens, "prompt_mel": voice.mel}
    return {**step(tokens, final=final), **prompt, "speaker_embedding": voice.embedding}


def short_voice(voice: FlowVoice, *, mel: float = 0.0, embedding: float = 0.0) -> FlowVoice:
    """The first 30 tokens of a voice, with another mel or speaker vector."""
    return FlowVoice(voice.tokens[:30], voice.mel[:60] + np.float32(mel), voice.embedding + np.float32(embedding))


def fresh(networks: FlowNetworks, voice: FlowVoice, tokens: Ints) -> Float:
    """What a stream that shares nothing says."""
    state = alone(FlowStream.prime(networks, voice)).fork()
    return FlowStream(networks, voice, state=state).step(tokens, final=True)


class Counter:
    """Mel frames that were computed."""

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, frames: int) -> None:
        self.frames += frames

    def take(self) -> int:
        taken, self.frames = self.frames, 0
        return taken


@pytest.fixture
def counter() -> Counter:
    return Counter()


def go_on(session: FlowSession, inputs: Tensors) -> Float:
    out = alone(session.steps(inputs))
    assert out["mel_final"].tolist() == inputs["final"].tolist()
    return out["mel"].astype(np.float32)


def speak(sessions: FlowSessions, inputs: Tensors) -> Float:
    """A session of one step."""
    session = sessions.open(inputs)
    mel = go_on(session, inputs)
    session.close()
    return mel


def begin(sessions: FlowSessions, voice: FlowVoice) -> FlowSession:
    """A session that has its voice and no token yet."""
    inputs = opening(voice, voice.tokens[:0], final=False)
    session = sessions.open(inputs)
    go_on(session, inputs)
    return session


def test_a_known_voice_speaks_the_same_without_its_prompt(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    sessions = FlowSessions(flow_networks, AMPLE, counter)
    expected = fresh(flow_networks, flow_voice, tokens)
    for computed in (2 * (PROMPT + SPEECH), 2 * (PROMPT + SPEECH) - SETTLED, 2 * (PROMPT + SPEECH) - SETTLED):
        np.testing.assert_array_equal(speak(sessions, opening(flow_voice, tokens)), expected)
        assert counter.take() == computed


def test_segments_of_one_session_sound_as_those_of_fresh_sessions(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    sessions = FlowSessions(flow_networks, AMPLE, counter)
    session = begin(sessions, flow_voice)
    assert counter.take() == SETTLED
    for segment in (tokens[:70], tokens[70:], tokens[:5]):
        head = go_on(session, step(segment[:40], final=False))
        tail = go_on(session, step(segment[40:]))
        expected = fresh(flow_networks, flow_voice, segment)
        np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), expected)
        assert counter.take() == 2 * (PROMPT + len(segment)) - SETTLED
        assert session.nbytes == 0


def test_frames_are_counted_as_they_are_computed(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    session = begin(FlowSessions(flow_networks, AMPLE, counter), flow_voice)
    go_on(session, step(tokens[:40], final=False))
    assert counter.take() == SETTLED + 100
    go_on(session, step(tokens[40:]))
    assert counter.take() == 2 * (PROMPT + SPEECH) - SETTLED - 100


@pytest.mark.parametrize("other", [{"mel": 0.5}, {"embedding": 0.5}])
def test_voices_with_equal_tokens_never_share(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter, other: dict[str, float]
) -> None:
    first, second = short_voice(flow_voice), short_voice(flow_voice, **other)
    sessions = FlowSessions(flow_networks, AMPLE, counter)
    heard = [speak(sessions, opening(voice, tokens[:30])) for voice in (first, second, first)]
    expected = [fresh(flow_networks, voice, tokens[:30]) for voice in (first, second)]
    np.testing.assert_array_equal(heard[0], expected[0])
    np.testing.assert_array_equal(heard[1], expected[1])
    np.testing.assert_array_equal(heard[2], expected[0])
    assert np.abs(heard[0] - heard[1]).max() > 1e-3


def test_voices_whose_bytes_join_to_the_same_never_share(flow_voice: FlowVoice) -> None:
    """A prompt that calls the other's first mel frame tokens."""
    frame = np.ascontiguousarray(flow_voice.mel[0]).view(np.int32)
    other = FlowVoice(np.concatenate([flow_voice.tokens, frame]), flow_voice.mel[1:], flow_voice.embedding)
    assert flow_sessions._digest(other) != flow_sessions._digest(flow_voice)


@pytest.mark.parametrize("first_leaves", [False, True])
def test_sessions_of_a_new_voice_compute_its_prompt_once(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter, first_leaves: bool
) -> None:
    """They wait for the one that computes it; if that one leaves, another takes over."""
    sessions, rounds = FlowSessions(flow_networks, AMPLE, counter), Rounds(8)
    inputs = opening(flow_voice, tokens[:40])
    heard: list[Tensors] = []
    errors: list[Exception] = []
    opened = [sessions.open(inputs) for _ in range(3)]
    tasks = [Task(session.steps(inputs), 0, heard.append, errors.append) for session in opened]
    for task in tasks:
        rounds.add(task)
    turn(rounds)
    assert not counter.frames
    if first_leaves:
        rounds.drop(tasks[0], Cancelled("gone"))
        opened[0].close()
    while turn(rounds):
        pass
    stayed = 3 - first_leaves
    assert len(heard) == stayed
    assert len(errors) == first_leaves
    for out in heard:
        np.testing.assert_array_equal(out["mel"], fresh(flow_networks, flow_voice, tokens[:40]))
    assert counter.take() == SETTLED + stayed * (2 * (PROMPT + 40) - SETTLED)


def test_quality_mode_uses_full_attention(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, flow_vectors: Vectors, counter: Counter
) -> None:
    sessions = FlowSessions(flow_networks, AMPLE, counter)
    begin(sessions, flow_voice).close()
    counter.take()
    inputs = opening(flow_voice, tokens[:0], final=False) | {"stream": np.array([False])}
    session = sessions.open(inputs)
    assert go_on(session, inputs).shape == (80, 0)
    assert go_on(session, step(tokens[:100], final=False)).shape == (80, 0)
    mel = go_on(session, step(tokens[100:]))
    np.testing.assert_allclose(mel, flow_vectors["full_offline_mel"][0], rtol=0, atol=1e-4)
    assert counter.take() == 2 * (PROMPT + SPEECH)
    np.testing.assert_array_equal(go_on(session, step(tokens)), mel)  # the next segment too


def test_a_session_needs_a_speaker(flow_networks: FlowNetworks, tokens: Ints, counter: Counter) -> None:
    with pytest.raises(InvalidInput, match=r"^speaker_embedding: "):
        FlowSessions(flow_networks, AMPLE, counter).open(step(tokens))


def test_a_session_without_prompt_speaks(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    sessions = FlowSessions(flow_networks, AMPLE, counter)
    assert speak(sessions, {**step(tokens[:30]), "speaker_embedding": flow_voice.embedding}).shape == (80, 60)


# --- memory ---


def sessions_with_room(networks: FlowNetworks, counter: Counter, *, streams: int, voices: int) -> FlowSessions:
    """Room for streams of the reserved length and for short voices."""
    frames = streams * flow_sessions.RESERVED_FRAMES + voices * SHORT
    return FlowSessions(networks, frames * networks.frame_bytes, counter)


def is_known(sessions: FlowSessions, voice: FlowVoice, counter: Counter) -> bool:
    """Whether a new session of the voice starts without touching its prompt."""
    counter.take()
    begin(sessions, voice).close()
    return counter.take() == 0


def test_everything_is_freed_at_the_end_but_the_voices(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    sessions = FlowSessions(flow_networks, AMPLE, counter)
    voices = [short_voice(flow_voice, mel=i) for i in range(2)]
    assert sessions.nbytes == 0
    opened = [begin(sessions, voice) for voice in voices]
    kept = 2 * SHORT * flow_networks.frame_bytes
    for session in opened:
        go_on(session, step(tokens[:60], final=False))
    assert sessions.nbytes == kept + sum(session.nbytes for session in opened)
    assert all(session.nbytes >= 100 * flow_networks.frame_bytes for session in opened)
    go_on(opened[0], step(tokens[60:90]))  # a segment's end frees its state, an early close too
    assert sessions.nbytes == kept + opened[1].nbytes
    for session in opened:
        session.close()
    assert sessions.nbytes == kept


def test_a_full_server_refuses_until_a_stream_ends(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter
) -> None:
    voice = short_voice(flow_voice)
    sessions = sessions_with_room(flow_networks, counter, streams=2, voices=1)
    opened = [begin(sessions, voice), begin(sessions, voice)]
    before = sessions.nbytes
    for refused in (voice, short_voice(flow_voice, mel=1)):
        with pytest.raises(Overloaded, match="memory"):
            begin(sessions, refused)
    assert sessions.nbytes == before
    opened[0].close()
    begin(sessions, voice)
    with pytest.raises(Overloaded):
        begin(sessions, voice)


def test_a_new_voice_needs_room_for_its_prompt(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter
) -> None:
    sessions = sessions_with_room(flow_networks, counter, streams=2, voices=1)
    begin(sessions, short_voice(flow_voice))
    with pytest.raises(Overloaded):
        begin(sessions, short_voice(flow_voice, mel=1))
    begin(sessions, short_voice(flow_voice))


def test_idle_voices_make_way_the_least_recently_used_first(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter
) -> None:
    a, b, c = (short_voice(flow_voice, mel=i) for i in range(3))
    sessions = sessions_with_room(flow_networks, counter, streams=1, voices=2)
    assert not is_known(sessions, a, counter)
    assert not is_known(sessions, b, counter)
    assert is_known(sessions, a, counter)
    assert not is_known(sessions, c, counter)  # b goes: a was used since
    assert is_known(sessions, a, counter)
    assert not is_known(sessions, b, counter)
    assert sessions.nbytes == 2 * SHORT * flow_networks.frame_bytes


def test_a_voice_in_use_stays(flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter) -> None:
    a, b, c = (short_voice(flow_voice, mel=i) for i in range(3))
    sessions = sessions_with_room(flow_networks, counter, streams=2, voices=2)
    user = begin(sessions, a)
    assert not is_known(sessions, b, counter)
    assert not is_known(sessions, c, counter)  # b goes, though a was used before it
    assert is_known(sessions, a, counter)
    user.close()
    assert not is_known(sessions, b, counter)


def test_a_refused_stream_drives_no_voice_out(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter
) -> None:
    a, b = (short_voice(flow_voice, mel=i) for i in range(2))
    sessions = sessions_with_room(flow_networks, counter, streams=1, voices=2)
    assert not is_known(sessions, b, counter)
    user = begin(sessions, a)
    with pytest.raises(Overloaded):
        begin(sessions, a)
    user.close()
    assert is_known(sessions, b, counter)


def test_the_number_of_voices_is_bounded_too(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_sessions, "CACHED_VOICES", 2)
    a, b, c = (short_voice(flow_voice, mel=i) for i in range(3))
    sessions = FlowSessions(flow_networks, AMPLE, counter)
    assert [is_known(sessions, voice, counter) for voice in (a, b, a, c)] == [False, False, True, False]
    assert [is_known(sessions, voice, counter) for voice in (a, c, b)] == [True, True, False]


@pytest.fixture
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_sessions, "RESERVED_FRAMES", 100)


@pytest.mark.usefixtures("small_reserve")
def test_a_stream_may_grow_beyond_its_reserve_while_there_is_room(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    voice, idle = short_voice(flow_voice), short_voice(flow_voice, mel=1)
    sessions = sessions_with_room(flow_networks, counter, streams=3, voices=2)
    begin(sessions, idle).close()
    session = begin(sessions, voice)
    go_on(session, step(tokens[:60], final=False))
    assert session.nbytes > flow_sessions.RESERVED_FRAMES * flow_networks.frame_bytes
    assert is_known(sessions, idle, counter)
    go_on(session, step(tokens[60:], final=False))
    assert sessions.nbytes <= 420 * flow_networks.frame_bytes
    with pytest.raises(Overloaded):
        begin(sessions, idle)


@pytest.mark.usefixtures("small_reserve")
def test_a_stream_that_outgrows_its_reserve_on_a_full_server_fails_alone(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    voice = short_voice(flow_voice)
    sessions = sessions_with_room(flow_networks, counter, streams=2, voices=1)
    long, other = begin(sessions, voice), begin(sessions, voice)
    go_on(long, step(tokens[:20], final=False))
    with pytest.raises(Overloaded, match="memory"):
        go_on(long, step(tokens[20:100], final=False))
    long.close()
    np.testing.assert_array_equal(go_on(other, step(tokens[:40])), fresh(flow_networks, voice, tokens[:40]))
    other.close()
    assert sessions.nbytes == SHORT * flow_networks.frame_bytes
