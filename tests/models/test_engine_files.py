"""TensorRT plans: the checks that need no TensorRT, and builds where it is installed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from cosyserve.errors import WeightsError
from cosyserve.runtimes import buckets
from cosyserve.runtimes.engine_files import ANY, RTX, EngineSpec, Gpu, find_engine, profile, save_engine
from cosyserve.runtimes.stacking import stacked_shapes, stacks
from cosyserve.weights import Weights
from cosyserve_build import operators
from cosyserve_build.autocast import autocast
from cosyserve_build.cli import app
from cosyserve_build.engines import engines, typed
from cosyserve_build.stacked import stacked

GRAPHS = ("flow_estimator", "hift_decoder")
H200 = Gpu("NVIDIA H200", "9.0")
TRT = "10.15.1.29"
every_graph = pytest.mark.parametrize("graph", GRAPHS)
without_tensorrt = pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
RTX_VERSION = "1.7.1.116"
with_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
with_tensorrt = pytest.mark.skipif(find_spec("tensorrt") is None, reason="TensorRT is not installed")


@pytest.fixture
def folder(weights: Path, tmp_path: Path) -> Path:
    """Weights folder with the files that plans depend on."""
    shutil.copy(weights / "manifest.json", tmp_path)
    return tmp_path


def one_node(op: str, domain: str = "", kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    node = helper.make_node(op, ["x"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", [info("x", kind, [2, 2])], [info("y", kind, [2, 2])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("own", 1)])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["engines", *map(str, arguments)])


@every_graph
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_graphs_use_only_what_tensorrt_has(weights: Path, graph: str, precision: str) -> None:
    model = typed(onnx.load(str(weights / f"{graph}.onnx")), precision)
    onnx.checker.check_model(model, full_check=True)
    operators.check(graph, model)


@pytest.mark.parametrize(("op", "domain", "named"), [("Det", "", "Det"), ("Relu", "own", "own::Relu")])
def test_an_operator_off_the_list_is_named(op: str, domain: str, named: str) -> None:
    operators.check("g", one_node("Relu"))
    with pytest.raises(WeightsError, match=f"^g: TensorRT has no operator {named}$"):
        operators.check("g", one_node(op, domain))


@pytest.mark.parametrize("graph", ["hift_f0", "hift_source"])
def test_float64_is_refused_rather_than_rounded(weights: Path, graph: str) -> None:
    with pytest.raises(WeightsError, match=f"^{graph}: TensorRT does not compute in DOUBLE"):
        operators.check(graph, onnx.load(str(weights / f"{graph}.onnx")))


@every_graph
def test_a_profile_covers_every_rung_of_every_axis(weights: Path, graph: str) -> None:
    prepared = Weights(weights)
    entries = prepared.manifest["graphs"][graph]["inputs"]
    inputs = stacked_shapes({name: entry["shape"] for name, entry in entries.items()})
    shapes = profile(prepared, graph)
    rungs = buckets.axes(graph, prepared.config)
    model = stacked(onnx.load(str(weights / f"{graph}.onnx")))
    free = {i.name for i in model.graph.input if any(d.dim_param for d in i.type.tensor_type.shape.dim)}
    assert set(shapes) == free
    for name, (least, usual, greatest) in shapes.items():
        assert all(a <= b <= c for a, b, c in zip(least, usual, greatest, strict=True)), name
        for sizes in product(*rungs.values()):
            named = dict(zip(rungs, sizes, strict=True))
            # The axes are products such as 2*batch, which is also how Python writes them.
            shape = [eval(str(axis), {}, named) for axis in inputs[name]]
            assert all(a <= b <= c for a, b, c in zip(least, shape, greatest, strict=True)), (name, named)


def test_the_ladder_reaches_what_streams_need(weights: Path) -> None:
    sizes = buckets.axes("flow_estimator", Weights(weights).config)
    assert sizes["batch"] == (1, 2, 4, 8, 16, 32)
    assert (sizes["new"][-1], sizes["prompt"][-1], sizes["past"][-1]) == (50, 1600, 1600)
    assert sizes["prompt"][0] == sizes["past"][0] == 1
    assert buckets.axes("hift_decoder", Weights(weights).config)["frames"] == (64, 96, 128, 192, 320)


def test_an_axis_without_rungs_is_named() -> None:
    with pytest.raises(WeightsError, match="^input mel: the ladder has no sizes for its axis frames$"):
        buckets.profile({"mel": ["2*batch", 80, "frames"]}, {"batch": (1, 2)})


def feed(session: ort.InferenceSession) -> dict[str, NDArray[Any]]:
    sizes = {"batch": 2, "new": 50, "prompt": 100, "past": 50}
    draw = np.random.default_rng(0)
    inputs: dict[str, NDArray[Any]] = {
        "t": np.array([0.37, 0.91], np.float32),
        "prompt_length": np.array([100, 90]),
        "length": np.array([50, 7]),
        "position": np.array([150, 97]),
    }
    for item in session.get_inputs():
        if item.name not in inputs:
            shape = [eval(str(axis), {}, sizes) for axis in item.shape]
            kind = np.float16 if item.type == "tensor(float16)" else np.float32
            inputs[item.name] = draw.standard_normal(shape).astype(kind)
    names = {item.name for item in session.get_inputs()}
    return {name: value for name, value in inputs.items() if name in names}


def test_products_in_half_precision_change_little(weights: Path) -> None:
    full = ort.InferenceSession(str(weights / "flow_estimator.onnx"))
    half = ort.InferenceSession(autocast(onnx.load(str(weights / "flow_estimator.onnx")), "fp16").SerializeToString())
    inputs = feed(full)
    halves = {item.name for item in half.get_inputs() if item.type == "tensor(float16)"}
    assert {name.rstrip("0123456789") for name in halves} == {"prompt_k_", "prompt_v_", "past_k_", "past_v_"}
    expected = full.run(None, inputs)
    found = half.run(None, {k: v.astype(np.float16) if k in halves else v for k, v in inputs.items()})
    for item, a, b in zip(half.get_outputs(), expected, found, strict=True):
        assert (b.dtype == np.float16) == item.name.startswith(("new_k", "new_v")), item.name
        # Half precision has 11 digits; rounding the flow time to it alone would miss this by far.
        assert np.abs(a - b).max() <= 2e-3 * np.abs(a).max(), item.name


def test_a_graph_is_not_changed_by_its_copy_in_half_precision(weights: Path) -> None:
    model = onnx.load(str(weights / "flow_estimator.onnx"))
    before = model.SerializeToString(deterministic=True)
    autocast(model, "bf16")
    assert model.SerializeToString(deterministic=True) == before


@without_tensorrt
def test_the_command_checks_all_it_can_and_says_what_to_install(weights: Path) -> None:
    result = run(weights)
    assert result.exit_code == 1
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == list(GRAPHS)
    assert result.stderr.startswith("error: TensorRT is not installed: pip install")
    assert result.stderr.count("\n") == 1
    assert not (weights / "plans").exists()


def test_a_graph_without_a_ladder_is_refused(weights: Path) -> None:
    result = run(weights, "--graphs", "hift_decoder,llm")
    assert result.exit_code == 1
    assert result.stderr == "error: llm has no shape ladder; there is one for flow_estimator, hift_decoder\n"


def test_a_plan_that_fits_is_found(folder: Path) -> None:
    wanted = EngineSpec.wanted(Weights(folder), "flow_estimator", H200, TRT, "fp16")
    other = EngineSpec.wanted(Weights(folder), "flow_estimator", Gpu("NVIDIA L4", "8.9"), TRT, "fp16")
    save_engine(folder, other, b"other")
    path = save_engine(folder, wanted, b"plan")
    assert path.name.startswith(f"flow_estimator-nvidia-h200-sm90-trt{TRT}-fp16-")
    assert find_engine(folder, "flow_estimator", H200, TRT, "fp16") == path
    assert path.read_bytes() == b"plan"
    assert {file.suffix for file in path.parent.iterdir()} == {".plan", ".json"}


def test_the_vocoder_is_float32_whatever_is_asked(folder: Path) -> None:
    path = save_engine(folder, EngineSpec.wanted(Weights(folder), "hift_decoder", H200, TRT, "fp32"), b"")
    assert find_engine(folder, "hift_decoder", H200, TRT, "fp16") == path


def test_missing_plans_are_reported(folder: Path) -> None:
    save_engine(folder, EngineSpec.wanted(Weights(folder), "hift_decoder", H200, TRT, "fp32"), b"")
    with pytest.raises(WeightsError, match="^the TensorRT plan of flow_estimator was not built; run `cosyserve-build"):
        find_engine(folder, "flow_estimator", H200, TRT, "fp16")


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("flavour", "TensorRT-RTX"),
        ("gpu", "NVIDIA L4"),
        ("capability", "8.9"),
        ("tensorrt", "10.14.0"),
        ("precision", "bf16"),
        ("profile", "0" * 12),
        ("sha256", "0" * 64),
    ],
)
def test_a_plan_for_something_else_is_refused_with_both_values(folder: Path, field: str, found: str) -> None:
    wanted = EngineSpec.wanted(Weights(folder), "flow_estimator", H200, TRT, "fp16")
    save_engine(folder, replace(wanted, **{field: found}), b"")
    with pytest.raises(WeightsError) as refusal:
        find_engine(folder, "flow_estimator", H200, TRT, "fp16")
    assert f"({field} {found}, wanted {getattr(wanted, field)})" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_changed_weights_need_new_plans(folder: Path) -> None:
    save_engine(folder, EngineSpec.wanted(Weights(folder), "hift_decoder", H200, TRT, "fp32"), b"")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["files"]["hift_decoder.onnx.data"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(WeightsError, match="sha256"):
        find_engine(folder, "hift_decoder", H200, TRT, "fp32")


@pytest.mark.parametrize("content", [None, "no JSON", '{"gpu": "NVIDIA H200"}', "[]"])
def test_a_plan_without_a_description_is_refused(folder: Path, content: str | None) -> None:
    path = save_engine(folder, EngineSpec.wanted(Weights(folder), "hift_decoder", H200, TRT, "fp32"), b"")
    beside = path.with_suffix(".json")
    beside.unlink() if content is None else beside.write_text(content)
    with pytest.raises(WeightsError, match="its JSON cannot be read"):
        find_engine(folder, "hift_decoder", H200, TRT, "fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stacked_graph_computes_the_same_with_few_tensors(any_weights: Path, precision: str) -> None:
    plain = typed(onnx.load(str(any_weights / "flow_estimator.onnx")), precision)
    made = stacked(plain)
    operators.check("flow_estimator", made)
    assert len(made.graph.input) + len(made.graph.output) <= 15
    sessions = [ort.InferenceSession(model.SerializeToString()) for model in (plain, made)]
    inputs = feed(sessions[0])
    assert {item.name: item.shape for item in sessions[1].get_inputs()} == stacked_shapes(
        {item.name: item.shape for item in sessions[0].get_inputs()}
    )
    expected, found = (
        dict(zip([o.name for o in session.get_outputs()], session.run(None, given), strict=True))
        for session, given in zip(sessions, (inputs, joined(inputs)), strict=True)
    )
    for name, value in joined(expected).items():
        np.testing.assert_array_equal(found[name], value)


def joined(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays stacked as a plan takes and gives them."""
    left = dict(arrays)
    for name, stack in stacks(arrays).items():
        parts = [left.pop(member) for member in stack.members]
        left[name] = np.stack(parts) if stack.layers else np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1)
    return left


def test_stacks_keep_the_order_of_their_numbers() -> None:
    names = [f"past_{kind}_{index}" for index in range(12) for kind in "vk"]
    (stack,) = stacks(sorted(names)).values()
    assert stack.members == [f"past_k_{i}" for i in range(12)] + [f"past_v_{i}" for i in range(12)]


@pytest.mark.parametrize("name", ["89", "sm8.9", "ada", "sm"])
def test_an_invalid_compute_capability_is_refused(weights: Path, name: str) -> None:
    result = run(weights, "--rtx", name)
    assert result.exit_code == 1
    assert result.stderr == f"error: {name}: not a compute capability; write sm89, for example\n"


def test_a_plan_of_tensorrt_rtx_fits_every_card_of_its_capability(folder: Path) -> None:
    spec = EngineSpec.wanted(Weights(folder), "hift_decoder", Gpu(ANY, "8.9"), RTX_VERSION, "fp32", RTX)
    path = save_engine(folder, spec, b"plan")
    assert path.name.startswith(f"hift_decoder-any-sm89-rtx{RTX_VERSION}-fp32-")
    for card in ("NVIDIA L4", "NVIDIA GeForce RTX 4090"):
        assert find_engine(folder, "hift_decoder", Gpu(card, "8.9"), RTX_VERSION, "fp32", RTX) == path
    with pytest.raises(WeightsError, match="capability 8.9, wanted 12.0"):
        find_engine(folder, "hift_decoder", Gpu("NVIDIA GeForce RTX 5090", "12.0"), RTX_VERSION, "fp32", RTX)
    with pytest.raises(WeightsError, match="flavour TensorRT-RTX, wanted TensorRT"):
        find_engine(folder, "hift_decoder", Gpu("NVIDIA L4", "8.9"), TRT, "fp32")


@with_rtx
def test_tensorrt_rtx_builds_a_plan_without_a_gpu(weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(weights, tmp_path / "weights")
    result = run(folder, "--graphs", "hift_decoder", "--rtx", "sm89")
    assert result.exit_code == 0, result.stderr
    (plan,) = (folder / "plans").glob("hift_decoder-any-sm89-rtx*.plan")
    assert plan.stat().st_size > 100_000


@with_rtx
def test_a_capability_that_tensorrt_rtx_does_not_know_is_refused(weights: Path) -> None:
    result = run(weights, "--graphs", "hift_decoder", "--rtx", "sm50")
    assert result.exit_code == 1
    assert result.stderr.endswith("builds nothing for compute capability 5.0\n")


@with_tensorrt
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 1e-2)])
def test_a_plan_computes_what_onnxruntime_does(weights: Path, tmp_path: Path, precision: str, tolerance: float) -> None:
    torch, trt = pytest.importorskip("torch"), pytest.importorskip("tensorrt")
    from cosyserve.runtimes.tensorrt import TensorrtGraph, this_gpu

    folder = shutil.copytree(weights, tmp_path / "weights")
    engines(folder, precision, ["flow_estimator"])
    graph = TensorrtGraph(find_engine(folder, "flow_estimator", this_gpu(), trt.__version__, precision))
    session = ort.InferenceSession(str(weights / "flow_estimator.onnx"))
    inputs = feed(session)
    found = graph({name: torch.from_numpy(value).cuda() for name, value in joined(inputs).items()})
    outputs = dict(zip([item.name for item in session.get_outputs()], session.run(None, inputs), strict=True))
    for name, expected in joined(outputs).items():
        error = np.abs(found[name].float().cpu().numpy() - expected).max()
        assert error <= tolerance * np.abs(expected).max(), name
