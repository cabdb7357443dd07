"""Write ONNX graphs with random weights: speaker model and speech tokenizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def _save_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray[Any]],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
) -> None:
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_campplus(path: Path, speaker: int, rng: np.random.Generator) -> None:
    """Write a graph from fbank f32 [B,T,80] to a speaker vector f32 [B,192]: projected time mean of tanh features."""
    weights: dict[str, NDArray[Any]] = {
        "inner": rng.standard_normal((80, speaker), dtype=np.float32) / np.float32(math.sqrt(80)),
        "outer": rng.standard_normal((speaker, speaker), dtype=np.float32) * np.float32(0.5),
    }
    nodes = [
        helper.make_node("MatMul", ["input", "inner"], ["projected"]),
        helper.make_node("Tanh", ["projected"], ["features"]),
        helper.make_node("ReduceMean", ["features"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "outer"], ["output"]),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", "T", 80])]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", speaker])
    _save_graph(path, nodes, weights, inputs, output)


def write_speech_tokenizer(path: Path, rng: np.random.Generator, digits: int, halvings: int) -> None:
    """Write a graph of two convolutions from log-mel f32 [B,128,T] to ids i32 [B,ceil(T / 2**halvings)].

    Args:
        path: of the file.
        rng: draws the weights.
        digits: number of ternary digits of an id, which is below 3**digits.
        halvings: number of convolutions with stride 2, 1 or 2.
    """
    width = 32
    weights: dict[str, NDArray[Any]] = {
        "stem": rng.standard_normal((width, 128, 3), dtype=np.float32) / np.float32(math.sqrt(128)),
        "head": rng.standard_normal((digits, width, 3), dtype=np.float32) / np.float32(math.sqrt(width)),
        "zero": np.array(0, np.int32),
        "one": np.array(1, np.int32),
        "last": np.array(2, np.int64),
        "axes": np.array([1, 2], np.int64),
        "below_one": np.array(0.999, np.float32),
        "unit": np.array(1, np.float32),
        "places": (3.0 ** np.arange(digits, dtype=np.float32)).reshape(1, digits, 1),
    }
    convolution: dict[str, Any] = {"kernel_shape": [3], "pads": [1, 1]}
    nodes = [
        helper.make_node("Shape", ["feats"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["frames64"]),
        helper.make_node("Cast", ["frames64"], ["frames"], to=TensorProto.INT32),
        helper.make_node("Range", ["zero", "frames", "one"], ["positions"]),
        helper.make_node("Unsqueeze", ["feats_length", "axes"], ["lengths"]),
        helper.make_node("Less", ["positions", "lengths"], ["valid"]),
        helper.make_node("Cast", ["valid"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["feats", "mask"], ["masked"]),
        helper.make_node("Conv", ["masked", "stem"], ["stem_out"], strides=[halvings], **convolution),
        helper.make_node("Relu", ["stem_out"], ["hidden"]),
        helper.make_node("Conv", ["hidden", "head"], ["codes"], strides=[2], **convolution),
        helper.make_node("Tanh", ["codes"], ["bounded"]),
        helper.make_node("Mul", ["bounded", "below_one"], ["shrunk"]),
        helper.make_node("Round", ["shrunk"], ["rounded"]),
        helper.make_node("Add", ["rounded", "unit"], ["digits"]),
        helper.make_node("Mul", ["digits", "places"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "digit_axis"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["indices"], to=TensorProto.INT32),
    ]
    weights["digit_axis"] = np.array([1], np.int64)
    inputs = [
        helper.make_tensor_value_info("feats", TensorProto.FLOAT, ["B", 128, "T"]),
        helper.make_tensor_value_info("feats_length", TensorProto.INT32, ["B"]),
    ]
    _save_graph(path, nodes, weights, inputs, helper.make_tensor_value_info("indices", TensorProto.INT32, ["B", "N"]))
