"""Model configurations rendered from the contracts: ``config.pbtxt`` for GPUs, ``configs/cpu.pbtxt`` for CPUs.

Triton replaces the first by the second as a whole, so both are complete.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from cosyserve.contracts import MODELS, TTS, UPSTREAM, Model, Scheduling, Tensor
from cosyserve.limits import MAX_LLM_SLOTS, MAX_SEQUENCES, MAX_STREAMS, SEQUENCE_IDLE_SECONDS

FLAVOURS = {"gpu": "config.pbtxt", "cpu": "configs/cpu.pbtxt"}
HEADER = "# Rendered from cosyserve/contracts.py by `make configs`; edit that.\n"

PARAMETERS: dict[str, dict[str, str]] = {
    "tts": {"max_streams": str(MAX_STREAMS), "first_hop": "25", "max_hop": "100", "sample_rate": "24000"},
    **{model.name: {"max_streams": str(MAX_STREAMS), "first_hop": "25", "max_hop": "100"} for model in UPSTREAM},
    "voices": {},
    "frontend": {"threads": "1"},
    "llm": {"threads": "1", "llm_slots": str(MAX_LLM_SLOTS)},
    "flow": {"threads": "1", "flow_cache_mib": "8192"},
    "hift": {"threads": "1"},
}

ON_CPU: dict[str, dict[str, str]] = {
    # Measured with `cosyserve bench` on two cores: at 16 streams, two calls of one thread each give about twice the
    # audio of one call of two threads; and a call for several streams takes as long as a call for each.
    "flow": {"lanes": "2", "max_batch": "1"},
}
"""What the CPU's flavour has besides."""

ON_GPU: dict[str, dict[str, str]] = {
    # What a second chunk takes is far less than the shorter first one lasts.
    **{model.name: {"first_hop": "16"} for model in (TTS, *UPSTREAM)},
    "llm": {"runtime": "torch", "precision": "bf16"},
    "flow": {"runtime": "torch", "precision": "bf16", "max_batch": "32", "flow_cache_mib": "16384"},
    "hift": {"runtime": "torch", "max_batch": "32"},
}
"""What the GPU's flavour has besides or instead. The vocoder is always float32."""


def render(model: Model, flavour: str) -> str:
    """The text of one configuration file."""
    config = pb.ModelConfig(name=model.name)
    config.input.extend(_input(tensor, model) for tensor in model.inputs)
    config.output.extend(_output(tensor) for tensor in model.outputs)
    if model.scheduling is Scheduling.ENSEMBLE:
        config.platform = "ensemble"
        config.max_batch_size = MAX_SEQUENCES
        for step in model.steps:
            made = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
            made.input_map.update(dict(step.inputs))
            made.output_map.update(dict(step.outputs))
        return HEADER + str(text_format.MessageToString(config))
    config.backend = "python"
    on_gpu = flavour == "gpu" and model.computes
    kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
    # One instance whatever the number of GPUs: all streams of a server share one engine and one set of states.
    config.instance_group.add(kind=kind, count=1, gpus=[0] if on_gpu else [])
    if model.scheduling is Scheduling.SEQUENCE:
        config.max_batch_size = MAX_SEQUENCES
        config.sequence_batching.max_sequence_idle_microseconds = SEQUENCE_IDLE_SECONDS * 1_000_000
        config.sequence_batching.oldest.max_candidate_sequences = MAX_SEQUENCES
    if model.scheduling is Scheduling.SINGLE:
        config.max_batch_size = 1
    config.model_transaction_policy.decoupled = model.scheduling in (Scheduling.DECOUPLED, Scheduling.SINGLE)
    own = (ON_GPU if flavour == "gpu" else ON_CPU).get(model.name, {})
    for name, value in (PARAMETERS[model.name] | own).items():
        config.parameters[name].string_value = value
    if model.computes:
        config.parameters["device"].string_value = "cuda" if on_gpu else "cpu"
    return HEADER + str(text_format.MessageToString(config))


def paths(repository: Path) -> dict[Path, str]:
    """Every configuration file of the repository with the text it should have."""
    return {
        repository / model.name / file: render(model, flavour) for model in MODELS for flavour, file in FLAVOURS.items()
    }


def write(repository: Path) -> None:
    """Write every file."""
    for path, text in paths(repository).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def stale(repository: Path) -> list[Path]:
    """Files that are missing or differ from what would be rendered."""
    return [path for path, text in paths(repository).items() if not path.is_file() or path.read_text("utf-8") != text]


def _input(tensor: Tensor, model: Model) -> pb.ModelInput:
    ragged = model.scheduling is Scheduling.SEQUENCE and -1 in tensor.dims
    return pb.ModelInput(
        name=tensor.name,
        data_type=pb.DataType.Value(_type(tensor)),
        dims=tensor.dims,
        optional=tensor.optional,
        allow_ragged_batch=ragged,
    )


def _output(tensor: Tensor) -> pb.ModelOutput:
    return pb.ModelOutput(name=tensor.name, data_type=pb.DataType.Value(_type(tensor)), dims=tensor.dims)


def _type(tensor: Tensor) -> str:
    return "TYPE_STRING" if tensor.dtype == "BYTES" else f"TYPE_{tensor.dtype}"
