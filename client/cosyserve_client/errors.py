"""Every error the client raises on purpose.

`cosyserve.codes.CODES` lists the class of each code. All but `ConnectFailed` and `StreamTruncated` are a `ServerError`,
which an `InvalidArgument` may also be before any call.
"""

from __future__ import annotations

from cosyserve.codes import CODES, CodedMessage


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
        reason: tells errors of one code apart, for programs: ``voice`` of a voice that is not found; may be empty.
    """

    def __init__(self, code: str, message: str, reason: str = "") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


class InvalidArgument(ServerError):
    """An input is missing, malformed or out of bounds; the message starts with its name.

    Another try: no.
    """


class AlreadyExists(ServerError):
    """A voice of this name is registered.

    Another try: with `replace`, or another name.
    """


class NotFound(ServerError):
    """No registered voice has this name (reason `voice`); or, from Triton, the server has no such model.

    Another try: no.
    """


class Unavailable(ServerError):
    """Every stream or the cache memory is taken, or the server drains, stops or is gone.

    Another try: yes, later or elsewhere.
    """


class Cancelled(ServerError):
    """The stream was closed, a session was idle for too long, or an utterance ran for too long.

    Another try: if wanted.
    """


class DeadlineExceeded(ServerError):
    """The deadline that the client set has passed.

    Another try: if wanted.
    """


class Unimplemented(ServerError):
    """The request is valid, but this server or its weights cannot serve it.

    Another try: no.
    """


class Internal(ServerError):
    """A stage failed, or a voice's file is damaged; the server's log has the details.

    Another try: once.
    """


_BY_STATUS = {
    code.status: kind for code in CODES for kind in ServerError.__subclasses__() if kind.__name__ == code.client
}

_NO_CONNECTION = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "errors resolving",
)
"""How gRPC's message begins when there is no connection.

The status is UNAVAILABLE, as for a full server and for one that was killed during the call. gRPC offers nothing robust
to tell them apart but the message: no case has metadata, the channel is in TRANSIENT_FAILURE after a refusal and after
a kill, and `wait_for_ready` turns a refusal into DEADLINE_EXCEEDED. Whether the channel was ever READY would tell, but
a blocking channel says so only to subscribers, from a thread that polls, and later than the call fails.
"""


def from_message(text: str) -> ServerError:
    """The error in the ``error_message`` of a response; of code UNKNOWN when it is Triton's own."""
    return _coded(text) or ServerError("UNKNOWN", text)


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
    return _coded(message) or _server_error(code, message)


def _coded(text: str) -> ServerError | None:
    coded = CodedMessage.decode(text)
    return _server_error(coded.status, coded.message, coded.reason) if coded else None


def _server_error(code: str, message: str, reason: str = "") -> ServerError:
    return _BY_STATUS.get(code, ServerError)(code, message, reason)


def invalid(field: str, problem: str) -> InvalidArgument:
    """The error for a `field` that is refused before it is sent, worded as the server would."""
    return InvalidArgument("INVALID_ARGUMENT", f"{field}: {problem}")
