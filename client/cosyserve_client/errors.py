"""Every error the client raises on purpose.

CosyServeClientError
  ConnectFailed              no server could be reached at the address
  StreamTruncated            the stream ended without a response marked final: audio is missing
  ServerError                the server refused or broke off; ``code`` is the gRPC status name
    InvalidArgument          a field is wrong; the message starts with its name (also raised before any call)
    AlreadyExists            a voice of that name is registered
    NotFound                 no such voice, or the server has no model ``tts``
    Unavailable              every stream of the server is taken, or it went away
    Cancelled                the stream was closed, here or there
    DeadlineExceeded         ``stream_timeout`` passed
    Unimplemented            a valid request that this server or its bundle cannot serve
    Internal                 a stage broke; its log knows more
"""

from __future__ import annotations


class CosyServeClientError(Exception):
    """Base of everything that the client raises on purpose."""


class ConnectFailed(CosyServeClientError):
    """No server could be reached at the address."""


class StreamTruncated(CosyServeClientError):
    """The stream ended without a response marked final, so the audio received is not all there was."""


class ServerError(CosyServeClientError):
    """The server answered with an error status.

    Args:
        code: gRPC status name, such as ``RESOURCE_EXHAUSTED``.
        message: the server's words.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


class InvalidArgument(ServerError):
    """A field of the request is missing, malformed or out of bounds; the message starts with its name."""


class AlreadyExists(ServerError):
    """A voice of that name is registered already; remove or replace it."""


class NotFound(ServerError):
    """No such voice, or no such model."""


class Unavailable(ServerError):
    """The server is full or went away; another try, later or elsewhere, may succeed."""


class Cancelled(ServerError):
    """The stream was closed while it ran."""


class DeadlineExceeded(ServerError):
    """The time allowed for the stream passed."""


class Unimplemented(ServerError):
    """A valid request for something that this server or its bundle does not do."""


class Internal(ServerError):
    """A stage of the server failed."""


_BY_CODE: dict[str, type[ServerError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "ALREADY_EXISTS": AlreadyExists,
    "NOT_FOUND": NotFound,
    "UNAVAILABLE": Unavailable,
    "CANCELLED": Cancelled,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNIMPLEMENTED": Unimplemented,
    "INTERNAL": Internal,
}

# gRPC reports a refused connection as UNAVAILABLE too; only its wording tells it from a full server.
_NO_CONNECTION = ("failed to connect to all addresses", "connections to all backends failing", "DNS resolution failed")


def from_status(status: str, message: str) -> CosyServeClientError:
    """The error for a gRPC status.

    Args:
        status: as tritonclient and gRPC print it (``StatusCode.NOT_FOUND``) or the bare name (``NOT_FOUND``).
        message: the status details.

    Returns:
        The matching subclass of `ServerError`, `ServerError` itself for any other code, or `ConnectFailed`.
    """
    code = status.rpartition(".")[2]
    if code == "UNAVAILABLE" and message.startswith(_NO_CONNECTION):
        return ConnectFailed(f"cannot reach a server: {message}")
    return _BY_CODE.get(code, ServerError)(code, message)


def invalid(field: str, problem: str) -> InvalidArgument:
    """The error for a `field` that is refused before it is sent, worded as the server would."""
    return InvalidArgument("INVALID_ARGUMENT", f"{field}: {problem}")
