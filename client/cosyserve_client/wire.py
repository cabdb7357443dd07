"""The KServe v2 messages and gRPC settings that both clients share.

The generated messages and stubs of tritonclient are used directly: its blocking client carries one stream per
connection and does not report a stream that just ends, and its asyncio client passes bare gRPC errors on.
"""

from __future__ import annotations

import json
import random
import secrets
import struct
import uuid
from collections.abc import Iterator
from typing import Any

from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import InferenceServerException

from cosyserve.codes import CODED_ERRORS, WITH_REASON
from cosyserve.contracts import SAMPLE_RATE_PARAMETER, TTS, VOICES, Model
from cosyserve.limits import MAX_MESSAGE_BYTES
from cosyserve_client.errors import CosyServeClientError, StreamTruncated, from_message, invalid
from cosyserve_client.types import AudioChunk, SpeechRequest, Voice, VoiceRequest, Word

STREAM_TIMEOUT_SECONDS = 600.0
"""Default for the longest stream: five minutes of audio made at half of real time."""

UNARY_TIMEOUT_SECONDS = 10.0
"""Longest wait for a readiness or configuration answer."""

VOICE_TIMEOUT_SECONDS = 60.0
"""Longest wait for an answer about voices: to register one, the server listens to its prompt."""

KEEPALIVE_SECONDS = 300.0
"""Default between pings on a silent connection: Triton drops clients that ping more often than this."""

_FIRST_BACKOFF_SECONDS = 0.1


def channel_options(keepalive_seconds: float) -> list[tuple[str, int | str]]:
    """gRPC channel arguments: each channel has a connection of its own, which gRPC would share between equal channels.

    The address ``dns:///name:port`` of a headless service spreads streams over its pods.
    """
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", round(keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def ready_request() -> Any:
    """Asks whether model ``tts`` is loaded."""
    return service_pb2.ModelReadyRequest(name=TTS.name)


def config_request() -> Any:
    """Asks for the configuration of model ``tts``."""
    return service_pb2.ModelConfigRequest(name=TTS.name)


def sample_rate(response: Any) -> int:
    """The rate in Hz that a ``ModelConfigResponse`` declares; `CosyServeClientError` when it declares none."""
    parameters = response.config.parameters
    value = parameters[SAMPLE_RATE_PARAMETER].string_value if SAMPLE_RATE_PARAMETER in parameters else ""
    if not value.isdecimal():
        raise CosyServeClientError(f"model {TTS.name} declares no sample_rate: is this a CosyServe server?")
    return int(value)


def infer_request(request: SpeechRequest) -> Any:
    """The ``ModelInferRequest`` that starts an utterance, under its request id or a fresh one."""
    message = _message(TTS, request, request.request_id)
    if request.traceparent is not None:
        message.parameters["traceparent"].string_param = request.traceparent
    return message


def voices_request(request: VoiceRequest) -> Any:
    """The ``ModelInferRequest`` for model ``voices``."""
    return _message(VOICES, request)


def voices(response: Any) -> list[Voice]:
    """The voices that a ``ModelInferResponse`` of model ``voices`` describes."""
    (output,) = VOICES.outputs
    described = InferResult(response).as_numpy(output.name)
    if described is None:
        raise CosyServeClientError(f"the server sent a response without {output.name}")
    return [Voice(**json.loads(each)) for each in described]


def _message(model: Model, request: SpeechRequest | VoiceRequest, id: str | None = None) -> Any:
    message = service_pb2.ModelInferRequest(model_name=model.name, id=id or str(uuid.uuid4()))
    message.parameters[CODED_ERRORS].string_param = WITH_REASON
    for tensor, array in request.tensors():
        message.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=array.shape)
        content = b"".join(map(_length_prefixed, array)) if tensor.dtype == "BYTES" else array.tobytes()
        message.raw_input_contents.append(content)
    return message


def _length_prefixed(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def _words(texts: Any, starts: Any) -> tuple[Word, ...]:
    if texts is None or starts is None:
        return ()
    return tuple(Word(text.decode(), start) for text, start in zip(texts, starts.tolist(), strict=True))


def backoff(retries: int) -> Iterator[float]:
    """Seconds before each of `retries` new tries: doubling, spread by half so that clients do not return at once."""
    for attempt in range(retries):
        yield _FIRST_BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5)


class Writer:
    """Makes the messages of one session, under a random `id`: a caller who knew it could write to the session."""

    def __init__(self) -> None:
        self.id = secrets.randbits(62) + 1
        self._started = False
        self._ended = False

    def message(self, piece: SpeechRequest, *, end: bool = False) -> Any:
        """The ``ModelInferRequest`` with the next piece.

        Raises:
            InvalidArgument: the last one ended the session.
        """
        if self._ended:
            raise invalid("session", "has ended; no more text can be written")
        message = infer_request(piece)
        message.parameters["sequence_id"].int64_param = self.id
        message.parameters["sequence_start"].bool_param = not self._started
        message.parameters["sequence_end"].bool_param = end
        self._started, self._ended = True, end
        return message


class Reader:
    """Reads the responses of one stream: `chunk` for each, `end` when the stream ends well.

    Args:
        sample_rate: in Hz, of the chunks.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._samples = 0
        self._final = False

    def chunk(self, response: Any) -> AudioChunk:
        """The audio of a ``ModelStreamInferResponse``.

        Raises:
            ServerError: the response is an error; of code UNKNOWN when it is Triton's own.
            CosyServeClientError: an output is missing.
        """
        if response.error_message:
            raise from_message(response.error_message)
        try:
            result = InferResult(response.infer_response)
            outputs = {tensor.name: result.as_numpy(tensor.name) for tensor in TTS.outputs}
        except (InferenceServerException, ValueError) as error:
            raise CosyServeClientError(f"the server sent a malformed response: {error}") from error
        missing = [tensor.name for tensor in TTS.outputs if outputs[tensor.name] is None and not tensor.optional]
        if missing:
            raise CosyServeClientError(f"the server sent a response without {', '.join(missing)}")
        chunk = AudioChunk(
            pcm=outputs["audio"],
            sample_offset=int(outputs["sample_offset"][0]),
            token_offset=int(outputs["token_offset"][0]),
            token_count=int(outputs["token_count"][0]),
            segment=int(outputs["segment"][0]),
            words=_words(outputs["words"], outputs["word_starts"]),
            final=bool(outputs["final"][0]),
            sample_rate=self._sample_rate,
        )
        self._samples += len(chunk.pcm)
        self._final = chunk.final
        return chunk

    def end(self) -> None:
        """Call when the stream ended without error; `StreamTruncated` unless the last chunk was final."""
        if not self._final:
            raise StreamTruncated(f"the stream ended after {self._samples} samples without its final response")
