"""Dummy server with Triton's gRPC protocol that answers with a sine, to test clients and load tests without weights.

    python loadtest/dummy_server.py --port 8001 --first-audio 0.2 --pace 0.1 --failures 0.05

The text of a request, or the first piece of a session's text, selects the behaviour:

anything else          a sine in five chunks of 2400 samples, all but the first at the end of a session's text
CODE message           the stream fails with that status at once; CODE/reason gives a reason too
late CODE message      the same after three chunks
slow                   a chunk every 50 ms, without end
flood                  the same as fast as they are read
silent                 no response at all
truncate               two chunks, then a clean end without the final response
full N                 refused with UNAVAILABLE N times, then a sine
bare                   a chunk without its `final` output
mute                   a chunk of zeros, marked final
"""

from __future__ import annotations

import argparse
import itertools
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from cosyserve.codes import CODED_ERRORS, WITH_REASON, CodedMessage
from cosyserve.contracts import TTS

SAMPLE_RATE = 24_000
CHUNK = 2400
SINE = (8000 * np.sin(np.arange(5 * CHUNK) * 2 * np.pi * 440 / SAMPLE_RATE)).astype(np.int16)

STREAMS = 256
"""Maximum number of concurrent streams, each with a thread; further ones wait."""


class DummyServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Dummy server on the loopback address, as a context manager.

    Args:
        port: to listen on; 0 for any free one.
        first_audio: seconds from a request to the first chunk.
        pace: seconds between chunks; a chunk has 0.1 s of audio.
        failures: share of the utterances, evenly distributed, that fail with INTERNAL.

    Attributes:
        active: streams in progress.
        most_active: highest value of `active`.
    """

    def __init__(self, *, port: int = 0, first_audio: float = 0.0, pace: float = 0.0, failures: float = 0.0) -> None:
        self.first_audio = first_audio
        self.pace = pace
        self.failures = failures
        self.active = 0
        self.most_active = 0
        self._sines = itertools.count(1)
        self._lock = threading.Lock()
        self.requests: list[dict[str, NDArray[Any]]] = []
        self.ids: list[str] = []
        self.traces: list[str] = []
        self.calls: Counter[str] = Counter()
        self.cancelled = threading.Semaphore(0)
        self.parameters = {"sample_rate": str(SAMPLE_RATE)}
        self.loaded = True
        self._stopping = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(STREAMS))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
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

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return service_pb2.ServerMetadataResponse(name="dummy", version="0")

    def ModelStreamInfer(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        self.calls["ModelStreamInfer"] += 1
        ended, answered = threading.Event(), threading.Event()
        self._count(1)

        def end() -> None:
            self._count(-1)
            ended.set()
            if not answered.is_set():
                self.cancelled.release()

        if not context.add_callback(end):  # the caller has disconnected already
            end()
            return
        first = next(requests)
        session = first.parameters["sequence_id"].int64_param
        pieces = self._pieces(first, session, requests)
        inputs = next(pieces)
        strict = ("triton_grpc_error", "true") in context.invocation_metadata()
        asked = first.parameters[CODED_ERRORS]
        with_reason = asked.string_param == WITH_REASON
        coded = session or asked.bool_param or with_reason

        def fail(code: str, message: str, reason: str = "") -> Any:
            if strict:
                answered.set()
                context.abort(grpc.StatusCode[code], message)
            text = CodedMessage(code, reason, message).encode(with_reason=with_reason) if coded else message
            return service_pb2.ModelStreamInferResponse(error_message=text)

        text = _text(inputs)
        while not text and (piece := next(pieces, None)) is not None:
            text = _text(piece)
        words, timed = text.split(), "timestamps" in inputs
        word, _, rest = text.partition(" ")
        if word == "late":
            yield from (sine_chunk(i, final=False) for i in range(3))
            word, _, rest = rest.partition(" ")
        code, _, reason = word.partition("/")
        if code in grpc.StatusCode.__members__:
            yield fail(code, rest, reason)
            ended.wait(0.05)  # a caller that leaves now has not read to the end
        elif word == "full" and self.calls["ModelStreamInfer"] <= int(rest):
            yield fail("UNAVAILABLE", "every slot is taken")
        elif word == "truncate":
            yield from (sine_chunk(i, final=False) for i in range(2))
        elif word == "bare":
            response = sine_chunk(0, final=True)
            del response.infer_response.outputs[-1]
            yield response
        elif word == "mute":
            response = sine_chunk(0, final=True)
            response.infer_response.raw_output_contents[0] = bytes(2 * CHUNK)
            yield response
        elif word in ("slow", "flood", "silent"):
            while not ended.wait(0 if word == "flood" else 0.05) and not self._stopping.is_set():
                if word != "silent":
                    yield sine_chunk(0, final=False)
        elif self._fails():
            yield fail("INTERNAL", "one of the failures that were asked for")
        else:
            for i in range(5):
                if i == 1:
                    deque(pieces, maxlen=0)  # the rest of a session's text
                ended.wait(self.pace if i else self.first_audio)
                yield sine_chunk(i, final=i == 4, word=words[i] if timed and i < len(words) else None)
        answered.set()

    def _pieces(self, first: Any, session: int, others: Iterator[Any]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the inputs of a request and, if it opens a session, of all further requests of the session."""
        request = first
        assert request.parameters["sequence_start"].bool_param == (session != 0)
        while request is not None:
            assert request.parameters["sequence_id"].int64_param == session
            inputs = read_inputs(request)
            self.requests.append(inputs)
            self.ids.append(request.id)
            self.traces.append(request.parameters["traceparent"].string_param)
            yield inputs
            if not session or request.parameters["sequence_end"].bool_param:
                return
            request = next(others, None)

    def _count(self, streams: int) -> None:
        with self._lock:
            self.active += streams
            self.most_active = max(self.most_active, self.active)

    def _fails(self) -> bool:
        sine = next(self._sines)
        return int(sine * self.failures) > int((sine - 1) * self.failures)


def _text(inputs: dict[str, NDArray[Any]]) -> str:
    return inputs["text"][0].decode() if "text" in inputs else ""


def read_inputs(request: Any) -> dict[str, NDArray[Any]]:
    """Read the inputs by name; AssertionError if one violates the contract of model ``tts``."""
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


def sine_chunk(index: int, *, final: bool, word: str | None = None) -> Any:
    """Make response `index` of the sine, with a word that begins in its middle."""
    start = index * CHUNK
    values: dict[str, Any] = {
        "audio": SINE[start : start + CHUNK],
        "sample_offset": [start],
        "token_offset": [index * 5],
        "token_count": [5],
        "segment": [0],
        "final": [final],
    }
    if word:
        values |= {"words": [word.encode()], "word_starts": [(start + CHUNK / 2) / SAMPLE_RATE]}
    response = service_pb2.ModelStreamInferResponse()
    infer = response.infer_response
    infer.model_name = TTS.name
    for tensor in [tensor for tensor in TTS.outputs if tensor.name in values]:
        array = np.asarray(values[tensor.name], dtype=tensor.numpy)
        infer.outputs.add(name=tensor.name, datatype=tensor.dtype, shape=array.shape)
        content = serialize_byte_tensor(array).item() if tensor.dtype == "BYTES" else array.tobytes()
        infer.raw_output_contents.append(content)
    return response


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--first-audio", type=float, default=0.0, help="seconds to the first chunk")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between chunks, each 0.1 s of audio")
    parser.add_argument("--failures", type=float, default=0.0, help="share of requests that fail")
    with DummyServer(**vars(parser.parse_args())) as server:
        print(f"ready: gRPC on {server.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
