"""Settings of a model instance: Triton model parameters, checked once, with environment overrides."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from cosyserve import limits
from cosyserve.errors import WeightsError
from cosyserve.runtimes import registry


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of every model; each model uses its own.

    A Triton parameter of the same name sets a field; the environment variable ``COSYSERVE_<NAME>`` overrides it.

    Attributes:
        weights: folder of prepared weights; `cosyserve serve --weights` sets it.
        device: ``cpu`` or ``cuda``.
        runtime: what runs llm, flow and hift: ``onnx``, ``torch`` (weights prepared with ``--runtime torch``), or
            ``tensorrt``: torch, with the flow's estimator and the vocoder's decoder in TensorRT where
            ``cosyserve-build engines`` has built plans for this GPU and this precision.
        llm_runtime: ``gguf`` runs llm in llama.cpp (weights prepared with ``--llm-gguf``, the extra ``gguf``); empty:
            as `runtime` says.
        precision: ``fp32``, ``bf16`` or ``fp16``: of the layers of flow and of what they keep; not with onnx.
        llm_precision: the same for llm. In half precision, with the same seed, load changes what is said: sums that are
            rounded in another order draw other tokens.
        graphs: ``on`` records calls of the runtimes torch and tensorrt as CUDA graphs at the start; ``off`` launches
            each kernel by itself, which takes longer.
        threads: cores that one network call may use.
        max_streams: utterances in progress at once; at most 64.
        llm_slots: sequences that the LLM generates at once, including those that wait for text.
        drain_file: path; while a file is there, new utterances are refused, and running ones end only if it contains
            ``stop``. `cosyserve serve` sets one by default. Empty: never.
        otlp_endpoint: ``http://host:port`` of an OpenTelemetry collector that receives spans of utterances (the extra
            ``tracing``). Empty: no traces.
        session_idle: seconds without text and without audio after which a session is closed; below `stage_timeout`.
        lifetime: longest time of an utterance in seconds; then it is cancelled.
        stage_timeout: longest wait in seconds for one answer of a stage: the features of a request, further speech
            tokens, the audio of a chunk; at most 280.
        first_hop: fewest speech tokens in a segment's first audio chunk.
        max_hop: most speech tokens in one audio chunk.
        concurrency: streams of flow or hift computed at once: with onnx in calls side by side, each with `threads`
            cores; with the other runtimes in one batch.
        flow_cache_mib: bound on the KV cache of flow streams and recent voices, in MiB; 0: what the device can spare.
        flow_window: mel frames that a stream attends to besides its prompt, for bounded memory and step time; 0 is all,
            the only exact value.
    """

    weights: str = ""
    device: str = "cpu"
    runtime: str = "onnx"
    llm_runtime: str = ""
    precision: str = "fp32"
    llm_precision: str = "fp32"
    graphs: str = "on"
    threads: int = 1
    max_streams: int = limits.MAX_STREAMS
    llm_slots: int = limits.MAX_LLM_SLOTS
    drain_file: str = ""
    otlp_endpoint: str = ""
    session_idle: int = limits.SESSION_IDLE_SECONDS
    lifetime: int = limits.LIFETIME_SECONDS
    stage_timeout: int = limits.STAGE_TIMEOUT_SECONDS
    first_hop: int = 25
    max_hop: int = 100
    concurrency: int = 1
    flow_cache_mib: int = 8192
    flow_window: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("device", registry.DEVICES),
            ("runtime", registry.ALL_STAGES),
            ("llm_runtime", ("", *registry.LLM_ALONE)),
            ("precision", registry.PRECISIONS),
            ("llm_precision", registry.PRECISIONS),
            ("graphs", ("on", "off")),
        ):
            if (value := getattr(self, name)) not in choices:
                raise WeightsError(f"setting {name}: {value!r}, must be one of {', '.join(filter(None, choices))}")
        for name, runtime in (("precision", self.runtime), ("llm_precision", self.llm_runtime or self.runtime)):
            wanted, precisions = getattr(self, name), registry.get(runtime).precisions
            if wanted not in precisions:
                problem = f"{wanted} needs another runtime; {runtime} runs in {', '.join(precisions)}"
                raise WeightsError(f"setting {name}: {problem}")
        for name in (f.name for f in fields(self) if f.type == "int"):
            least = 0 if name in ("flow_cache_mib", "flow_window") else 1
            if getattr(self, name) < least:
                raise WeightsError(f"setting {name}: must be at least {least}")
        if self.max_streams > limits.MAX_STREAMS:
            raise WeightsError(f"setting max_streams: at most {limits.MAX_STREAMS}")
        if self.otlp_endpoint and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise WeightsError("setting otlp_endpoint: must begin with http:// or https://")
        if self.stage_timeout > limits.MAX_STAGE_TIMEOUT_SECONDS:
            raise WeightsError(f"setting stage_timeout: at most {limits.MAX_STAGE_TIMEOUT_SECONDS}")
        if self.session_idle >= self.stage_timeout:
            raise WeightsError(f"setting session_idle: must be below stage_timeout, which is {self.stage_timeout}")

    @property
    def llm_rows(self) -> int:
        """Rows of the LLM's decoder: one more than there are sequences, so that two can change places."""
        return self.llm_slots + 1

    @property
    def records_graphs(self) -> bool:
        """Whether `graphs` is ``on``."""
        return self.graphs == "on"

    @property
    def folder(self) -> Path:
        """The weights folder; `WeightsError` when none is set."""
        if not self.weights:
            raise WeightsError("no weights folder: set COSYSERVE_WEIGHTS to the output of `cosyserve-build prepare`")
        return Path(self.weights)

    @classmethod
    def read(cls, parameters: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> Settings:
        """Build from Triton parameters and the environment.

        Raises:
            WeightsError: an unknown parameter, or a value of the wrong type or out of range.
        """
        known = {f.name: f.type for f in fields(cls)}
        unknown = sorted(set(parameters) - set(known))
        if unknown:
            raise WeightsError(f"unknown model parameters: {', '.join(unknown)}")
        given = dict(parameters)
        for name in known:
            if value := environ.get(f"COSYSERVE_{name.upper()}"):
                given[name] = value
        values: dict[str, str | int] = {}
        for name, text in given.items():
            try:
                values[name] = int(text) if known[name] == "int" else text
            except ValueError:
                raise WeightsError(f"setting {name}: {text!r} is not an integer") from None
        return cls(**values)  # type: ignore[arg-type]
