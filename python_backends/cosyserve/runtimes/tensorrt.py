"""Graphs run by TensorRT on CUDA tensors of torch. Not verified on hardware."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from cosyserve.errors import WeightsError
from cosyserve.runtimes.engine_files import RTX, TENSORRT, Gpu

if TYPE_CHECKING:
    from torch import Tensor


_MODULES = {TENSORRT: ("tensorrt", "cosyserve[gpu]"), RTX: ("tensorrt_rtx", "tensorrt-rtx-cu13")}


def load_tensorrt(flavour: str = TENSORRT) -> ModuleType:
    """The module of a flavour of TensorRT; both have the same interface.

    Raises:
        WeightsError: it is not installed; the line says what to install.
    """
    name, package = _MODULES[flavour]
    try:
        return importlib.import_module(name)
    except ImportError:
        raise WeightsError(f"{flavour} is not installed: pip install '{package}'") from None


def installed_flavours() -> list[str]:
    """The flavours of TensorRT that are installed."""
    return [flavour for flavour, (name, _) in _MODULES.items() if importlib.util.find_spec(name)]


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
        flavour: of the plan.

    Raises:
        WeightsError: TensorRT is missing or refuses the plan, or memory is short.
    """

    def __init__(self, path: Path, flavour: str = TENSORRT) -> None:
        import torch

        trt = load_tensorrt(flavour)
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

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Enqueue one run behind all work of torch's current stream and before its next, without waiting for it.

        It can be recorded in a CUDA graph: the tensors' addresses are then those of the recording.

        Args:
            inputs: CUDA tensors by name. Those that are contiguous and of the plan's types are read where they lie,
                others are converted first.

        Returns:
            New CUDA tensors by name.

        Raises:
            WeightsError: a shape lies outside the plan's profile.
        """
        import torch

        # What is freed here is reused by later work of the same stream only, so no input needs to be kept alive.
        feed = {name: tensor.to(self._types[name]).contiguous() for name, tensor in inputs.items()}
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
        return outputs
