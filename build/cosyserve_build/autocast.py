"""Mixed precision written into an ONNX graph, which strongly typed TensorRT needs in place of precision flags.

The rule is that of torch.autocast: matrix products and convolutions in half precision, everything else in float32. So
norms, softmax, masks, residual sums and the time embedding (sines of angles up to 1000) keep their range. The KV
cache is half precision at the graph's inputs and outputs too: it takes most of the memory, and only products read it.
"""

from __future__ import annotations

import re

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

OPSET = 22
"""First opset whose convolutions accept bfloat16."""

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_CACHE = re.compile(r"(prompt|past|new)_[kv]_\d+")


def autocast(model: ModelProto, precision: str) -> ModelProto:
    """Return a copy of a float32 graph whose products compute in half precision.

    Args:
        model: the graph with its weights loaded; nodes in execution order, as ONNX demands.
        precision: ``fp16`` or ``bf16``.
    """
    cast: ModelProto = version_converter.convert_version(model, OPSET)
    _Rewriter(cast.graph, HALF[precision]).run()
    return cast


class _Rewriter:
    def __init__(self, graph: onnx.GraphProto, half: int) -> None:
        self.graph, self.half = graph, half
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.caches = {info.name for info in (*graph.input, *graph.output) if _CACHE.fullmatch(info.name)}
        self.halves = {info.name for info in graph.input if info.name in self.caches}
        self.nodes: list[NodeProto] = []
        self.made: set[str] = set()

    def run(self) -> None:
        for info in (*self.graph.input, *self.graph.output):
            if info.name in self.caches:
                info.type.tensor_type.elem_type = self.half
        for node in self.graph.node:
            self._rewrite(node)
        del self.graph.value_info[:]
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        weights = [tensor for name, tensor in self.weights.items() if name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(weights)

    def _rewrite(self, node: NodeProto) -> None:
        product = node.op_type in _PRODUCTS
        # A transposed cache stays in half precision until its product.
        through = node.op_type == "Transpose" and node.input[0] in self.halves
        if node.op_type != "Shape":
            read = self._as_half if product or through else self._as_full
            node.input[:] = [read(name) for name in node.input]
        self.nodes.append(node)
        for i, name in enumerate(node.output):
            made, wanted = product or through, through or name in self.caches
            if wanted:
                self.halves.add(name)
            if made != wanted:
                node.output[i] = f"{name}_uncast"
                self._cast(node.output[i], name, self.half if wanted else TensorProto.FLOAT)

    def _as_half(self, name: str) -> str:
        if not name or name in self.halves:
            return name
        half = f"{name}_half"
        if name in self.weights:
            if half not in self.weights:
                values = numpy_helper.to_array(self.weights[name]).astype(helper.tensor_dtype_to_np_dtype(self.half))
                self.weights[half] = numpy_helper.from_array(values, half)
        elif half not in self.made:
            self._cast(name, half, self.half)
        return half

    def _as_full(self, name: str) -> str:
        if name not in self.halves:
            return name
        full = f"{name}_full"
        if full not in self.made:
            self._cast(name, full, TensorProto.FLOAT)
        return full

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], to=kind))
        self.made.add(target)
