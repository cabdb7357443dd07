"""Errors as OpenAI's clients expect them: an HTTP status and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from cosyserve.codes import ErrorCode, of_client
from cosyserve_client.errors import CosyServeClientError, InvalidArgument, ServerError
from cosyserve_gateway.limits import RETRY_SECONDS

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
    """A refusal.

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


class ClientLeft(Exception):
    """The client closed its connection before it had the whole answer, or does not read it."""


def invalid(param: str | None, message: str) -> ApiError:
    """The refusal of a field."""
    shown = message[:_SHOWN]
    return ApiError(400, f"{param}: {shown}" if param else shown, "invalid_value", param=param)


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
    return ApiError(500, "the gateway failed", "internal_error")


def _answer(code: ErrorCode, message: str) -> ApiError:
    return ApiError(
        code.http,
        _WORDS.get(code.http_code, message),
        code.http_code,
        param=_PARAMS.get(code.http_code),
        retry_after=RETRY_SECONDS if code.http == 503 else None,
    )
