"""Recording of CUDA graphs: calls do not depend on their data, and may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from cosyserve import versions
from cosyserve.broken_device import is_broken_device
from cosyserve.config import ModelConfig
from cosyserve.errors import WeightsError
from cosyserve.lazy import resolve
from cosyserve.networks.dit import _Rotary
from cosyserve.networks.guided import mish
from cosyserve.networks.hift import Decoder, F0Predictor
from cosyserve.networks.hift_source import source_of
from cosyserve.networks.qwen2 import SpeechLM
from cosyserve.runtimes.buckets import BATCH, batches, bucket
from cosyserve.runtimes.torch.cuda_graphs import CudaGraphs
from cosyserve.runtimes.torch.flow import PAGED_ENCODERS
from cosyserve.runtimes.torch.llm import TorchDecoder
from cosyserve.runtimes.torch.modules import DTYPES, fitting
from cosyserve.runtimes.torch.network import Places
from cosyserve.runtimes.torch.solver import PagedSolver
from cosyserve.weights import Weights

CPU = torch.device("cpu")
NOWHERE = torch.device("meta")
STREAMS, ROOM = 3, 4

M = TypeVar("M", bound=nn.Module)
every_precision = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.fixture(scope="module")
def config(any_torch_weights: Weights) -> ModelConfig:
    return any_torch_weights.config


def without_data(make: Callable[[], M]) -> M:
    with NOWHERE:
        module = make()
    return module.to(NOWHERE).requires_grad_(False)


def ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64, device=NOWHERE)


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=NOWHERE)


def places(chunks: int = 1) -> Places:
    return Places(ids(STREAMS, ROOM), *(ids(STREAMS) for _ in Places._fields[1:]))._replace(fresh=ids(STREAMS, chunks))


@every_precision
@pytest.mark.parametrize(("new", "chunks"), [(50, 1), (14, 1), (200, 4)])
def test_the_solver_never_waits_for_the_device(config: ModelConfig, dtype: torch.dtype, new: int, chunks: int) -> None:
    flow = config.flow
    estimator = resolve(versions.of(config).flow.modules[1])
    solver = PagedSolver(without_data(lambda: estimator(flow)), flow, 5, dtype, NOWHERE)
    chunk = [floats(STREAMS, flow.mels, new) for _ in range(3)]
    (mel,) = solver(places(chunks), *chunk, floats(STREAMS, flow.speaker), chunks=chunks)
    assert (mel.shape, mel.dtype) == ((STREAMS, flow.mels, new), torch.float32)


@pytest.mark.parametrize(("new", "chunks"), [(25, 1), (7, 1), (100, 4)])
def test_the_encoder_never_waits_for_the_device(config: ModelConfig, new: int, chunks: int) -> None:
    flow = config.flow
    network = versions.of(config).flow
    module = resolve(network.modules[0])
    encoder = PAGED_ENCODERS[network.name](without_data(lambda: module(flow)), flow, 5, NOWHERE)
    ahead = ids(STREAMS, flow.lookahead), floats(STREAMS, flow.lookahead)
    (mu,) = encoder(places(chunks), ids(STREAMS, new), *ahead, chunks=chunks)
    assert mu.shape == (STREAMS, flow.mels, flow.ratio * new)


@every_precision
def test_the_language_model_never_waits_for_the_device(config: ModelConfig, dtype: torch.dtype) -> None:
    llm = config.llm
    table = floats(llm.vocab + llm.speech_vocab + 2, llm.hidden, dtype=dtype)
    held = torch.zeros(STREAMS, dtype=torch.bool, device=NOWHERE)
    decoder = TorchDecoder(without_data(lambda: SpeechLM(llm)), table, llm, 5, dtype, NOWHERE)
    (step,) = decoder.run_step(ids(STREAMS, 1), ids(STREAMS), ids(STREAMS), capacity=256)
    assert (step.shape, step.dtype) == ((STREAMS, llm.speech_vocab), torch.float32)
    (top,) = decoder.run_top(step, held)
    assert (top.shape, top.dtype) == ((STREAMS, 2 * llm.top_k), torch.float64)
    (prefill,) = decoder.run_prefill(ids(1, 16), ids(1), ids(1), ids(1), capacity=512)
    assert (prefill.shape, prefill.dtype) == ((1, llm.speech_vocab), torch.float32)


def test_the_vocoder_never_waits_for_the_device(config: ModelConfig) -> None:
    hift, frames = config.hift, 64
    sines, samples = hift.harmonics + 1, frames * hift.frame
    f0 = without_data(lambda: F0Predictor(hift))(floats(STREAMS, hift.mels, frames))
    phase = floats(STREAMS, sines, dtype=torch.float64)
    source, _ = without_data(lambda: source_of(hift))(f0, phase, floats(STREAMS), floats(STREAMS, samples, sines))
    audio = without_data(lambda: Decoder(hift))(floats(STREAMS, hift.mels, frames), source)
    assert audio.shape == (STREAMS, samples)


def test_a_function_that_looks_at_its_data_would_be_noticed() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        CudaGraphs(lambda x: (x if bool(x.sum() > 0) else -x,), NOWHERE)(floats(2))


def test_results_are_those_of_the_function_and_sizes_reach_it() -> None:
    captured = CudaGraphs(lambda a, b, times: (a * times + b, a - b), CPU)
    captured.record(torch.zeros(2), torch.zeros(2), times=3)
    total, difference = captured(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), times=3)
    assert (total.tolist(), difference.tolist()) == ([6.0, 10.0], [-2.0, -2.0])


@pytest.mark.parametrize(("streams", "sizes"), [(1, (1,)), (3, (1, 2, 4)), (4, (1, 2, 4)), (64, BATCH)])
def test_batches_are_recorded_up_to_the_first_that_holds_all_streams(streams: int, sizes: tuple[int, ...]) -> None:
    assert batches(streams) == sizes


@pytest.mark.parametrize(("size", "held_by"), [(1, 1), (2, 2), (3, 4), (32, 32), (33, 33)])
def test_a_size_takes_the_next_step_of_the_ladder(size: int, held_by: int) -> None:
    assert bucket(BATCH, size) == held_by


def test_a_gpu_that_is_too_small_is_told_in_terms_of_the_settings() -> None:
    with pytest.raises(WeightsError, match="^too little GPU memory: lower flow_cache_mib"), fitting():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 48.00 GiB")


def test_a_shape_that_cannot_be_recorded_runs_kernel_by_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = CudaGraphs(lambda x: (2 * x,), torch.device("cuda"))  # pretended
    monkeypatch.setattr(graphs, "_record", refuse)
    graphs.record(torch.zeros(3))
    (line,) = caplog.messages
    assert line.startswith("shapes [(3,)] run kernel by kernel, because they cannot be recorded: operation not")
    monkeypatch.setattr(graphs, "_device", CPU)
    assert graphs(torch.ones(3))[0].tolist() == [2, 2, 2]


def test_a_call_that_cannot_be_captured_is_no_broken_device(monkeypatch: pytest.MonkeyPatch) -> None:
    error = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")
    error.error_code = 900

    def refuse(*arguments: object) -> None:
        raise error

    graphs = CudaGraphs(lambda x: (x,), torch.device("cuda"))
    monkeypatch.setattr(graphs, "_record", refuse)
    graphs.record(torch.zeros(3))
    assert not is_broken_device(error)
    error.error_code = 700
    assert is_broken_device(error)
    with pytest.raises(torch.AcceleratorError):
        graphs.record(torch.zeros(3))


def test_rotary_rates_keep_their_precision_in_half_networks() -> None:
    rotary = _Rotary(64)
    found, _ = rotary.half()(torch.tensor([1500]), torch.zeros(1, 4, 8))
    expected, _ = _Rotary(64)(torch.tensor([1500]), torch.zeros(1, 4, 8))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_device_that_is_full_or_broken_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, error: type[RuntimeError]
) -> None:
    def refuse(*arguments: object) -> None:
        raise error("no")

    graphs = CudaGraphs(lambda x: (x,), torch.device("cuda"))
    monkeypatch.setattr(graphs, "_record", refuse)
    with pytest.raises(error):
        graphs.record(torch.zeros(3))


def test_nothing_is_recorded_where_graphs_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("recorded")

    graphs = CudaGraphs(lambda x: (x,), torch.device("cuda"), enabled=False)
    monkeypatch.setattr(graphs, "_record", fail)
    graphs.record(torch.zeros(3))


def test_only_errors_that_stay_end_the_process() -> None:
    assert is_broken_device(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    assert not is_broken_device(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_broken_device(RuntimeError("shape mismatch"))


@every_precision
def test_activations_up_to_20_stay_finite(dtype: torch.dtype) -> None:
    x = torch.linspace(-20, 20, 401)
    found = mish(x.to(dtype)).float()
    assert found.isfinite().all()
    expected = x * torch.tanh(torch.nn.functional.softplus(x))
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
