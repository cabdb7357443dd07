"""Reduce the size of weights: float16 in the file, or 8 bits in the language model's matrix products.

Inputs and outputs of a graph stay float32, and rows of a batch stay independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cosyserve.errors import BundleError

_SMALL = 256  # tensors with fewer numbers stay as they are
_BLOCK = 32  # weights with one scale
_ZERO = 128  # zero point of the unsigned bytes
_INT8_PRODUCTS = 4  # accuracy level of MatMulNBits: inputs are rounded to 8 bits too, in blocks of each row


@dataclass(frozen=True)
class Precision:
    """Storage of the weights of prepared graphs.

    Attributes:
        lower: converts a model in place.
        graphs: the graphs that are converted; None is all.
        tolerance: largest difference from the network, as a share of its largest output.
    """

    lower: Callable[[onnx.ModelProto], None]
    graphs: tuple[str, ...] | None
    tolerance: float

    def changes(self, graph: str) -> bool:
        """Return whether a graph is converted."""
        return self.graphs is None or graph in self.graphs


def _half(model: onnx.ModelProto) -> None:
    """Store float32 weights as float16; the runtime widens them when it loads the graph.

    Raises:
        BundleError: a weight is too large for float16.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALL:
            continue
        with np.errstate(over="ignore"):
            half = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(half).all():
            raise BundleError(f"{tensor.name}: has values beyond the range of float16; prepare with --precision fp32")
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"{name}_widen", to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)


def _eight_bits(model: onnx.ModelProto) -> None:
    """Replace products with constant matrices by MatMulNBits, with 8-bit weights and a scale for each 32.

    The last layer, which is a Gemm with a bias, keeps its float32 weights. onnxruntime's dynamic quantisation is not an
    alternative: it has one scale for all rows of a batch, so the tokens of a stream would depend on the others.
    """
    matrices = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2}
    made: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or (name := node.input[1]) not in matrices:
            continue
        inner, outer = matrices[name].dims
        if name not in made:
            made[name] = (f"{name}_bytes", f"{name}_scales")
            parts = zip(made[name], _blocks(numpy_helper.to_array(matrices[name])), strict=True)
            model.graph.initializer.extend(numpy_helper.from_array(part, called) for called, part in parts)
        node.op_type, node.domain = "MatMulNBits", "com.microsoft"
        node.input[1:] = made[name]
        sizes = {"K": inner, "N": outer, "bits": 8, "block_size": _BLOCK, "accuracy_level": _INT8_PRODUCTS}
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sizes.items())
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    if made:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _blocks(matrix: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Quantise a matrix [K, N] to uint8 [N, blocks, 32] and float32 scales [N, blocks]: (uint8 - 128) * scale."""
    padded = np.pad(matrix.T, ((0, 0), (0, -len(matrix) % _BLOCK)))
    blocks = padded.reshape(len(padded), -1, _BLOCK)
    scales = np.abs(blocks).max(axis=2) / (_ZERO - 1)
    steps = np.round(blocks / np.where(scales == 0, 1, scales)[..., None])
    return (steps + _ZERO).astype(np.uint8), scales.astype(np.float32)


PRECISIONS = {
    "fp32": None,
    "int8": Precision(_eight_bits, ("llm",), 0.1),
    "fp16": Precision(_half, None, 0.01),
}
