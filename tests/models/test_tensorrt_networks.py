"""TensorRT plans in the torch runtime, with torch networks as fakes of the plans."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cosyserve.errors import WeightsError
from cosyserve.flow.networks import SolveJob
from cosyserve.flow.stream import FlowStream, FlowVoice
from cosyserve.hift.stream import HiftNetworks, HiftStream
from cosyserve.lazy import resolve
from cosyserve.load.flow import load_flow_networks
from cosyserve.load.hift import load_hift_networks
from cosyserve.networks.hift import Decoder
from cosyserve.runtimes import engine_files
from cosyserve.runtimes.buckets import BLOCKS
from cosyserve.runtimes.engine_files import TENSORRT, EngineSpec, Gpu, save_engine
from cosyserve.runtimes.stacking import row_size, stacked_shapes, stacks
from cosyserve.runtimes.torch import tensorrt_networks
from cosyserve.runtimes.torch.flow import TorchFlow, load_flow
from cosyserve.runtimes.torch.hift import load_hift
from cosyserve.runtimes.torch.modules import load_module
from cosyserve.settings import Settings
from cosyserve.weights import Weights

Float = NDArray[np.float32]
H200 = Gpu("NVIDIA H200", "9.0")
TRT = "10.15.1.29"
LSB = 1 / 32768


class Stand:
    """Fake of `TensorrtGraph` on the CPU; it refuses the same inputs."""

    def __init__(self, weights: Weights, graph: str, module: nn.Module) -> None:
        self.calls = 0
        self._entry = weights.manifest["graphs"][graph]
        self._profile = engine_files.profile(weights, graph)
        self._module = module

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        shapes = {name: entry["shape"] for name, entry in self._entry["inputs"].items()}
        assert set(inputs) == set(stacked_shapes(shapes))
        for name, (least, _, greatest) in self._profile.items():
            assert all(a <= n <= b for a, n, b in zip(least, inputs[name].shape, greatest, strict=True)), name
        plain: dict[str, Any] = dict(inputs)
        for name, stack in stacks(shapes).items():
            if stack.layers:
                keys, values = plain.pop(name).chunk(2)
                plain |= {f"{name}_k": list(keys), f"{name}_v": list(values)}
            else:
                sizes = [row_size(shapes[member]) for member in stack.members]
                parts = zip(torch.split(plain.pop(name), sizes, dim=1), stack.members, strict=True)
                plain[name] = [part.view(-1, *shapes[member][1:]) for part, member in parts]
        out = self._module(**plain)
        if not isinstance(out, tuple):
            return {"audio": out}
        velocity, tails, keys, values = out
        return {
            "velocity": velocity,
            "new_tails": torch.cat([tail.flatten(1) for tail in tails], dim=1),
            "new": torch.stack([*keys, *values]),
        }


def stand_for(weights: Path, torch_weights: Weights, graph: str) -> Stand:
    config, cpu = torch_weights.config, torch.device("cpu")
    if graph == "hift_decoder":
        return Stand(Weights(weights), graph, load_module(lambda: Decoder(config.hift), torch_weights, "hift", cpu))
    network = resolve(torch_weights.version.flow.modules[1])
    return Stand(Weights(weights), graph, load_module(lambda: network(config.flow), torch_weights, "flow", cpu))


@pytest.fixture
def stands(weights: Path, torch_weights: Weights, monkeypatch: pytest.MonkeyPatch) -> dict[str, Stand]:
    """Every plan is found, and is one of these."""
    found = {graph: stand_for(weights, torch_weights, graph) for graph in ("flow_estimator", "hift_decoder")}
    for network in ("flow", "hift"):
        place = f"cosyserve.runtimes.torch.{network}.load_engine"
        monkeypatch.setattr(place, lambda weights, graph, given: found[graph] if given.runtime == "tensorrt" else None)
    return found


def settings(weights: Weights, **given: Any) -> Settings:
    return Settings(weights=str(weights.folder), flow_cache_mib=256, **given)


def load(weights: Weights) -> TorchFlow:
    return load_flow(weights, settings(weights, runtime="tensorrt"))


@pytest.fixture(scope="module")
def flow(torch_weights: Weights) -> TorchFlow:
    """In torch alone."""
    flow = load_flow_networks(settings(torch_weights, runtime="torch"))
    assert isinstance(flow, TorchFlow)
    return flow


@pytest.fixture
def estimator(stands: dict[str, Stand]) -> Stand:
    return stands["flow_estimator"]


def test_streams_at_different_positions_get_what_torch_gives(
    torch_weights: Weights, flow: TorchFlow, estimator: Stand
) -> None:
    by_plan = load(torch_weights)
    random = np.random.default_rng(0)
    early, late = by_plan.open(), by_plan.open()
    by_torch = {id(early): flow.open(), id(late): flow.open()}

    def same(*caches: Any, frames: int) -> None:
        drawn = random.standard_normal((len(caches), 3, 80, frames), dtype=np.float32)
        speaker = np.ones(192, np.float32)
        jobs = [SolveJob(cache, *chunk[:2], speaker, chunk[2]) for cache, chunk in zip(caches, drawn, strict=True)]
        others = [SolveJob(by_torch[id(job.cache)], job.mu, job.cond, speaker, job.noise) for job in jobs]
        np.testing.assert_allclose(by_plan.solve(jobs), flow.solve(others), rtol=0, atol=1e-4)

    for _ in range(5):  # one page more than the shortest past that is read
        same(late, frames=50)
    same(early, late, frames=50)
    same(early, late, frames=50)
    same(late, early, frames=14)
    assert estimator.calls == 8 * by_plan.config.steps


@pytest.mark.parametrize("full", [False, True])
def test_the_recorded_mel_comes_out_and_full_attention_goes_to_torch(
    torch_weights: Weights,
    flow_voice: FlowVoice,
    flow_vectors: dict[str, Float],
    estimator: Stand,
    full: bool,
) -> None:
    tokens = flow_vectors["token"][0].astype(np.int32)
    mel = FlowStream(load(torch_weights), flow_voice, full=full).step(tokens, final=True)
    recorded = flow_vectors["full_offline_mel" if full else "full_stream_mel"][0]
    np.testing.assert_allclose(mel, recorded, rtol=0, atol=1e-4)
    assert (estimator.calls == 0) is full


@pytest.mark.parametrize(("pages", "planned"), [(BLOCKS[-1], True), (BLOCKS[-1] + 1, False)])
def test_more_past_than_the_ladder_has_goes_to_torch(
    torch_weights: Weights, estimator: Stand, pages: int, planned: bool
) -> None:
    flow = load(torch_weights)
    cache = flow.open()
    cache.frames.pages += flow.solve.pages.take(pages)
    chunk = np.zeros((80, 50), np.float32)
    flow.solve([SolveJob(cache, chunk, chunk, np.ones(192, np.float32), chunk)])
    assert (estimator.calls > 0) is planned


def test_the_vocoder_says_the_same_and_windows_off_the_ladder_go_to_torch(
    torch_weights: Weights, e2e_vectors: dict[str, Float], stands: dict[str, Stand]
) -> None:
    by_plan = load_hift(torch_weights, settings(torch_weights, runtime="tensorrt"))
    by_torch = load_hift_networks(settings(torch_weights, runtime="torch"))
    mel = e2e_vectors["offline_mel"][0]

    def audio(networks: HiftNetworks, mel: Float) -> Float:
        return HiftStream(networks, seed=0).step(mel, final=True)

    np.testing.assert_allclose(audio(by_plan, mel), audio(by_torch, mel), rtol=0, atol=LSB)
    calls = stands["hift_decoder"].calls
    assert calls > 0
    short = mel[:, :40]
    np.testing.assert_allclose(audio(by_plan, short), audio(by_torch, short), rtol=0, atol=LSB)
    assert stands["hift_decoder"].calls == calls


def test_where_plans_cannot_run_the_start_is_refused(torch_weights: Weights) -> None:
    with pytest.raises(WeightsError, match="^setting device: tensorrt runs on cuda, not on cpu$"):
        load_flow_networks(settings(torch_weights, runtime="tensorrt"))


@pytest.fixture
def on_an_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_networks, "installed_flavours", lambda: [TENSORRT])
    monkeypatch.setattr(tensorrt_networks, "load_tensorrt", lambda flavour: SimpleNamespace(__version__=TRT))
    monkeypatch.setattr(tensorrt_networks, "this_gpu", lambda: H200)
    monkeypatch.setattr(tensorrt_networks, "TensorrtGraph", lambda path, flavour: path)


def copied(weights: Path, folder: Path) -> Weights:
    """Weights folder with the files that plans depend on."""
    (folder / "manifest.json").write_bytes((weights / "manifest.json").read_bytes())
    return Weights(folder)


@pytest.mark.usefixtures("on_an_h200")
def test_the_plan_of_the_settings_precision_is_taken(weights: Path, tmp_path: Path) -> None:
    mine = copied(weights, tmp_path)
    paths = {
        precision: save_engine(tmp_path, EngineSpec.wanted(mine, "flow_estimator", H200, TRT, precision), b"")
        for precision in ("fp16", "bf16")
    }
    for precision, path in paths.items():
        given = Settings(device="cuda", runtime="tensorrt", precision=precision)
        assert tensorrt_networks.load_engine(mine, "flow_estimator", given) == path
    assert tensorrt_networks.load_engine(mine, "flow_estimator", Settings(device="cuda", runtime="torch")) is None


def nothing(mine: Weights) -> None:
    pass


def another_gpu(mine: Weights) -> None:
    save_engine(mine.folder, EngineSpec.wanted(mine, "flow_estimator", Gpu("NVIDIA L4", "8.9"), TRT, "fp32"), b"")


def no_graphs(mine: Weights) -> None:
    mine.manifest["graphs"].clear()
    (mine.folder / "manifest.json").write_text(json.dumps(mine.manifest), "utf-8")


@pytest.mark.usefixtures("on_an_h200")
@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (nothing, "the TensorRT plan of flow_estimator was not built; run `cosyserve-build engines`"),
        (another_gpu, "gpu NVIDIA L4, wanted NVIDIA H200"),
        (no_graphs, "flow_estimator.onnx is not in the weights folder: prepare with `--runtime onnx`"),
    ],
)
def test_errors_name_what_is_wrong_with_the_plans(
    weights: Path, tmp_path: Path, prepare: Callable[[Weights], None], reason: str
) -> None:
    mine = copied(weights, tmp_path)
    prepare(mine)
    with pytest.raises(WeightsError) as refused:
        tensorrt_networks.load_engine(mine, "flow_estimator", Settings(device="cuda", runtime="tensorrt"))
    assert str(refused.value).startswith("setting runtime: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
