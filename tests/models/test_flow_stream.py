"""Flow streams compute each frame once, independently of token arrival and of the batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from fakes import turn
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cosyserve.errors import InvalidInput
from cosyserve.flow import graphs
from cosyserve.flow.graphs import GraphCache
from cosyserve.flow.networks import EncodeJob, FlowNetworks
from cosyserve.flow.solver import solve, time_grid
from cosyserve.flow.stream import FlowState, FlowStream, FlowVoice
from cosyserve.load.flow import load_flow_networks
from cosyserve.scheduler import Network, Scheduler, Task, run_alone
from cosyserve.settings import Settings

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
def primed(flow_networks: FlowNetworks, flow_voice: FlowVoice) -> FlowState:
    """The state after the recorded prompt."""
    return run_alone(FlowStream.prime(flow_networks, flow_voice))


@pytest.fixture(scope="module")
def bare(flow_voice: FlowVoice) -> FlowVoice:
    """A voice without prompt."""
    return FlowVoice(flow_voice.tokens[:0], flow_voice.mel[:0], flow_voice.embedding)


@pytest.fixture(scope="module")
def whole(flow_networks: FlowNetworks, flow_voice: FlowVoice, primed: FlowState, tokens: Ints) -> Float:
    """The streamed mel of one call."""
    return FlowStream(flow_networks, flow_voice, state=primed.fork()).step(tokens, final=True)


class Spy:
    """A network that records the batches of its calls."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.batches: list[Sequence] = []

    def can_batch(self, batch: Sequence, job: object) -> bool:
        return self._network.can_batch(batch, job)

    def __call__(self, batch: Sequence) -> list[Float]:
        self.batches.append(batch)
        return self._network(batch)

    @property
    def widest(self) -> int:
        return max(map(len, self.batches))


def spied(networks: FlowNetworks) -> tuple[FlowNetworks, Spy, Spy]:
    """The networks, with recorders of the calls of encoder and solver."""
    twin = copy.copy(networks)
    twin.encode, twin.solve = Spy(networks.encode), Spy(networks.solve)
    return twin, twin.encode, twin.solve


def pieces(tokens: Ints, at: Sequence[int]) -> Iterator[tuple[Ints, bool]]:
    """Tokens cut at some places, and whether they are the last."""
    parts = np.split(tokens, sorted(at))
    return zip(parts, [False] * (len(parts) - 1) + [True], strict=True)


def run(stream: FlowStream, tokens: Ints, at: Sequence[int] = ()) -> Float:
    return np.concatenate([stream.step(piece, final) for piece, final in pieces(tokens, at)], axis=1)


def test_one_call_gives_the_recorded_streaming_mel(whole: Float, flow_vectors: Vectors) -> None:
    np.testing.assert_allclose(whole, flow_vectors["full_stream_mel"][0], rtol=0, atol=1e-4)


def test_a_stream_that_computes_its_prompt_itself_gives_the_same(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, whole: Float
) -> None:
    mel = run(FlowStream(flow_networks, flow_voice), tokens, at=[20])
    np.testing.assert_allclose(mel, whole, rtol=0, atol=1e-4)


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


@hypothesis_settings(max_examples=12, deadline=None)
@given(at=cuts)
@example(at=list(range(1, SPEECH)))
@example(at=[0, SPEECH])
@example(at=[32, 35, 57, 60])
def test_any_split_gives_the_same_bits(
    flow_networks: FlowNetworks,
    flow_voice: FlowVoice,
    primed: FlowState,
    tokens: Ints,
    whole: Float,
    at: list[int],
) -> None:
    stream = FlowStream(flow_networks, flow_voice, state=primed.fork())
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
    # 93 prompt tokens: the next boundary is 7 tokens later, and 3 tokens of look-ahead are needed.
    assert stream.step(tokens[:9], final=False).shape[1] == 0
    assert stream.step(tokens[9:10], final=False).shape[1] == 2 * 7


@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 10])
def test_short_speech_is_spoken_whole(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, primed: FlowState, tokens: Ints, length: int
) -> None:
    stream = FlowStream(flow_networks, flow_voice, state=primed.fork())
    assert stream.step(tokens[:length], final=True).shape == (80, 2 * length)
    assert stream.frames == 2 * (PROMPT + length)


@pytest.mark.parametrize("length", [31, 32, 33, 34, 35])
def test_an_end_within_the_look_ahead_does_not_widen_a_chunk(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, primed: FlowState, tokens: Ints, length: int
) -> None:
    """18 tokens of the prompt wait for speech, so boundaries are after 7 and 32 tokens of speech."""
    networks, encoder, _ = spied(flow_networks)
    stream = FlowStream(networks, flow_voice, state=primed.fork())
    assert stream.step(tokens[:length], final=True).shape == (80, 2 * length)
    chunks = [len(job.tokens) for batch in encoder.batches for job in batch]
    assert chunks == [25, min(25, length - 7)] + [length - 32] * (length > 32)


def test_no_prompt_works_at_any_split(flow_networks: FlowNetworks, bare: FlowVoice, tokens: Ints) -> None:
    once = run(FlowStream(flow_networks, bare), tokens[:60])
    assert once.shape == (80, 120)
    np.testing.assert_array_equal(run(FlowStream(flow_networks, bare), tokens[:60], at=[27, 28, 53]), once)


def state_of(cache: GraphCache) -> list[Float]:
    """Yield all arrays of a stream's cache, its own and the shared ones."""
    encoder = cache.encoder
    pasts = [past.layers() for past in (*cache.prompt, *cache.past)]
    tails = [tail for step in cache.tails for tail in step]
    return [encoder.conv_tail, encoder.up_tail, *encoder.layers, *tails, *pasts]


def test_forks_share_the_prompt_and_never_write_it(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, tokens: Ints, whole: Float
) -> None:
    primed = run_alone(FlowStream.prime(flow_networks, flow_voice))
    before = copy.deepcopy(state_of(primed.cache))
    one, other = primed.fork(), primed.fork()
    for fork in (one, other):
        assert fork.cache.nbytes < primed.cache.nbytes / 4  # the encoder's keys and values alone are its own
        for shared, past in zip(fork.cache.prompt, primed.cache.past, strict=True):
            assert shared.length == past.length == 150
            assert np.shares_memory(shared.layers(), past.layers())
    streams = [FlowStream(flow_networks, flow_voice, state=fork) for fork in (one, other)]
    head = streams[0].step(tokens[:70], final=False)
    run(streams[1], tokens[::-1])
    tail = streams[0].step(tokens[70:], final=True)
    np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), whole)
    for now, then in zip(state_of(primed.cache), before, strict=True):
        np.testing.assert_array_equal(now, then)
    for mine, its in zip(one.cache.past, other.cache.past, strict=True):
        assert not np.shares_memory(mine.layers(), its.layers())


def test_a_stream_holds_its_bytes_for_each_frame(
    flow_networks: FlowNetworks, bare: FlowVoice, flow_voice: FlowVoice, primed: FlowState, tokens: Ints
) -> None:
    stream = FlowStream(flow_networks, bare)
    assert stream.nbytes == 0
    stream.step(tokens[:60], final=True)
    assert stream.nbytes == 120 * flow_networks.frame_bytes
    with_prompt = FlowStream(flow_networks, flow_voice, state=primed.fork())
    with_prompt.step(tokens[:60], final=True)
    assert with_prompt.nbytes < 2 * (PROMPT + 60) * flow_networks.frame_bytes


# --- streams in shared calls ---

AT = {60: [53], 110: [30, 90], 33: [], 77: [10, 11, 40], 128: [100], 138: [53, 106]}
"""Lengths of some streams, and where their tokens are cut."""


def run_together(networks: FlowNetworks, streams: Sequence[FlowStream], tokens: Ints) -> list[Float]:
    """The mels of streams of different lengths, the later ones the more urgent."""
    rounds = Scheduler(8)
    heard: list[list[Float]] = [[] for _ in streams]

    def failed(error: Exception) -> None:
        raise error

    def go_on(index: int, rest: Iterator[tuple[Ints, bool]]) -> None:
        def done(mel: Float) -> None:
            heard[index].append(mel)
            go_on(index, rest)

        for piece, final in rest:
            rounds.add(Task(streams[index].begin_step(piece, final), -index, done, failed))
            return

    for index, (length, at) in enumerate(AT.items()):
        go_on(index, pieces(tokens[:length], at))
        turn(rounds)  # so that each begins at another position of the others
    while turn(rounds):
        pass
    return [np.concatenate(mels, axis=1) for mels in heard]


@pytest.fixture(scope="module")
def streams_alone(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, bare: FlowVoice, primed: FlowState, tokens: Ints
) -> list[Float]:
    streams = forked(flow_networks, flow_voice, bare, primed)
    return [run(stream, tokens[:length], at) for stream, (length, at) in zip(streams, AT.items(), strict=True)]


def forked(networks: FlowNetworks, voice: FlowVoice, bare: FlowVoice, primed: FlowState) -> list[FlowStream]:
    """A stream for each of `AT`; every third has no prompt."""
    without = run_alone(FlowStream.prime(networks, bare))
    return [
        FlowStream(networks, voice if index % 3 else bare, state=(primed if index % 3 else without).fork())
        for index in range(len(AT))
    ]


def test_streams_in_shared_calls_give_the_same_bits_as_alone(
    flow_networks: FlowNetworks,
    flow_voice: FlowVoice,
    bare: FlowVoice,
    primed: FlowState,
    tokens: Ints,
    streams_alone: list[Float],
) -> None:
    networks, encoder, solver = spied(flow_networks)
    together = run_together(networks, forked(networks, flow_voice, bare, primed), tokens)
    for found, expected in zip(together, streams_alone, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert encoder.widest >= 2
    assert solver.widest >= 3
    assert any(len({job.cache.past[0].length for job in batch}) > 1 for batch in solver.batches)


def test_pasts_too_large_to_copy_are_solved_one_by_one(
    flow_networks: FlowNetworks,
    flow_voice: FlowVoice,
    bare: FlowVoice,
    primed: FlowState,
    tokens: Ints,
    streams_alone: list[Float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs, "GATHER_BYTES", 1)
    networks, encoder, solver = spied(flow_networks)
    together = run_together(networks, forked(networks, flow_voice, bare, primed), tokens)
    for found, expected in zip(together, streams_alone, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert encoder.widest >= 2
    assert solver.widest == 1


def test_unlike_chunks_do_not_share_an_encoder_call(flow_networks: FlowNetworks, tokens: Ints) -> None:
    """In one call the rounding would differ from that of the stream alone."""

    def job(past: int, new: int) -> EncodeJob:
        cache = flow_networks.open()
        encoder = cache.encoder
        encoder.layers = [np.zeros((layer.shape[0], past, layer.shape[2]), np.float32) for layer in encoder.layers]
        return EncodeJob(cache, tokens[:new].astype(np.int64), np.zeros(3, np.int64), np.zeros(3, np.float32))

    first = [job(17, 25)]
    assert flow_networks.encode.can_batch(first, job(30, 25))
    assert not flow_networks.encode.can_batch(first, job(33, 25))
    assert not flow_networks.encode.can_batch(first, job(0, 25))
    assert not flow_networks.encode.can_batch(first, job(17, 24))


# --- a bounded window ---


@pytest.mark.parametrize("window", [1000, 100])
def test_a_window_bounds_the_past_and_changes_nothing_while_it_is_longer(
    settings: Settings, flow_voice: FlowVoice, tokens: Ints, whole: Float, window: int
) -> None:
    networks = load_flow_networks(replace(settings, flow_window=window))
    state = run_alone(FlowStream.prime(networks, flow_voice)).fork()
    stream = FlowStream(networks, flow_voice, state=state)
    mels = []
    for piece, final in pieces(tokens, range(10, SPEECH, 10)):
        mels.append(stream.step(piece, final))
        assert all(past.length <= window for past in state.cache.past)
        assert sum(past.nbytes for past in state.cache.past) <= window * networks.frame_bytes
    assert {past.length for past in state.cache.prompt} == {150}
    mel = np.concatenate(mels, axis=1)
    assert np.array_equal(mel, whole) is (window > 2 * (PROMPT + SPEECH))


# --- the noise and the solver ---


def test_a_segment_longer_than_the_noise_is_refused(
    flow_networks: FlowNetworks, flow_voice: FlowVoice, primed: FlowState, tokens: Ints
) -> None:
    def stream(frames: int) -> FlowStream:
        short = copy.copy(flow_networks)
        short.noise = flow_networks.noise[:, :frames]
        return FlowStream(short, flow_voice, state=primed.fork())

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
