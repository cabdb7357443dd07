"""A server that speaks Triton's gRPC protocol but makes a sine: behaviour is chosen by the text of the request.

anything else          a sine in five chunks of 2400 samples
CODE message           the stream fails with that status at once
late CODE message      the same after three chunks
slow                   a chunk every 50 ms, without end
silent                 no response at all
truncate               two chunks, then a clean end without the final response
full N                 refused with UNAVAILABLE N times, then a sine
bare                   a chunk without its `final` output
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from cosyserve.contracts import TTS

SAMPLE_RATE = 24_000
CHUNK = 2400
SINE = (8000 * np.sin(np.arange(5 * CHUNK) * 2 * np.pi * 440 / SAMPLE_RATE)).astype(np.int16)


class DummyServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Listens on a free loopback port while it is a context."""

    def __init__(self) -> None:
        self.requests: list[dict[str, NDArray[Any]]] = []
        self.ids: list[str] = []
        self.calls: Counter[str] = Counter()
        self.cancelled = threading.Semaphore(0)
        self.parameters = {"sample_rate": str(SAMPLE_RATE)}
        self.loaded = True
        self._stopping = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(16))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.url = f"127.0.0.1:{self.port}"

    def __enter__(self) -> DummyServer:
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._server.stop(0).wait()

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        return service_pb2.ModelReadyResponse(ready=self.loaded and request.name == TTS.name)

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls["ModelConfig"] += 1
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        for key, value in self.parameters.items():
            response.config.parameters[key].string_value = value
        return response

    def ModelStreamInfer(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        self.calls["ModelStreamInfer"] += 1
        ended, answered = threading.Event(), threading.Event()

        def end() -> None:
            ended.set()
            if not answered.is_set():
                self.cancelled.release()

        context.add_callback(end)
        request = next(requests)
        inputs = read_inputs(request)
        self.requests.append(inputs)
        self.ids.append(request.id)
        strict = ("triton_grpc_error", "true") in context.invocation_metadata()

        def fail(code: str, message: str) -> Any:
            answered.set()
            if strict:
                context.abort(grpc.StatusCode[code], message)
            return service_pb2.ModelStreamInferResponse(error_message=message)

        text = inputs["text"][0].decode()
        word, _, rest = text.partition(" ")
        if word == "late":
            yield from (sine_chunk(i, final=False) for i in range(3))
            word, _, rest = rest.partition(" ")
        if word in grpc.StatusCode.__members__:
            yield fail(word, rest)
        elif word == "full" and self.calls["ModelStreamInfer"] <= int(rest):
            yield fail("UNAVAILABLE", "every slot is taken")
        elif word == "truncate":
            yield from (sine_chunk(i, final=False) for i in range(2))
        elif word == "bare":
            response = sine_chunk(0, final=True)
            del response.infer_response.outputs[-1]
            yield response
        elif word in ("slow", "silent"):
            while not ended.wait(0.05) and not self._stopping.is_set():
                if word == "slow":
                    yield sine_chunk(0, final=False)
        else:
            yield from (sine_chunk(i, final=i == 4) for i in range(5))
        answered.set()


def read_inputs(request: Any) -> dict[str, NDArray[Any]]:
    """The inputs by name; AssertionError when one does not fit the contract of model ``tts``."""
    assert request.model_name == TTS.name
    arrays = {}
    for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
        contract = TTS.input(tensor.name)
        assert tensor.datatype == contract.dtype
        assert contract.dims in (tuple(tensor.shape), (-1,))
        if contract.dtype == "BYTES":
            array = deserialize_bytes_tensor(content)
        else:
            array = np.frombuffer(content, contract.numpy)
        arrays[tensor.name] = array.reshape(tensor.shape)
    return arrays


def sine_chunk(index: int, *, final: bool) -> Any:
    """Response `index` of the sine."""
    start = index * CHUNK
    values = {
        "audio": SINE[start : start + CHUNK],
        "sample_offset": [start],
        "token_offset": [index * 5],
        "segment": [0],
        "final": [final],
    }
    response = service_pb2.ModelStreamInferResponse()
    infer = response.infer_response
    infer.model_name = TTS.name
    for tensor in TTS.outputs:
        array = np.asarray(values[tensor.name], dtype=tensor.numpy)
        infer.outputs.add(name=tensor.name, datatype=tensor.dtype, shape=array.shape)
        infer.raw_output_contents.append(array.tobytes())
    return response
