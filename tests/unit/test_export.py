"""Exporting: a graph that is not the network is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from cosyserve.errors import BundleError
from cosyserve.runtimes.onnx import OnnxGraph
from cosyserve_build.export import Spec, export


class Toy(nn.Module):
    """Has all that the networks have: weights, a list of states in and out, an axis that varies."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y = self.layer(x)
        return y + past[0].sum(1, keepdim=True), [torch.cat([p, y], dim=1) for p in past]


class WrongAlways(Toy):
    """A network that the exporter gets wrong."""

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = super().forward(x, past)
        return (y + 0.5 if torch.compiler.is_exporting() else y), states


class WrongLater(Toy):
    """A network that the exporter gets right at the size that it saw only."""

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = super().forward(x, past)
        return y * (5 if torch.compiler.is_exporting() else x.shape[1]), states


class NotANumber(Toy):
    """A network whose results are no numbers."""

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = super().forward(x, past)
        return y * torch.nan, states


class WrongState(Toy):
    """A network whose second state the exporter gets wrong."""

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
