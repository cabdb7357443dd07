"""Errors as OpenAI's clients expect them: an HTTP status and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from cosyserve.codes import ErrorCode, of_client
from cosyserve_client.errors import CosyServeClientError, InvalidArgument, ServerError
from cosyserve_gateway.limits import BODY_SECONDS, MAX_JSON_BYTES, MAX_UPLOAD_BYTES, RETRY_SECONDS

Body = TypeVar("Body", bound=BaseModel)

_HERE = {
    "text": "input",
    "instruct": "instructions",
    "prompt_audio": "audio_sample",
    "prompt_sample_rate": "audio_sample",
}
"""What the server's fields are called in requests to the gateway, where the names differ."""

_PARAMS = {"voice_not_found": "voice", "voice_exists": "name"}
"""The field that an error is about, by its code."""

_WORDS = {
    "unreachable": "the speech server cannot be reached",
    "timeout": "the speech server took too long",
    "server_failed": "the speech server failed",
}
"""Said instead of the speech server's message, which is not the caller's affair."""

_SHOWN = 200  # characters of what a caller sent that an answer may repeat


class ApiError(Exception):
    """An error response; raise one of the `Refusal` kinds below.

    Args:
        status: of HTTP.
        message: for people.
        code: for programs.
        param: the field that is wrong.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What the status asks for besides the body."""
        wanted = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return wanted | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """The body of the answer."""
        kind = {429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        if self.status >= 500:
            kind = "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A kind of refusal; call it with a message for the error to raise.

    Attributes:
        status: of HTTP.
        code: for programs.
        meaning: when callers get it, for the API documentation, which lists every refusal of this module.
    """

    status: int
    code: str
    meaning: str

    def __call__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> ApiError:
        return ApiError(self.status, message, self.code, param=param, retry_after=retry_after)


INVALID_VALUE = Refusal(400, "invalid_value", "a field is wrong; `param` names it")
UNSUPPORTED = Refusal(400, "unsupported", "the request is valid, but the server or its weights cannot serve it")
INVALID_API_KEY = Refusal(401, "invalid_api_key", "`Authorization: Bearer` has no key of this gateway")
FORBIDDEN_ORIGIN = Refusal(403, "forbidden_origin", "the request is from a web page of an origin that is not allowed")
VOICES_FIXED = Refusal(403, "voices_fixed", "this gateway does not allow changes of voices")
VOICE_NOT_FOUND = Refusal(404, "voice_not_found", "no voice has this name")
MODEL_NOT_FOUND = Refusal(404, "model_not_found", "no `model` has this name")
NOT_FOUND = Refusal(404, "not_found", "the path does not exist")
METHOD_NOT_ALLOWED = Refusal(405, "method_not_allowed", "the path does not support this method")
REQUEST_TIMEOUT = Refusal(408, "request_timeout", f"the body did not arrive within {BODY_SECONDS:g} s")
IDLE_TIMEOUT = Refusal(408, "idle_timeout", "a WebSocket was silent for too long")
VOICE_EXISTS = Refusal(409, "voice_exists", "a voice of this name is registered")
TOO_LARGE = Refusal(
    413,
    "request_too_large",
    f"JSON has more than {MAX_JSON_BYTES >> 10} KiB, or an upload more than {MAX_UPLOAD_BYTES >> 20} MiB",
)
UNSUPPORTED_MEDIA_TYPE = Refusal(415, "unsupported_media_type", "a speech request is not of type `application/json`")
RATE_LIMIT = Refusal(429, "rate_limit_exceeded", "the client sends too many requests per minute; see `retry-after`")
TOO_MANY_STREAMS = Refusal(429, "too_many_streams", "the client has too many concurrent utterances")
INTERNAL_ERROR = Refusal(500, "internal_error", "the gateway failed; its log has the traceback")
SERVER_FAILED = Refusal(502, "server_failed", "the speech server failed; its log has the reason")
OVERLOADED = Refusal(503, "overloaded", "the gateway or every server is full, or the server drains")
UNREACHABLE = Refusal(503, "unreachable", "no speech server answers")
CANCELLED = Refusal(503, "cancelled", "the speech server ended the stream")
TIMEOUT = Refusal(504, "timeout", "the speech server took too long")


class ClientLeft(Exception):
    """The client closed its connection before it had the whole answer, or does not read it."""


def invalid(param: str | None, message: str) -> ApiError:
    """The refusal of a field."""
    shown = message[:_SHOWN]
    return INVALID_VALUE(f"{param}: {shown}" if param else shown, param=param)


def parse(kind: type[Body], data: bytes | str) -> Body:
    """A body of JSON; `ApiError` names the first field that is wrong."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise refusal(error) from None


def refusal(error: ValidationError, depth: int = 0) -> ApiError:
    """The refusal for the first thing that is wrong with a message, whose fields lie that `depth` down."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = "".join(str(part) for part in first["loc"][depth : depth + 1])
    return invalid(param[:_SHOWN] or None, first["msg"])


def api_error(error: Exception) -> ApiError:
    """The answer for anything that was raised before the response had begun."""
    match error:
        case ApiError():
            return error
        case HTTPException(status_code=status, detail=detail):
            return ApiError(status, detail, detail.lower().replace(" ", "_"))
        case InvalidArgument(message=message):
            field, colon, problem = message.partition(": ")
            return invalid(_HERE.get(field, field), problem) if colon else invalid(None, message)
        case ServerError(message=message, reason=reason):
            return _answer(of_client(type(error).__name__, reason), message)
        case CosyServeClientError():
            return _answer(of_client(type(error).__name__), str(error))
    return INTERNAL_ERROR("the gateway failed")


def _answer(code: ErrorCode, message: str) -> ApiError:
    return ApiError(
        code.http,
        _WORDS.get(code.http_code, message),
        code.http_code,
        param=_PARAMS.get(code.http_code),
        retry_after=RETRY_SECONDS if code.http == 503 else None,
    )
