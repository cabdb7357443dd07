"""What every runtime offers: a network as a function from named arrays to named arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

Array = NDArray[np.generic]
Arrays = Mapping[str, Array | Sequence[Array]]
"""Inputs by name; a list stands for the numbered inputs ``name_0``, ``name_1``, ..."""


class Outputs(dict[str, NDArray[np.float32]]):
    """Outputs by name, with the numbered ones as lists under ``many(name)``."""

    def many(self, name: str) -> list[NDArray[np.float32]]:
        """Outputs ``name_0``, ``name_1``, ... in order."""
        found: list[NDArray[np.float32]] = []
        while (key := f"{name}_{len(found)}") in self:
            found.append(self[key])
        return found


class Graph(Protocol):
    """One network with explicit state: same arrays in, same arrays out, whichever runtime runs it."""

    def __call__(self, inputs: Arrays) -> Outputs:
        """Run once. Inputs and outputs are float32 unless the graph's specification says otherwise."""
        ...


def flat(inputs: Mapping[str, T | Sequence[T]]) -> dict[str, T]:
    """Arrays or tensors by name, with lists spelled out as ``name_0``, ``name_1``, ..."""
    named: dict[str, T] = {}
    for name, value in inputs.items():
        if isinstance(value, Sequence):
            named.update((f"{name}_{i}", item) for i, item in enumerate(value))
        else:
            named[name] = value
    return named
