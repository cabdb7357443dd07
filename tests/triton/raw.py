"""Requests that the client would never send, as bare KServe messages."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

IN_BODY = "in the body"
"""Instead of a status: without the header below, and always where Triton itself refuses, errors are responses."""

STATUS_HEADER = ("triton_grpc_error", "true")
"""Asks for errors as gRPC status. Triton 2.51 now and then dies (a state used after its release) when it sends many,
so only the tests of the status itself ask for it."""


@dataclass(frozen=True)
class Input:
    """One tensor as it goes over the wire, well-formed or not."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes


@dataclass(frozen=True)
class Answer:
    """How a call ended: gRPC status name, or `IN_BODY`, its message, and the number of responses before it."""

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
    """Sends one request on a stream and reads to its end.

    Args:
        status: whether errors shall be gRPC status.
        seconds: deadline of the call.
        sequence: correlation id, 0 for none.
        start: whether the request starts its sequence.
        id: what the request is called.
        headers: of the call.
    """
    request = service_pb2.ModelInferRequest(model_name=model, id=id)
    for entry in inputs:
        request.inputs.add(name=entry.name, datatype=entry.datatype, shape=entry.shape)
        request.raw_input_contents.append(entry.content)
    if sequence:
        request.parameters["sequence_id"].int64_param = sequence
        request.parameters["sequence_start"].bool_param = start
    responses = 0
    with grpc.insecure_channel(url, options=[("grpc.max_send_message_length", -1)]) as channel:
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(
            iter([request]), metadata=(*headers, *((STATUS_HEADER,) if status else ())), timeout=seconds
        )
        try:
            for response in stream:
                if response.error_message:
                    return Answer(IN_BODY, response.error_message, responses)
                responses += 1
        except grpc.RpcError as error:
            return Answer(error.code().name, error.details() or "", responses)
    return Answer("OK", "", responses)
