"""Export: a graph that differs from its network is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from cosyserve.errors import BundleError
from cosyserve.runtimes.onnx.graph import OnnxGraph
from cosyserve_build.export import Spec, export
from cosyserve_build.precision import PRECISIONS


class Toy(nn.Module):
    """Has all that the networks have: weights, a list of states in and out, an axis that varies."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y = self.layer(x)
        return y + past[0].sum(1, keepdim=True), [torch.cat([p, y], dim=1) for p in past]


class WrongAlways(Toy):
    """Network that the exporter converts wrongly."""

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = super().forward(x, past)
        return (y + 0.5 if torch.compiler.is_exporting() else y), states


class WrongLater(Toy):
    """Network whose graph is right only at the exported size."""

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = super().forward(x, past)
        return y * (5 if torch.compiler.is_exporting() else x.shape[1]), states


class NotANumber(Toy):
    """Network whose results are NaN."""

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = super().forward(x, past)
        return y * torch.nan, states


class WrongState(Toy):
    """Network whose second state the exporter converts wrongly."""

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = super().forward(x, past)
        return y, [states[0], states[1] * (2 if torch.compiler.is_exporting() else 1)]


def spec(module: nn.Module) -> Spec:
    return Spec(
        "toy",
        module,
        inputs=lambda new, held: {
            "x": torch.randn(1, new, 16),
            "past": [torch.randn(1, held, 16), torch.randn(1, held, 16)],
        },
        sizes=({"new": 5, "held": 4}, {"new": 7, "held": 9}),
        axes={"x": {1: "new"}, "past": {1: "held"}},
        outputs=("y", "states*"),
    )


def test_a_good_graph_equals_the_network_at_other_sizes(tmp_path: Path) -> None:
    module = Toy()
    export(spec(module), tmp_path)
    x, past = torch.randn(1, 3, 16), [torch.randn(1, 12, 16) for _ in range(2)]
    with torch.inference_mode():
        y, states = module(x, past)
    found = OnnxGraph(tmp_path / "toy.onnx")({"x": x.numpy(), "past": [p.numpy() for p in past]})
    np.testing.assert_allclose(found["y"], y.numpy(), rtol=0, atol=1e-5)
    for got, want in zip(found.many("states"), states, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-6)


def test_the_manifest_entry_names_files_tensors_and_axes(tmp_path: Path) -> None:
    entry = export(spec(Toy()), tmp_path)
    assert entry["files"] == ["toy.onnx", "toy.onnx.data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == entry["files"]
    assert entry["inputs"] == {
        "x": {"dtype": "FLOAT", "shape": [1, "new", 16]},
        "past_0": {"dtype": "FLOAT", "shape": [1, "held", 16]},
        "past_1": {"dtype": "FLOAT", "shape": [1, "held", 16]},
    }
    assert list(entry["outputs"]) == ["y", "states_0", "states_1"]


def test_weights_lie_beside_the_graph_and_neither_tells_where_it_was_made(tmp_path: Path) -> None:
    export(spec(Toy()), tmp_path)
    graph = (tmp_path / "toy.onnx").read_bytes()
    for trace in (b"/home", str(Path(__file__).parents[2]).encode(), b"site-packages", b"test_export"):
        assert trace not in graph
    external = onnx.load(tmp_path / "toy.onnx", load_external_data=False).graph.initializer
    assert any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in external)


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    export(spec(Toy()), tmp_path)
    size = (tmp_path / "toy.onnx.data").stat().st_size
    export(spec(Toy()), tmp_path)
    assert (tmp_path / "toy.onnx.data").stat().st_size == size


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (WrongAlways(), "y differs from torch by 0.5 at {'new': 5, 'held': 4}"),
        (WrongLater(), r"y differs from torch by \S+ at {'new': 7, 'held': 9}"),
        (NotANumber(), "y differs from torch by nan"),
        (WrongState(), "states_1 differs from torch"),
    ],
)
def test_a_graph_that_is_not_the_network_is_refused(module: nn.Module, problem: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=rf"^toy\.onnx: {problem}"):
        export(spec(module), tmp_path)


def test_the_tolerance_is_the_specification_s(tmp_path: Path) -> None:
    export(replace(spec(WrongAlways()), tolerance=0.6), tmp_path)


class Wide(nn.Module):
    """Products as in a language model: two with constant weights, of which one has a bias, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(40, 64, bias=False)  # 40 is no multiple of a block
        self.last = nn.Linear(64, 96)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return self.last(y[:, -1]), y @ past


def wide(name: str, module: nn.Module) -> Spec:
    return Spec(
        name,
        module,
        inputs=lambda batch, new: {"x": torch.randn(batch, new, 40), "past": torch.randn(batch, 64, 8)},
        sizes=({"batch": 2, "new": 3}, {"batch": 3, "new": 1}),
        axes={"x": {0: "batch", 1: "new"}, "past": {0: "batch"}},
        outputs=("logits", "mixed"),
    )


def initializers(path: Path) -> dict[int, int]:
    """Numbers in the weights by their type."""
    found: dict[int, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        found[tensor.data_type] = found.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
    return found


def test_int8_keeps_the_contract_and_comes_near(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Wide()
    (tmp_path / "plain").mkdir()
    plain = export(wide("llm", module), tmp_path / "plain")
    entry = export(wide("llm", module), tmp_path, PRECISIONS["int8"])
    assert entry == plain
    numbers = initializers(tmp_path / "llm.onnx")
    assert numbers[onnx.TensorProto.UINT8] == 64 * 64  # filled up to whole blocks
    assert numbers[onnx.TensorProto.FLOAT] == 64 * 2 + 64 * 96 + 96  # scales; the last layer stays
    x, past = torch.randn(5, 1, 40), torch.randn(5, 64, 8)
    with torch.inference_mode():
        logits, mixed = module(x, past)
    found = OnnxGraph(tmp_path / "llm.onnx")({"x": x.numpy(), "past": past.numpy()})
    for got, want in ((found["logits"], logits.numpy()), (found["mixed"], mixed.numpy())):
        error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
        assert 0 < error < 0.02


def test_int8_rows_do_not_depend_on_their_neighbours(tmp_path: Path) -> None:
    export(wide("llm", Wide()), tmp_path, PRECISIONS["int8"])
    graph = OnnxGraph(tmp_path / "llm.onnx")
    x, past = torch.randn(4, 1, 40).numpy(), torch.randn(4, 64, 8).numpy()
    alone = graph({"x": x[:1], "past": past[:1]})["logits"]
    x[1:] *= 100
    np.testing.assert_allclose(graph({"x": x, "past": past})["logits"][:1], alone, rtol=0, atol=1e-6)


def test_int8_is_for_the_language_model_alone(tmp_path: Path) -> None:
    export(wide("flow_estimator", Wide()), tmp_path, PRECISIONS["int8"])
    assert set(initializers(tmp_path / "flow_estimator.onnx")) <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_fp16_halves_the_file_and_keeps_the_contract(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Wide()
    (tmp_path / "plain").mkdir()
    plain = export(wide("hift", module), tmp_path / "plain")
    assert export(wide("hift", module), tmp_path, PRECISIONS["fp16"]) == plain
    assert initializers(tmp_path / "hift.onnx")[onnx.TensorProto.FLOAT16] == 40 * 64 + 64 * 96
    sizes = [(folder / "hift.onnx.data").stat().st_size for folder in (tmp_path, tmp_path / "plain")]
    assert sizes[0] < 0.6 * sizes[1]
    x, past = torch.randn(2, 2, 40), torch.randn(2, 64, 8)
    rounded = Wide()
    rounded.load_state_dict({name: value.half().float() for name, value in module.state_dict().items()})
    rounded.last.bias = module.last.bias  # too small to be worth it
    with torch.inference_mode():
        logits, _ = rounded(x, past)
    found = OnnxGraph(tmp_path / "hift.onnx")({"x": x.numpy(), "past": past.numpy()})
    np.testing.assert_allclose(found["logits"], logits.numpy(), rtol=0, atol=1e-5)


def test_weights_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    module = Wide()
    with torch.no_grad():
        module.first.weight[0, 0] = 1e6
    with pytest.raises(BundleError, match=r"beyond the range of float16; prepare with --precision fp32$"):
        export(wide("llm", module), tmp_path, PRECISIONS["fp16"])


def test_a_graph_spoilt_by_rounding_is_refused(tmp_path: Path) -> None:
    precision = PRECISIONS["int8"]
    assert precision
    with pytest.raises(BundleError, match=r"^llm\.onnx: \w+ differs from torch"):
        export(wide("llm", Wide()), tmp_path, replace(precision, tolerance=1e-5))
