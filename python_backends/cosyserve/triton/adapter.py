"""Between Triton's Python backend and the rest: tensors by contract, errors to status codes, settings, metrics.

Only this folder imports ``triton_python_backend_utils``, which exists inside Triton's stub alone.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cosyserve.broken_device import is_broken_device
from cosyserve.codes import CODED_ERRORS, WITH_REASON, CodedMessage
from cosyserve.contracts import SAMPLE_RATE_PARAMETER, Model, Scheduling, Tensor, Tensors
from cosyserve.errors import CosyServeError, InvalidInput, StageFailed, WeightsError, passed_on
from cosyserve.logs import log_json_lines, request_id
from cosyserve.metrics import Metric
from cosyserve.settings import Settings
from cosyserve.triton.tensors import make_tensor, read_tensor
from cosyserve.triton_defects import STATUS_HEADER, STATUS_PAUSE_SECONDS, asks_for_status

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
SEQUENCE_START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
SEQUENCE_END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END

NICENESS = 5
"""Of the models that compute: a refusal, with 12 streams on two cores, takes 2.8 ms instead of 5.0 (medians)."""

LAST_ANSWERS_SECONDS = 0.2
"""Between an error that ends this process and its end: its callers are told first."""

REQUEST_ID = ContextVar("request_id", default="")
"""Id of the utterance in progress; inner models log their part of it under this id."""

PING = "ping"
"""Parameter of a request that the process of an inner model answers at once, without any work."""

_LOG = logging.getLogger("cosyserve")
log_json_lines()  # each model has a process of its own, which begins here


_TRITON_NAMES = {"INVALID_ARGUMENT": "INVALID_ARG", "UNIMPLEMENTED": "UNSUPPORTED"}
"""Statuses that ``TritonError`` calls otherwise."""


def read_settings(args: Mapping[str, str]) -> Settings:
    """Settings of the model that Triton is initialising, from its parameters and the environment."""
    return Settings.read({name: text for name, text in _parameters(args).items() if name != SAMPLE_RATE_PARAMETER})


def check_sample_rate(args: Mapping[str, str], rate: int) -> None:
    """Refuse weights that speak at another rate than clients read from the model's configuration.

    Raises:
        WeightsError: naming both rates in Hz.
    """
    promised = _parameters(args).get(SAMPLE_RATE_PARAMETER, str(rate))
    if promised != str(rate):
        problem = f"the weights speak at {rate} Hz, but the configuration promises {promised} Hz"
        raise WeightsError(f"{problem}: render it with `cosyserve render-repository`")


def _parameters(args: Mapping[str, str]) -> dict[str, str]:
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return {name: value["string_value"] for name, value in parameters.items()}


def lower_priority() -> None:
    """Lower the priority of this process below that of Triton and the entry models, which compute nothing.

    They need a millisecond at a time, and every stream waits for it.
    """
    os.nice(NICENESS)


def read_parameters(request: Any) -> dict[str, Any]:
    """The parameters of a request, with the `FORWARDED_HEADERS` of its call."""
    found: dict[str, Any] = json.loads(request.parameters() or "{}")
    return found


def read_parameter(request: Any, name: str) -> Any:
    """A parameter of a request; None when there is none."""
    return read_parameters(request).get(name)


def read_inputs(request: Any, model: Model) -> Tensors:
    """The inputs that a request carries, without batch dimension.

    Raises:
        InvalidInput: an input is missing or has the wrong shape.
    """
    given: Tensors = {}
    for tensor in model.inputs:
        found = pb_utils.get_input_tensor_by_name(request, tensor.name)
        if found is not None:
            array = read_tensor(found)
            given[tensor.name] = array[0] if _batched(model) else array
            _check_shape(tensor, given[tensor.name].shape)
        elif not tensor.optional:
            raise InvalidInput(tensor.name, "is required")
    return given


def values(inputs: Tensors, model: Model) -> dict[str, Any]:
    """Inputs as Python values: text for ``BYTES``, numbers for one element, arrays for more.

    Raises:
        InvalidInput: text that is not UTF-8.
    """
    return {name: _value(model.input(name), array) for name, array in inputs.items()}


def _value(tensor: Tensor, array: Any) -> Any:
    if tensor.dims != (1,):
        return array
    if tensor.dtype != "BYTES":
        return array[0].item()
    try:
        return array[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(tensor.name, f"is not valid UTF-8 at byte {error.start}") from None


def response(values: Tensors, model: Model) -> Any:
    """A response that carries the outputs in `values`."""
    return pb_utils.InferenceResponse(_tensors(values, model.outputs, model))


def inner_request(model: Model, values: Tensors, **options: Any) -> Any:
    """A request from inside a model (BLS) to another model."""
    return pb_utils.InferenceRequest(
        model_name=model.name,
        inputs=_tensors(values, model.inputs, model),
        requested_output_names=[t.name for t in model.outputs],
        request_id=REQUEST_ID.get(),
        **options,
    )


def ping_request(model: Model) -> Any:
    """A request from inside a model that the process of another answers at once, without any work."""
    needed = (tensor for tensor in model.inputs if not tensor.optional)
    dummies: Tensors = {t.name: np.zeros([abs(size) for size in t.dims], t.numpy) for t in needed}
    sequence = model.scheduling is Scheduling.SEQUENCE
    options = {"correlation_id": secrets.randbits(62) + 1, "flags": SEQUENCE_START | SEQUENCE_END} if sequence else {}
    return inner_request(model, dummies, parameters={PING: True}, **options)


def from_model(answer: Any) -> bool:
    """Whether a BLS response, an error or not, comes from the model's process; else Triton made it."""
    return not answer.has_error() or CodedMessage.decode(answer.error().message()) is not None


def read_outputs(answer: Any, model: Model) -> Tensors:
    """The outputs of a BLS response, without batch dimension.

    Raises:
        CosyServeError: the inner model answered with an error; code and message are passed on.
    """
    if answer.has_error():
        coded = CodedMessage.decode(answer.error().message())
        if coded is None:
            raise StageFailed(f"{model.name} failed")
        raise passed_on(coded.message, coded.status, coded.reason)
    arrays = {t.name: read_tensor(pb_utils.get_output_tensor_by_name(answer, t.name)) for t in model.outputs}
    return {name: array[0] for name, array in arrays.items()} if _batched(model) else arrays


def with_replies(requests: list[Any], model: Model) -> Iterator[tuple[Any, Reply]]:
    """The requests of one call to an inner model, each with its `Reply`; pings are answered here."""
    for request in requests:
        parameters = read_parameters(request)
        reply = Reply(request, model, pause=STATUS_PAUSE_SECONDS if asks_for_status(parameters) else 0.0)
        if parameters.get(PING):
            reply.answer({})
        else:
            yield request, reply


class Reply:
    """Reply handle for one request to an inner model. Send errors are ignored: the caller has disconnected.

    Args:
        pause: seconds to wait before an error, see `cosyserve.triton_defects`.
    """

    def __init__(self, request: Any, model: Model, pause: float = 0.0) -> None:
        self._sender = request.get_response_sender()
        self._id = request_id(request.request_id())
        self._model = model
        self._pause = pause

    def answer(self, outputs: Tensors) -> None:
        """Send the outputs."""
        try:
            self._send(response(outputs, self._model))
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Send an error; code and reason travel in the message, because BLS drops Triton's code."""
        public = public_error(error, self._id)
        if is_broken_device(error):
            _LOG.critical("the GPU cannot be used any more: %s of this server ends", self._model.name)
            threading.Timer(LAST_ANSWERS_SECONDS, os._exit, [1]).start()
        answer = coded_error(public, with_reason=True)
        if self._pause:
            threading.Timer(self._pause, self._send, [answer]).start()
        else:
            self._send(answer)

    def _send(self, answer: Any) -> None:
        with suppress(Exception):
            self._sender.send(answer, flags=FINAL)


class ErrorReply:
    """Sends the error of one request to an entry model.

    Sessions, and callers who ask for it, get the code in the message. A caller who asks for statuses gets them, after a
    pause: see `cosyserve.triton_defects`.
    """

    def __init__(self, request: Any) -> None:
        parameters = read_parameters(request)
        self._coded = bool(request.correlation_id() or parameters.get(CODED_ERRORS))
        self._with_reason = parameters.get(CODED_ERRORS) == WITH_REASON
        self._status = asks_for_status(parameters)

    async def send(self, sender: Any, error: CosyServeError) -> None:
        """End the request with this error."""
        sender.send(await self.response(error), flags=FINAL)

    async def response(self, error: CosyServeError) -> Any:
        """The error response, once it may be sent."""
        if self._status:
            _warn_of_statuses()
        await asyncio.sleep(STATUS_PAUSE_SECONDS if self._status else 0)
        return coded_error(error, with_reason=self._with_reason) if self._coded else _error(str(error), error.code)


@functools.cache
def _warn_of_statuses() -> None:
    _LOG.warning(
        "a caller asks for gRPC statuses (header %s): Triton may die of them while other streams run; "
        "ask for the parameter %s instead",
        STATUS_HEADER,
        CODED_ERRORS,
    )


def coded_error(error: CosyServeError, *, with_reason: bool) -> Any:
    """An error response whose message is a `CodedMessage`."""
    message = CodedMessage(error.code, error.reason, str(error))
    return _error(message.encode(with_reason=with_reason), error.code)


def public_error(error: BaseException, id: str) -> CosyServeError:
    """The error that a caller may see: ours as it is; anything else is logged under the request's id and replaced."""
    if isinstance(error, CosyServeError):
        return error
    _LOG.error("unexpected error", exc_info=error, extra={"fields": {"request_id": id}})
    return StageFailed("internal error; the server's log has the details")


def _error(message: str, code: str) -> Any:
    kinds = pb_utils.TritonError
    return pb_utils.InferenceResponse(
        error=kinds(message, getattr(kinds, _TRITON_NAMES.get(code, code), kinds.INTERNAL))
    )


def _tensors(values: Tensors, specs: tuple[Tensor, ...], model: Model) -> list[Any]:
    made = []
    for tensor in specs:
        if tensor.name in values:
            array = np.ascontiguousarray(values[tensor.name], dtype=tensor.numpy)
            made.append(make_tensor(tensor.name, array[None] if _batched(model) else array))
    return made


def _batched(model: Model) -> bool:
    return model.scheduling in (Scheduling.SINGLE, Scheduling.SEQUENCE, Scheduling.ENSEMBLE)


def _check_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    fits = len(shape) == len(tensor.dims) and all(w in (-1, h) for w, h in zip(tensor.dims, shape, strict=True))
    if not fits:
        raise InvalidInput(tensor.name, f"shape {list(shape)}, expected {list(tensor.dims)}")
    longest = max(h for w, h in zip(tensor.dims, shape, strict=True) if w == -1) if tensor.most else 0
    if longest > tensor.most:
        raise InvalidInput(tensor.name, f"has a length of {longest}, at most {tensor.most} is allowed")


class TritonMetric:
    """A metric of `cosyserve.metrics` on Triton's metrics port.

    Args:
        labels: those with one fixed value; the others are given with each call.
    """

    def __init__(self, metric: Metric, **labels: str) -> None:
        kind = getattr(pb_utils.MetricFamily, metric.kind.upper())
        # The family must outlive its metrics.
        self._family = pb_utils.MetricFamily(name=metric.name, description=metric.description, kind=kind)
        options = {"buckets": list(metric.buckets)} if metric.buckets else {}
        others = [name for name in metric.labels if name not in labels]
        self._metrics = {
            values: self._family.Metric(labels={**labels, **dict(zip(others, values, strict=True))}, **options)
            for values in itertools.product(*(metric.labels[name] for name in others))
        }

    def set(self, value: float) -> None:
        """Set a gauge."""
        self._metrics[()].set(value)

    def add(self, value: float, *others: str) -> None:
        """Increment a counter, under these values of the other labels."""
        self._metrics[others].increment(value)

    def observe(self, value: float) -> None:
        """Add one value to a histogram."""
        self._metrics[()].observe(value)
