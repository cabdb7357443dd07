"""The flow with a paged KV cache: recorded results, and each page is held as long as it is used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cosyserve.errors import Overloaded, WeightsError
from cosyserve.flow.networks import SolveJob
from cosyserve.flow.stream import FlowState, FlowStream, FlowVoice
from cosyserve.lazy import resolve
from cosyserve.load.flow import load_flow_networks
from cosyserve.runtimes.torch.flow import TorchFlow, load_flow
from cosyserve.runtimes.torch.modules import load_module
from cosyserve.runtimes.torch.network import Places
from cosyserve.runtimes.torch.paged_kv_cache import EMPTY, RESERVED
from cosyserve.runtimes.torch.solver import PagedSolver
from cosyserve.scheduler import run_alone
from cosyserve.settings import Settings
from cosyserve.weights import Weights

Float = NDArray[np.float32]
Ints = NDArray[np.int32]
Vectors = dict[str, Float]
CHUNK = 25
PROMPT_CHUNKS = 3  # the other prompt tokens, 18 or 16, wait for speech


def load(weights: Weights, **settings: str | int) -> TorchFlow:
    given = {"flow_cache_mib": 256} | settings
    flow = load_flow_networks(Settings(weights=str(weights.folder), runtime="torch", **given))  # type: ignore[arg-type]
    assert isinstance(flow, TorchFlow)
    return flow


@pytest.fixture(scope="module")
def torch_weights(any_torch_weights: Weights) -> Weights:
    return any_torch_weights


@pytest.fixture(scope="module")
def flow_vectors(any_flow_vectors: Vectors) -> Vectors:
    return any_flow_vectors


@pytest.fixture(scope="module")
def flow_voice(any_flow_voice: FlowVoice) -> FlowVoice:
    return any_flow_voice


@pytest.fixture(scope="module")
def speech_chunks(flow_voice: FlowVoice, tokens: Ints) -> int:
    """Whole chunks after those of the prompt; the last tokens are not a whole chunk."""
    chunks, rest = divmod(len(flow_voice.tokens) % CHUNK + len(tokens), CHUNK)
    assert rest
    return chunks


@pytest.fixture(scope="module")
def flow(torch_weights: Weights) -> TorchFlow:
    return load(torch_weights)


@pytest.fixture(scope="module")
def tokens(flow_vectors: Vectors) -> Ints:
    recorded: Ints = flow_vectors["token"][0].astype(np.int32)
    return recorded


def primed(flow: TorchFlow, voice: FlowVoice) -> FlowState:
    return run_alone(FlowStream.prime(flow, voice))


def free(flow: TorchFlow) -> tuple[int, int]:
    return flow.encode.pages.free, flow.solve.pages.free


@pytest.mark.parametrize(("full", "recorded"), [(False, "full_stream_mel"), (True, "full_offline_mel")])
def test_the_recorded_mel_comes_out(
    flow: TorchFlow, flow_voice: FlowVoice, tokens: Ints, flow_vectors: Vectors, full: bool, recorded: str
) -> None:
    mel = FlowStream(flow, flow_voice, full=full).step(tokens, final=True)
    np.testing.assert_allclose(mel, flow_vectors[recorded][0], rtol=0, atol=1e-4)


def test_a_fork_of_the_prompt_says_the_same_in_any_pieces(
    flow: TorchFlow, flow_voice: FlowVoice, tokens: Ints, flow_vectors: Vectors
) -> None:
    state = primed(flow, flow_voice)
    for cuts in ([], [10, 11, 60], [137]):
        stream = FlowStream(flow, flow_voice, state=state.fork())
        *pieces, last = np.split(tokens, cuts)
        mels = [stream.step(piece, final=False) for piece in pieces] + [stream.step(last, final=True)]
        np.testing.assert_allclose(np.concatenate(mels, axis=1), flow_vectors["full_stream_mel"][0], rtol=0, atol=1e-4)


def test_a_prompt_computed_in_few_calls_leaves_the_same_state(
    torch_weights: Weights, flow: TorchFlow, flow_voice: FlowVoice, tokens: Ints, flow_vectors: Vectors
) -> None:
    """Also the chunks behind it, of a prompt that takes one call of four chunks and one of one."""
    voice = replace(flow_voice, tokens=np.concatenate([flow_voice.tokens, tokens[:50]]))
    calls = {"together": 0, "apart": 0}
    heard, states = [], []
    for name, chunks in (("together", (16, 4, 1)), ("apart", (1,))):
        networks = load(torch_weights)
        networks.chunks = chunks  # type: ignore[misc]
        solve = networks.solve._run

        def counted(*arguments: object, solve: object = solve, name: str = name, **sizes: int) -> object:
            calls[name] += 1
            return solve(*arguments, **sizes)  # type: ignore[operator]

        networks.solve._run = counted  # type: ignore[assignment]
        states.append(primed(networks, voice))
        heard.append(FlowStream(networks, voice, state=states[-1].fork()).step(tokens, final=True))
    assert [len(state.cache.frames.pages) for state in states] == [5, 5]
    assert [state.frames for state in states] == [250, 250]
    assert calls["apart"] - calls["together"] == 3
    np.testing.assert_allclose(heard[0], heard[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.2), ("fp16", 0.02)])
def test_half_precision_stays_close_to_the_recorded_mel(
    torch_weights: Weights,
    flow_voice: FlowVoice,
    tokens: Ints,
    flow_vectors: Vectors,
    precision: str,
    error: float,
) -> None:
    half = load(torch_weights, precision=precision)
    mel = FlowStream(half, flow_voice).step(tokens, final=True)
    assert np.isfinite(mel).all()
    np.testing.assert_allclose(mel, flow_vectors["full_stream_mel"][0], rtol=0, atol=error)


def test_half_precision_takes_about_half_the_memory(torch_weights: Weights, flow: TorchFlow) -> None:
    # The encoder's small share stays in float32.
    assert 0.5 < load(torch_weights, precision="bf16").frame_bytes / flow.frame_bytes < 0.6


def test_streams_in_one_call_get_what_they_get_alone(flow: TorchFlow, flow_voice: FlowVoice, tokens: Ints) -> None:
    state = primed(flow, flow_voice)

    def jobs() -> list[SolveJob]:
        """Three streams of one voice, one at its beginning and two after a chunk of speech."""
        found = []
        for index, chunks in enumerate((0, 1, 1)):
            fork = state.fork()
            FlowStream(flow, flow_voice, state=fork).step(tokens[index : 10 + 25 * chunks], final=False)
            random = np.random.default_rng(index)
            mu, cond, noise = random.standard_normal((3, flow.config.mels, 50), dtype=np.float32)
            found.append(SolveJob(fork.cache, mu, cond, flow_voice.embedding, noise))
        return found

    together, by_itself = jobs(), jobs()
    assert flow.solve.can_batch(together[:2], together[2])
    for _ in range(2):  # the second time they read what the first has left
        mels = flow.solve(together)
        for job, mel in zip(by_itself, mels, strict=True):
            np.testing.assert_allclose(mel, flow.solve([job])[0], rtol=0, atol=1e-4)


def test_padding_rows_of_a_batch_write_to_no_page_of_a_stream(torch_weights: Weights, flow: TorchFlow) -> None:
    small = load(torch_weights, flow_cache_mib=-(-6 * 50 * flow.frame_bytes // 2**20))
    random = np.random.default_rng(0)

    def job() -> SolveJob:
        mu, cond, noise = random.standard_normal((3, 80, 50), dtype=np.float32)
        return SolveJob(small.open(), mu, cond, np.ones(192, np.float32), noise)

    keepers = [job() for _ in range(small.solve.pages.free)]
    for keeper in keepers:
        small.solve([keeper])
    # Whichever page was handed out first or last is held by one of these; the others make room for three streams.
    keepers = [keepers[0], keepers[-1]]

    def next_chunks() -> list[Float]:
        return [small.solve([replace(keeper, cache=keeper.cache.fork())])[0] for keeper in keepers]

    before = next_chunks()
    small.solve([job() for _ in range(3)])
    np.testing.assert_array_equal(next_chunks(), before)


def test_last_chunks_share_a_call_with_whole_ones_and_longer_ones_do_not(flow: TorchFlow) -> None:
    whole, rest, full = (
        SolveJob(flow.open(), chunk, chunk, np.ones(192, np.float32), chunk)
        for chunk in (np.zeros((80, frames), np.float32) for frames in (50, 12, 120))
    )
    assert flow.solve.can_batch([whole], rest)
    assert flow.solve.can_batch([rest], whole)
    assert not flow.solve.can_batch([whole], full)
    assert flow.solve.can_batch([full], full)


def test_a_last_chunk_gets_in_the_shape_of_a_whole_one_what_it_gets_alone(
    torch_weights: Weights, flow: TorchFlow, flow_voice: FlowVoice, tokens: Ints
) -> None:
    random = np.random.default_rng(0)
    exact = load(torch_weights)
    exact.solve._masks = False

    def job(networks: TorchFlow, chunk: Float) -> SolveJob:
        mu, cond, noise = chunk
        return SolveJob(primed(networks, flow_voice).fork().cache, mu, cond, flow_voice.embedding, noise)

    for frames in (2, 14, 48):
        chunk, other = (random.standard_normal((3, flow.config.mels, n), dtype=np.float32) for n in (frames, 50))
        last, _ = flow.solve([job(flow, chunk), job(flow, other)])
        (alone,) = exact.solve([job(exact, chunk)])
        assert last.shape == alone.shape == (flow.config.mels, frames)
        np.testing.assert_allclose(last, alone, rtol=0, atol=2e-5)


def test_a_last_chunk_takes_no_page(flow: TorchFlow) -> None:
    chunk = np.zeros((80, 12), np.float32)
    job = SolveJob(flow.open(), chunk, chunk, np.ones(192, np.float32), chunk)
    before = free(flow)
    flow.solve([job])
    assert free(flow) == before
    assert job.cache.nbytes == 0


def test_a_long_past_makes_no_other_stream_s_call_longer(flow: TorchFlow) -> None:
    chunk = np.zeros((80, 50), np.float32)
    early, late = (SolveJob(flow.open(), chunk, chunk, np.ones(192, np.float32), chunk) for _ in range(2))
    for _ in range(5):  # one page more than the shortest past that is read
        flow.solve([late])
    assert not flow.solve.can_batch([early], late)
    assert not flow.solve.can_batch([late], early)
    assert flow.solve.can_batch([late], late)


def test_a_call_holds_no_more_streams_than_are_recorded(torch_weights: Weights) -> None:
    flow = load(torch_weights, flow_cache_mib=512)
    chunk = np.zeros((80, 50), np.float32)
    job = SolveJob(flow.open(), chunk, chunk, np.ones(192, np.float32), chunk)
    assert flow.solve.can_batch([job] * 31, job)
    assert not flow.solve.can_batch([job] * 32, job)


def test_a_call_reads_at_most_twice_the_pages_that_there_are(torch_weights: Weights, flow: TorchFlow) -> None:
    small = load(torch_weights, flow_cache_mib=-(-20 * 50 * flow.frame_bytes // 2**20))
    assert 20 <= small.solve.pages.count <= 22
    chunk = np.zeros((80, 50), np.float32)
    job = SolveJob(small.open(), chunk, chunk, np.ones(192, np.float32), chunk)
    assert small.solve.can_batch([job] * 7, job)  # 8 rows of 4 pages
    assert not small.solve.can_batch([job] * 8, job)  # 16 rows


def test_forks_share_the_prompt_and_every_page_comes_back(
    flow: TorchFlow, flow_voice: FlowVoice, tokens: Ints, speech_chunks: int
) -> None:
    before = free(flow)
    state = primed(flow, flow_voice)
    after_prompt = tuple(pages - PROMPT_CHUNKS for pages in before)
    assert free(flow) == after_prompt
    streams = [FlowStream(flow, flow_voice, state=state.fork()) for _ in range(3)]
    assert free(flow) == after_prompt
    assert [stream.nbytes for stream in streams] == [0, 0, 0]
    streams[0].step(tokens, final=True)
    assert free(flow) == tuple(pages - speech_chunks for pages in after_prompt)
    assert streams[0].nbytes == pytest.approx(speech_chunks * 50 * flow.frame_bytes, rel=0.01)
    del streams
    assert free(flow) == after_prompt
    del state
    assert free(flow) == before


def test_without_a_free_page_a_step_is_refused_and_changes_nobody(
    torch_weights: Weights, flow: TorchFlow, flow_voice: FlowVoice, tokens: Ints
) -> None:
    small = load(torch_weights, flow_cache_mib=-(-5 * 50 * flow.frame_bytes // 2**20))
    speaks, waits = (FlowState(small.open(), []) for _ in range(2))
    chunk = np.zeros((80, 50), np.float32)
    job, other = (SolveJob(state.cache, chunk, chunk, flow_voice.embedding, chunk) for state in (speaks, waits))
    while small.solve.pages.free > 1:
        small.solve([job])
    held = job.cache.nbytes
    with pytest.raises(Overloaded):
        small.solve([job, other])
    assert (job.cache.nbytes, other.cache.nbytes, small.solve.pages.free) == (held, 0, 1)
    small.solve([other])


def test_a_call_may_run_several_times_as_recording_it_does(torch_weights: Weights) -> None:
    config, cpu = torch_weights.config.flow, torch.device("cpu")
    network = resolve(torch_weights.version.flow.modules[1])
    estimator = load_module(lambda: network(config), torch_weights, "flow", cpu)
    solver = PagedSolver(estimator, config, 2, torch.float32, cpu)
    chunk = torch.randn(3, 1, config.mels, config.frame_chunk, generator=torch.Generator().manual_seed(0))
    first, second = RESERVED, RESERVED + 1

    def solve(past: int, count: int, fresh: int) -> torch.Tensor:
        places = map(torch.tensor, ([[past]], [count], [count], [past], [[fresh]], [config.frame_chunk]))
        (mel,) = solver(Places(*places), *chunk, torch.ones(1, config.speaker), chunks=1)
        return mel

    once = solve(EMPTY, 0, first)
    behind_once = solve(first, 1, second)
    assert torch.equal(solve(EMPTY, 0, first), once)
    assert torch.equal(solve(first, 1, second), behind_once)


def test_too_little_memory_for_one_chunk_is_refused(torch_weights: Weights) -> None:
    with pytest.raises(WeightsError, match=r"^setting flow_cache_mib: one chunk takes [25] MiB$"):
        load(torch_weights, flow_cache_mib=1)


def test_weights_for_another_runtime_name_the_command_that_makes_these(torch_weights: Weights) -> None:
    other = Weights(torch_weights.folder)
    other.manifest["files"].pop("flow.torch.safetensors")
    with pytest.raises(WeightsError, match=r"^flow\.torch\.safetensors is not .*prepare BUNDLE OUT --runtime torch`$"):
        load_flow(other, Settings(runtime="torch"))


def test_a_device_that_torch_does_not_see_is_refused(torch_weights: Weights) -> None:
    if torch.cuda.is_available():
        pytest.skip("here it does")
    with pytest.raises(WeightsError, match="^device cuda needs a torch that sees a GPU$"):
        load_flow_networks(replace(Settings(weights=str(torch_weights.folder), runtime="torch"), device="cuda"))


def test_a_window_keeps_the_prompt_and_the_newest_pages(
    flow: TorchFlow, torch_weights: Weights, flow_voice: FlowVoice, tokens: Ints, speech_chunks: int
) -> None:
    windowed = load(torch_weights, flow_window=100)
    stream = FlowStream(windowed, flow_voice, state=primed(windowed, flow_voice).fork())
    before = stream.nbytes
    for piece in np.array_split(tokens, 6):
        stream.step(piece, final=False)
    whole = FlowStream(flow, flow_voice, state=primed(flow, flow_voice).fork())
    whole.step(tokens, final=False)
    assert before == 0
    assert stream.nbytes < whole.nbytes
    chains = [stream._state.cache.frames, whole._state.cache.frames]
    assert [chain.own for chain in chains] == [2, speech_chunks]
    assert [chain.shared for chain in chains] == [PROMPT_CHUNKS] * 2


def test_a_window_longer_than_the_speech_changes_nothing(
    flow: TorchFlow, torch_weights: Weights, flow_voice: FlowVoice, tokens: Ints
) -> None:
    heard = [
        FlowStream(one, flow_voice, state=primed(one, flow_voice).fork()).step(tokens, final=True)
        for one in (flow, load(torch_weights, flow_window=400))
    ]
    np.testing.assert_array_equal(heard[0], heard[1])
