"""Stack the state tensors of an ONNX graph; see `cosyserve.runtimes.stacking`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from cosyserve.runtimes.stacking import Stack, row_size, stacked_shapes, stacks


def stacked(model: ModelProto) -> ModelProto:
    """Return a copy of a graph whose state tensors are stacked into fewer inputs and outputs.

    Args:
        model: the graph with its weights loaded.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    before, after = _unstack_inputs(graph), _stack_outputs(graph)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(copy)
    return copy


def _unstack_inputs(graph: onnx.GraphProto) -> list[NodeProto]:
    nodes = []
    for name, stack, shapes in _stack(graph.input):
        parts = [f"{member}_part" for member in stack.members]
        if stack.layers:
            nodes.append(helper.make_node("Split", [name], parts, axis=0, num_outputs=len(parts)))
            axis = _constant(graph, f"{name}_layer_axis", [0])
            made = zip(parts, stack.members, strict=True)
            nodes += [helper.make_node("Squeeze", [part, axis], [member]) for part, member in made]
        else:
            sizes = _constant(graph, f"{name}_sizes", [row_size(shape) for shape in shapes])
            nodes.append(helper.make_node("Split", [name, sizes], parts, axis=1))
            for part, member, shape in zip(parts, stack.members, shapes, strict=True):
                wanted = _constant(graph, f"{member}_shape", [-1, *map(int, shape[1:])])
                nodes.append(helper.make_node("Reshape", [part, wanted], [member]))
    return nodes


def _stack_outputs(graph: onnx.GraphProto) -> list[NodeProto]:
    nodes = []
    for name, stack, _ in _stack(graph.output):
        parts = [f"{member}_part" for member in stack.members]
        for part, member in zip(parts, stack.members, strict=True):
            if stack.layers:
                axis = _constant(graph, f"{name}_layer_axis", [0])
                nodes.append(helper.make_node("Unsqueeze", [member, axis], [part]))
            else:
                nodes.append(helper.make_node("Flatten", [member], [part], axis=1))
        nodes.append(helper.make_node("Concat", parts, [name], axis=0 if stack.layers else 1))
    return nodes


def _stack(infos: list[ValueInfoProto]) -> Iterator[tuple[str, Stack, list[list[int | str]]]]:
    """Put one tensor in place of each stack's members; yield its name, the stack, and the shapes of the members."""
    known = {info.name: info for info in infos}
    for name, stack in stacks(list(known)).items():
        members = [known[member] for member in stack.members]
        shapes = [_shape(info) for info in members]
        kind = members[0].type.tensor_type.elem_type
        for info in members:
            infos.remove(info)
        stacked_shape = stacked_shapes(dict(zip(stack.members, shapes, strict=True)))[name]
        infos.append(helper.make_tensor_value_info(name, kind, stacked_shape))
        yield name, stack, shapes


def _shape(info: ValueInfoProto) -> list[int | str]:
    return [axis.dim_param or int(axis.dim_value) for axis in info.type.tensor_type.shape.dim]


def _constant(graph: onnx.GraphProto, name: str, values: list[int]) -> str:
    """Add an int64 constant with these values, and return its name."""
    if all(tensor.name != name for tensor in graph.initializer):
        tensor: TensorProto = numpy_helper.from_array(np.asarray(values, np.int64), name)
        graph.initializer.append(tensor)
    return name
