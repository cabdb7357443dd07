"""Requests that the client never sends, as raw KServe messages."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

IN_BODY = "in the body"
"""Instead of a status: without the header below, and always where Triton itself refuses, errors are responses."""

STATUS_HEADER = ("triton_grpc_error", "true")
"""Asks for errors as gRPC status. Triton 2.51 now and then dies (a state used after its release) when it sends many,
so only the tests of the status itself ask for it."""


INSIDE = re.compile(r"Traceback|\.py\b|(?<![\w.])/(work|usr|home|tmp|opt|root|var)/|site-packages|INTERNAL|\|")
"""Signs of internal details in messages: stack traces, file names, the notation between models."""


@dataclass(frozen=True)
class Input:
    """One tensor as it goes over the wire, well-formed or not."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes


@dataclass(frozen=True)
class Answer:
    """End of a call: gRPC status name, or `IN_BODY`, its message, and the number of responses before it."""

    code: str
    message: str = ""
    responses: int = 0


def words(name: str, *values: str | bytes) -> Input:
    """A tensor of byte strings."""
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    return Input(name, "BYTES", (len(values),), b"".join(struct.pack("<I", len(v)) + v for v in encoded))


def numbers(name: str, datatype: str, array: NDArray[np.generic] | list[float]) -> Input:
    """A tensor of numbers."""
    types = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
    values = np.asarray(array, types[datatype])
    return Input(name, datatype, values.shape, values.tobytes())


def message(
    model: str,
    *inputs: Input,
    id: str = "",
    sequence: int | str = 0,
    start: bool = False,
    end: bool = False,
    **parameters: bool | int | str,
) -> Any:
    """One request.

    Args:
        id: what the request is called.
        sequence: correlation id, 0 for none.
        start: whether the request starts its sequence.
        end: whether it ends it.
        parameters: further ones of the request.
    """
    request = service_pb2.ModelInferRequest(model_name=model, id=id)
    for entry in inputs:
        request.inputs.add(name=entry.name, datatype=entry.datatype, shape=entry.shape)
        request.raw_input_contents.append(entry.content)
    if sequence != 0:
        parameters |= {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param"}
    for name, value in parameters.items():
        setattr(request.parameters[name], kinds[type(value)], value)
    return request


def call(
    url: str,
    *inputs: Input,
    model: str = "tts",
    status: bool = False,
    seconds: float = 5.0,
    sequence: int = 0,
    start: bool = False,
    id: str = "",
    headers: tuple[tuple[str, str], ...] = (),
) -> Answer:
    """Sends one request, see `message`, on a stream of its own, see `send`.

    Args:
        status: whether errors shall be gRPC status.
        headers: of the call.
    """
    headers = (*headers, *((STATUS_HEADER,) if status else ()))
    request = message(model, *inputs, id=id, sequence=sequence, start=start)
    return send(url, request, seconds=seconds, headers=headers)


def send(url: str, *messages: Any, seconds: float, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """Sends messages on one stream and reads to its end; the first error, if there is one, is the answer.

    Nobody leaves behind an error: Triton 2.51 loses count of a stream that is cancelled as it ends.

    Args:
        seconds: deadline of the call.
        headers: of the call.
    """
    responses, error = 0, ""
    with grpc.insecure_channel(url, options=[("grpc.max_send_message_length", -1)]) as channel:
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(
            iter(messages), metadata=headers, timeout=seconds
        )
        try:
            for response in stream:
                error = error or response.error_message
                responses += not error
        except grpc.RpcError as failure:
            return Answer(failure.code().name, failure.details() or "", responses)
    return Answer(IN_BODY if error else "OK", error, responses)
