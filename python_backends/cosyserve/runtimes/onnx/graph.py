"""Graphs run by onnxruntime: the CPU default, and CUDA when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from cosyserve.errors import WeightsError
from cosyserve.runtimes.graph import Array, Arrays, Outputs, flat
from cosyserve.settings import Settings
from cosyserve.weights import Weights

CPU: list[Any] = ["CPUExecutionProvider"]

PROVIDERS: dict[str, list[Any]] = {
    "cpu": CPU,
    "cuda": [
        (
            "CUDAExecutionProvider",
            {
                # The default tries every algorithm anew for each new length, for a tenth of a second or more.
                "cudnn_conv_algo_search": "HEURISTIC",
                # Its rounding would tell chunked from one-shot audio.
                "use_tf32": "0",
                "arena_extend_strategy": "kSameAsRequested",
            },
        ),
        *CPU,
    ],
}


def provider(device: str) -> str:
    """Name of onnxruntime's provider for a device."""
    first = PROVIDERS[device][0]
    return first if isinstance(first, str) else str(first[0])


def available(device: str) -> bool:
    """Whether the onnxruntime that is installed has one."""
    return provider(device) in ort.get_available_providers()


class OnnxGraph:
    """One ONNX file in one session.

    Args:
        path: the ``.onnx`` file.
        threads: intra-op threads.
        device: ``cpu`` or ``cuda``.

    Raises:
        WeightsError: the file cannot be loaded, or the device's provider is missing.
    """

    def __init__(self, path: Path, threads: int = 1, device: str = "cpu") -> None:
        if not available(device):
            raise WeightsError(
                f"device {device} needs onnxruntime with {provider(device)}: pip install onnxruntime-gpu"
            )
        if device == "cuda":
            ort.preload_dlls()  # CUDA and cuDNN lie in packages of their own
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A plan of memory is kept for every set of shapes, and streams come in ever new lengths.
        options.enable_mem_pattern = False
        # Spinning threads of one model would take the cores of the others between calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=PROVIDERS[device])
        except Exception as error:
            raise WeightsError(f"{path.name} cannot be loaded: {error}") from error
        if self._session.get_providers()[0] != provider(device):
            raise WeightsError(f"{path.name}: onnxruntime could not start {provider(device)}")
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._inputs = [i.name for i in self._session.get_inputs()]

    def __call__(self, inputs: Arrays) -> Outputs:
        """Run once; see `Graph`."""
        feed = {name: np.ascontiguousarray(value) for name, value in flat(inputs).items()}
        return Outputs(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))

    def first(self, *inputs: Array) -> Array:
        """The first output for inputs by position: for graphs whose tensor names differ between bundles."""
        feed = dict(zip(self._inputs, inputs, strict=True))
        return self._session.run(self._outputs[:1], feed)[0]  # type: ignore[no-any-return]


def load_graph(weights: Weights, name: str, settings: Settings) -> OnnxGraph:
    """A graph of prepared weights, as the settings have it run."""
    return OnnxGraph(weights.graph(name), settings.threads, settings.device)
