"""The Triton configuration of one model, rendered from its contract."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from cosyserve.contracts import Model, Scheduling, Tensor
from cosyserve.limits import MAX_SEQUENCES, SEQUENCE_IDLE_SECONDS

HEADER = "# Rendered by cosyserve/repository.py and contracts.py; edit those.\n"


def render_config(model: Model, parameters: Mapping[str, str], *, on_gpu: bool) -> str:
    """The text of ``config.pbtxt``.

    Args:
        parameters: of the model, but for its device.
        on_gpu: its networks run on GPU 0.
    """
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
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    if model.computes:
        config.parameters["device"].string_value = "cuda" if on_gpu else "cpu"
    return HEADER + str(text_format.MessageToString(config))


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
