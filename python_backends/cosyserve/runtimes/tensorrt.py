"""Graphs run by TensorRT on CUDA tensors of torch. Not verified on hardware."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from cosyserve.errors import WeightsError
from cosyserve.runtimes.engine_files import Gpu
from cosyserve.runtimes.graph import flat

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def load_tensorrt() -> ModuleType:
    """The module ``tensorrt``.

    Raises:
        WeightsError: it is not installed; the line says what to install.
    """
    try:
        import tensorrt
    except ImportError:
        raise WeightsError(
            "TensorRT is not installed: pip install 'tensorrt-cu12>=10.15' (cu13 for CUDA 13) on the GPU's machine"
        ) from None
    module: ModuleType = tensorrt
    return module


def this_gpu() -> Gpu:
    """The current CUDA device.

    Raises:
        WeightsError: torch finds none.
    """
    import torch

    if not torch.cuda.is_available():
        raise WeightsError("no CUDA device: TensorRT plans are built and run on the GPU that serves")
    major, minor = torch.cuda.get_device_capability()
    return Gpu(torch.cuda.get_device_name(), f"{major}.{minor}")


class TensorrtGraph:
    """One plan with one execution context: one call at a time.

    Args:
        path: a plan that `find_engine` returned.

    Raises:
        WeightsError: TensorRT is missing or refuses the plan, or memory is short.
    """

    def __init__(self, path: Path) -> None:
        import torch

        trt = load_tensorrt()
        types = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.HALF: torch.float16,
            trt.DataType.BF16: torch.bfloat16,
            trt.DataType.INT64: torch.int64,
        }
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise WeightsError(f"{path.name}: TensorRT refuses the plan; build it anew with `cosyserve-build engines`")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise WeightsError(f"{path.name}: too little GPU memory for the plan: lower flow_cache_mib or llm_slots")
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._types = {name: types[self._engine.get_tensor_dtype(name)] for name in names}
        inputs = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self._outputs = [name for name in names if name not in inputs]

    def __call__(self, inputs: Mapping[str, Tensor | list[Tensor]]) -> dict[str, Tensor | list[Tensor]]:
        """Enqueue one run behind all work of torch's current stream and before its next, without waiting for it.

        Args:
            inputs: CUDA tensors by name; a list stands for ``name_0``, ``name_1``, ... Tensors that are contiguous and
                of the plan's types are read where they lie, others are converted first.

        Returns:
            New CUDA tensors by name, numbered ones as lists.

        Raises:
            WeightsError: a shape lies outside the plan's profile.
        """
        import torch

        # What is freed here is reused by later work of the same stream only, so no input needs to be kept alive.
        feed = {name: tensor.to(self._types[name]).contiguous() for name, tensor in flat(inputs).items()}
        for name, tensor in feed.items():
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise WeightsError(f"{name}: shape {tuple(tensor.shape)} lies outside the TensorRT plan's profile")
        outputs = {
            name: torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=self._types[name], device="cuda")
            for name in self._outputs
        }
        for name, tensor in (feed | outputs).items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        # In the default stream TensorRT waits for the device around each run.
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        enqueued = self._context.execute_async_v3(self._stream.cuda_stream)
        current.wait_stream(self._stream)
        if not enqueued:
            raise WeightsError("TensorRT could not run the plan; its log says why")
        return grouped(outputs)


def grouped(values: Mapping[str, T]) -> dict[str, T | list[T]]:
    """Undo `flat`: ``name_0``, ``name_1``, ... gathered into lists, whatever order they come in."""
    lists: dict[str, dict[int, T]] = {}
    single: dict[str, T | list[T]] = {}
    for name, value in values.items():
        if match := re.fullmatch(r"(.+)_(\d+)", name):
            lists.setdefault(match[1], {})[int(match[2])] = value
        else:
            single[name] = value
    return single | {name: [items[i] for i in sorted(items)] for name, items in lists.items()}
