"""Functions of tensors as CUDA graphs. Not verified on a GPU yet."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cosyserve.errors import WeightsError

_LOG = logging.getLogger("cosyserve")

CAPTURE_ERRORS = range(900, 909)
"""CUDA's errors about stream capture."""

Function = Callable[..., tuple[Tensor, ...]]
Shapes = tuple[Hashable, ...]


@dataclass(frozen=True)
class _CudaGraph:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class CudaGraphs:
    """A function of tensors that is recorded for some shapes and then replayed: thousands of kernel launches as one.

    Shapes that were not recorded, and everything on a CPU, run kernel by kernel.

    Args:
        function: takes tensors on `device` and sizes, returns tensors there, and never waits for the device. What it
            writes besides its results must come out the same when it runs again with the same inputs, because
            recording runs it several times.
        device: where to run.
        enabled: whether to record at all.
    """

    def __init__(self, function: Function, device: torch.device, *, enabled: bool = True) -> None:
        self._function = function
        self._device = device
        self._enabled = enabled and device.type == "cuda"
        self._recordings: dict[Shapes, _CudaGraph] = {}

    def __call__(self, *inputs: Tensor, **sizes: int) -> tuple[Tensor, ...]:
        """Results on the device, from inputs anywhere. They hold until the next call with the same shapes and sizes."""
        recording = self._recordings.get(_shapes(inputs, sizes))
        if recording is None:
            return self._function(*(given.to(self._device) for given in inputs), **sizes)
        for held, given in zip(recording.inputs, inputs, strict=True):
            held.copy_(given)
        recording.graph.replay()
        return recording.outputs

    def record(self, *inputs: Tensor, **sizes: int) -> None:
        """Make inputs of these shapes fast from now on. The largest come first: the others reuse their memory.

        A shape that cannot be recorded runs kernel by kernel; a warning in the log says why.

        Raises:
            torch.OutOfMemoryError: the device has too little memory.
            torch.AcceleratorError: the device is out of order.
        """
        if not self._enabled:
            return
        try:
            self._recordings[_shapes(inputs, sizes)] = self._record(inputs, sizes)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, WeightsError) as error:
            # Torch reports a call that cannot be captured with the same class as a broken device.
            if isinstance(error, torch.AcceleratorError) and getattr(error, "error_code", None) not in CAPTURE_ERRORS:
                raise
            shapes = [tuple(given.shape) for given in inputs]
            _LOG.warning("shapes %s run kernel by kernel, because they cannot be recorded: %s", shapes, error)

    def _record(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> _CudaGraph:
        held = tuple(given.to(self._device, copy=True) for given in inputs)
        # Libraries choose algorithms and take workspaces in their first calls, which a graph cannot hold.
        side = _side_stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._function(*held, **sizes)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its stream behind as the current one.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, pool=_memory(), capture_error_mode="thread_local"),
        ):
            outputs = self._function(*held, **sizes)
        return _CudaGraph(graph, held, outputs)


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """The stream for first calls: one, because libraries keep a workspace for each stream for ever."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@functools.cache
def _memory() -> Any:
    """One pool for the temporaries of all graphs of the process: they run one after another in one CUDA stream."""
    return torch.cuda.graph_pool_handle()


def _shapes(tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Shapes:
    return *(tensor.shape for tensor in tensors), *sizes.items()
