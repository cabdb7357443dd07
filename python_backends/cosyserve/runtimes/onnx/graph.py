"""Graphs run by onnxruntime: the CPU default, and CUDA when asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from cosyserve.errors import WeightsError
from cosyserve.runtimes.graph import Array, Arrays, Outputs, flat
from cosyserve.settings import Settings
from cosyserve.weights import Weights

PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


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
        missing = [p for p in PROVIDERS[device] if p not in ort.get_available_providers()]
        if missing:
            raise WeightsError(f"device {device} needs onnxruntime with {missing[0]}, which is not installed")
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
        if self._session.get_providers()[0] != PROVIDERS[device][0]:
            raise WeightsError(f"{path.name}: onnxruntime could not start {PROVIDERS[device][0]}")
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
