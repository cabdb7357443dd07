"""Flow factory: voices are computed once and shared, and memory is limited."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import turn
from numpy.typing import NDArray

from cosyserve.contracts import Tensors
from cosyserve.errors import Cancelled, InvalidInput, NotFinite, Overloaded
from cosyserve.flow import sequences as flow_sequences
from cosyserve.flow.networks import FlowNetworks, SolveJob
from cosyserve.flow.sequences import FlowFactory, FlowSequence
from cosyserve.flow.stream import FlowStream, FlowVoice
from cosyserve.scheduler import Scheduler, Task, run_alone

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
    """Mel of a stream that shares nothing."""
    state = run_alone(FlowStream.prime(networks, voice)).fork()
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


def go_on(sequence: FlowSequence, inputs: Tensors) -> Float:
    out = run_alone(sequence.begin_step(inputs))
    assert out["mel_final"].tolist() == inputs["final"].tolist()
    return out["mel"].astype(np.float32)


def speak(factory: FlowFactory, inputs: Tensors) -> Float:
    """A sequence of one step."""
    sequence = factory.open(inputs)
    mel = go_on(sequence, inputs)
    sequence.release()
    return mel


def begin(factory: FlowFactory, voice: FlowVoice) -> FlowSequence:
    """A sequence that has its voice and no token yet."""
    inputs = opening(voice, voice.tokens[:0], final=False)
    sequence = factory.open(inputs)
    go_on(sequence, inputs)
    return sequence


def test_a_known_voice_speaks_the_same_without_its_prompt(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    factory = FlowFactory(flow_networks, AMPLE, counter)
    expected = fresh(flow_networks, flow_voice, tokens)
    for computed in (2 * (PROMPT + SPEECH), 2 * (PROMPT + SPEECH) - SETTLED, 2 * (PROMPT + SPEECH) - SETTLED):
        np.testing.assert_array_equal(speak(factory, opening(flow_voice, tokens)), expected)
        assert counter.take() == computed


def test_segments_of_one_session_sound_as_those_of_fresh_sessions(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    factory = FlowFactory(flow_networks, AMPLE, counter)
    sequence = begin(factory, flow_voice)
    assert counter.take() == SETTLED
    for segment in (tokens[:70], tokens[70:], tokens[:5]):
        head = go_on(sequence, step(segment[:40], final=False))
        tail = go_on(sequence, step(segment[40:]))
        expected = fresh(flow_networks, flow_voice, segment)
        np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), expected)
        assert counter.take() == 2 * (PROMPT + len(segment)) - SETTLED
        assert sequence.nbytes == 0


def test_frames_are_counted_as_they_are_computed(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    sequence = begin(FlowFactory(flow_networks, AMPLE, counter), flow_voice)
    go_on(sequence, step(tokens[:40], final=False))
    assert counter.take() == SETTLED + 100
    go_on(sequence, step(tokens[40:]))
    assert counter.take() == 2 * (PROMPT + SPEECH) - SETTLED - 100


@pytest.mark.parametrize("other", [{"mel": 0.5}, {"embedding": 0.5}])
def test_voices_with_equal_tokens_never_share(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter, other: dict[str, float]
) -> None:
    first, second = short_voice(flow_voice), short_voice(flow_voice, **other)
    factory = FlowFactory(flow_networks, AMPLE, counter)
    heard = [speak(factory, opening(voice, tokens[:30])) for voice in (first, second, first)]
    expected = [fresh(flow_networks, voice, tokens[:30]) for voice in (first, second)]
    np.testing.assert_array_equal(heard[0], expected[0])
    np.testing.assert_array_equal(heard[1], expected[1])
    np.testing.assert_array_equal(heard[2], expected[0])
    assert np.abs(heard[0] - heard[1]).max() > 1e-3


def test_voices_whose_bytes_join_to_the_same_never_share(flow_voice: FlowVoice) -> None:
    """A prompt that calls the other's first mel frame tokens."""
    frame = np.ascontiguousarray(flow_voice.mel[0]).view(np.int32)
    other = FlowVoice(np.concatenate([flow_voice.tokens, frame]), flow_voice.mel[1:], flow_voice.embedding)
    assert flow_sequences._digest(other) != flow_sequences._digest(flow_voice)


@pytest.mark.parametrize("first_leaves", [False, True])
def test_sessions_of_a_new_voice_compute_its_prompt_once(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter, first_leaves: bool
) -> None:
    """They wait for the sequence that computes it; if that one is cancelled, another takes over."""
    factory, scheduler = FlowFactory(flow_networks, AMPLE, counter), Scheduler(8)
    inputs = opening(flow_voice, tokens[:40])
    heard: list[Tensors] = []
    errors: list[Exception] = []
    opened = [factory.open(inputs) for _ in range(3)]
    tasks = [Task(sequence.begin_step(inputs), 0, heard.append, errors.append) for sequence in opened]
    for task in tasks:
        scheduler.add(task)
    turn(scheduler)
    assert not counter.frames
    if first_leaves:
        scheduler.cancel(tasks[0], Cancelled("gone"))
        opened[0].release()
    while turn(scheduler):
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
    factory = FlowFactory(flow_networks, AMPLE, counter)
    begin(factory, flow_voice).release()
    counter.take()
    inputs = opening(flow_voice, tokens[:0], final=False) | {"stream": np.array([False])}
    sequence = factory.open(inputs)
    assert go_on(sequence, inputs).shape == (80, 0)
    assert go_on(sequence, step(tokens[:100], final=False)).shape == (80, 0)
    mel = go_on(sequence, step(tokens[100:]))
    np.testing.assert_allclose(mel, flow_vectors["full_offline_mel"][0], rtol=0, atol=1e-4)
    assert counter.take() == 2 * (PROMPT + SPEECH)
    np.testing.assert_array_equal(go_on(sequence, step(tokens)), mel)  # the next segment too


def test_a_session_needs_a_speaker(flow_networks: FlowNetworks, tokens: Ints, counter: Counter) -> None:
    with pytest.raises(InvalidInput, match=r"^speaker_embedding: "):
        FlowFactory(flow_networks, AMPLE, counter).open(step(tokens))


def test_a_session_without_prompt_speaks(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    factory = FlowFactory(flow_networks, AMPLE, counter)
    assert speak(factory, {**step(tokens[:30]), "speaker_embedding": flow_voice.embedding}).shape == (80, 60)


# --- memory ---


def sessions_with_room(networks: FlowNetworks, counter: Counter, *, streams: int, voices: int) -> FlowFactory:
    """Room for streams of the reserved length and for short voices."""
    frames = streams * flow_sequences.RESERVED_FRAMES + voices * SHORT
    return FlowFactory(networks, frames * networks.frame_bytes, counter)


def is_known(factory: FlowFactory, voice: FlowVoice, counter: Counter) -> bool:
    """Return whether a new sequence of the voice starts without computing its prompt."""
    counter.take()
    begin(factory, voice).release()
    return counter.take() == 0


def test_everything_is_freed_at_the_end_but_the_voices(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    factory = FlowFactory(flow_networks, AMPLE, counter)
    voices = [short_voice(flow_voice, mel=i) for i in range(2)]
    assert factory.nbytes == 0
    opened = [begin(factory, voice) for voice in voices]
    kept = 2 * SHORT * flow_networks.frame_bytes
    for sequence in opened:
        go_on(sequence, step(tokens[:60], final=False))
    assert factory.nbytes == kept + sum(sequence.nbytes for sequence in opened)
    assert all(sequence.nbytes >= 100 * flow_networks.frame_bytes for sequence in opened)
    go_on(opened[0], step(tokens[60:90]))  # a segment's end frees its state, an early close too
    assert factory.nbytes == kept + opened[1].nbytes
    for sequence in opened:
        sequence.release()
    assert factory.nbytes == kept


def test_a_full_server_refuses_until_a_stream_ends(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter
) -> None:
    voice = short_voice(flow_voice)
    factory = sessions_with_room(flow_networks, counter, streams=2, voices=1)
    opened = [begin(factory, voice), begin(factory, voice)]
    before = factory.nbytes
    for refused in (voice, short_voice(flow_voice, mel=1)):
        with pytest.raises(Overloaded, match="memory"):
            begin(factory, refused)
    assert factory.nbytes == before
    opened[0].release()
    begin(factory, voice)
    with pytest.raises(Overloaded):
        begin(factory, voice)


def test_a_new_voice_needs_room_for_its_prompt(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter
) -> None:
    factory = sessions_with_room(flow_networks, counter, streams=2, voices=1)
    begin(factory, short_voice(flow_voice))
    with pytest.raises(Overloaded):
        begin(factory, short_voice(flow_voice, mel=1))
    begin(factory, short_voice(flow_voice))


def test_idle_voices_are_evicted_least_recently_used_first(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter
) -> None:
    a, b, c = (short_voice(flow_voice, mel=i) for i in range(3))
    factory = sessions_with_room(flow_networks, counter, streams=1, voices=2)
    assert not is_known(factory, a, counter)
    assert not is_known(factory, b, counter)
    assert is_known(factory, a, counter)
    assert not is_known(factory, c, counter)  # b goes: a was used since
    assert is_known(factory, a, counter)
    assert not is_known(factory, b, counter)
    assert factory.nbytes == 2 * SHORT * flow_networks.frame_bytes


def test_a_voice_in_use_stays(flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter) -> None:
    a, b, c = (short_voice(flow_voice, mel=i) for i in range(3))
    factory = sessions_with_room(flow_networks, counter, streams=2, voices=2)
    user = begin(factory, a)
    assert not is_known(factory, b, counter)
    assert not is_known(factory, c, counter)  # b goes, though a was used before it
    assert is_known(factory, a, counter)
    user.release()
    assert not is_known(factory, b, counter)


def test_a_refused_stream_evicts_no_voice(flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter) -> None:
    a, b = (short_voice(flow_voice, mel=i) for i in range(2))
    factory = sessions_with_room(flow_networks, counter, streams=1, voices=2)
    assert not is_known(factory, b, counter)
    user = begin(factory, a)
    with pytest.raises(Overloaded):
        begin(factory, a)
    user.release()
    assert is_known(factory, b, counter)


def test_the_number_of_voices_is_bounded_too(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_sequences, "CACHED_VOICES", 2)
    a, b, c = (short_voice(flow_voice, mel=i) for i in range(3))
    factory = FlowFactory(flow_networks, AMPLE, counter)
    assert [is_known(factory, voice, counter) for voice in (a, b, a, c)] == [False, False, True, False]
    assert [is_known(factory, voice, counter) for voice in (a, c, b)] == [True, True, False]


@pytest.fixture
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_sequences, "RESERVED_FRAMES", 100)


@pytest.mark.usefixtures("small_reserve")
def test_a_stream_may_grow_beyond_its_reserve_while_there_is_room(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    voice, idle = short_voice(flow_voice), short_voice(flow_voice, mel=1)
    factory = sessions_with_room(flow_networks, counter, streams=3, voices=2)
    begin(factory, idle).release()
    sequence = begin(factory, voice)
    go_on(sequence, step(tokens[:60], final=False))
    assert sequence.nbytes > flow_sequences.RESERVED_FRAMES * flow_networks.frame_bytes
    assert is_known(factory, idle, counter)
    go_on(sequence, step(tokens[60:], final=False))
    assert factory.nbytes <= 420 * flow_networks.frame_bytes
    with pytest.raises(Overloaded):
        begin(factory, idle)


@pytest.mark.usefixtures("small_reserve")
def test_a_stream_that_outgrows_its_reserve_on_a_full_server_fails_alone(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    voice = short_voice(flow_voice)
    factory = sessions_with_room(flow_networks, counter, streams=2, voices=1)
    long, other = begin(factory, voice), begin(factory, voice)
    go_on(long, step(tokens[:20], final=False))
    with pytest.raises(Overloaded, match="memory"):
        go_on(long, step(tokens[20:100], final=False))
    long.release()
    np.testing.assert_array_equal(go_on(other, step(tokens[:40])), fresh(flow_networks, voice, tokens[:40]))
    other.release()
    assert factory.nbytes == SHORT * flow_networks.frame_bytes


class NotANumber:
    """Networks of which the estimator overflows."""

    def __init__(self, networks: FlowNetworks) -> None:
        self._networks = networks
        self.solve = self

    def __getattr__(self, name: str) -> object:
        return getattr(self._networks, name)

    def can_batch(self, batch: object, job: object) -> bool:
        return False

    def __call__(self, batch: list[SolveJob]) -> list[Float]:
        return [np.where(mel > 0, mel, np.float32(np.nan)) for mel in self._networks.solve(batch)]


def test_a_mel_that_is_not_finite_fails_its_sequence(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    factory = FlowFactory(NotANumber(flow_networks), AMPLE, counter)
    with pytest.raises(NotFinite, match="^the networks returned mel that is not finite$"):
        speak(factory, opening(flow_voice, tokens))


def test_a_short_text_reserves_what_it_needs(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter
) -> None:
    frames = flow_networks.config.ratio * 40
    room = (3 * frames + SHORT) * flow_networks.frame_bytes
    factory = FlowFactory(flow_networks, room, counter)
    voice = short_voice(flow_voice)
    expecting: Tensors = {**opening(voice, tokens[:0], final=False), "expected_tokens": np.array([40], np.int32)}
    opened = [factory.open(expecting) for _ in range(3)]
    with pytest.raises(Overloaded):
        factory.open(expecting)
    with pytest.raises(Overloaded):
        factory.open({**expecting, "expected_tokens": np.array([10**6], np.int32)})
    opened[0].release()
    factory.open(expecting)


@pytest.mark.parametrize("expected", [-5, 0, 10**6, None])
def test_no_expectation_reserves_more_than_a_long_sentence(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, counter: Counter, expected: int | None
) -> None:
    inputs = opening(flow_voice, tokens[:0], final=False)
    if expected is not None:
        inputs["expected_tokens"] = np.array([expected], np.int32)
    reserved = FlowFactory(flow_networks, AMPLE, counter).open(inputs).reserved
    assert 0 < reserved <= flow_sequences.RESERVED_FRAMES * flow_networks.frame_bytes
