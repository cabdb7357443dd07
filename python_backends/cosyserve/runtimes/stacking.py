"""How the state tensors of a graph are gathered, so that a TensorRT plan has some fifteen tensors instead of four
hundred: each costs a plan's caller some microseconds of every Euler step.

What lies side by side in memory anyway becomes one tensor: keys of each layer, then values, and all convolution tails.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cosyserve.runtimes.buckets import Axis

_NUMBERED = re.compile(r"(?P<list>(?P<part>.+?)(?P<kind>_[kv])?)_(?P<index>\d+)")


@dataclass
class Stack:
    """One tensor in place of several.

    Attributes:
        layers: keys and values, which become ``[2 * layers, ...]``; other tensors ``[rows, ...]`` are flattened and
            joined to ``[rows, sum]``.
        members: names of the tensors in it, in order.
    """

    layers: bool
    members: list[str] = field(default_factory=list)


def stacks(names: Iterable[str]) -> dict[str, Stack]:
    """The stacks of a graph's tensors by name.

    Keys and values ``past_k_0``, ..., ``past_v_0``, ... become ``past``; other numbered tensors ``tails_0``, ... become
    ``tails``.
    """
    numbered = [(found, name) for name in names if (found := _NUMBERED.fullmatch(name))]
    numbered.sort(key=lambda pair: (pair[0]["list"], int(pair[0]["index"])))
    made: dict[str, Stack] = {}
    for found, name in numbered:
        made.setdefault(found["part"], Stack(layers=found["kind"] is not None)).members.append(name)
    return made


def stacked_shapes(shapes: Mapping[str, Sequence[Axis]]) -> dict[str, list[Axis]]:
    """Shapes of a graph's tensors after stacking, from those before."""
    groups = stacks(shapes)
    inside = {name for stack in groups.values() for name in stack.members}
    stacked: dict[str, list[Axis]] = {name: list(shape) for name, shape in shapes.items() if name not in inside}
    for name, stack in groups.items():
        parts = [shapes[member] for member in stack.members]
        stacked[name] = [len(parts), *parts[0]] if stack.layers else [parts[0][0], sum(map(row_size, parts))]
    return stacked


def row_size(shape: Sequence[Axis]) -> int:
    """Numbers in each row of a tensor whose first axis alone varies."""
    return math.prod(int(axis) for axis in shape[1:])
