"""Every error code, and how an error travels as text. Server, clients and gateway read it; it imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """What one kind of error is called on each side.

    Attributes:
        status: gRPC status name; empty where there is no call that could have one.
        reason: tells kinds of one status apart, for programs; refused and cancelled utterances are counted by it.
        server: class in `cosyserve.errors`; empty for what Triton, gRPC or the client itself reports.
        client: class in `cosyserve_client.errors`.
        http: HTTP status of the gateway.
        http_code: ``code`` in the gateway's answer.
    """

    status: str
    reason: str
    server: str
    client: str
    http: int
    http_code: str


# fmt: off
CODES = (
    #         gRPC status            reason      class of server   class of client     HTTP code of the gateway
    ErrorCode("INVALID_ARGUMENT",    "",         "InvalidInput",  "InvalidArgument",  400, "invalid_value"),
    ErrorCode("NOT_FOUND",           "",         "",              "NotFound",         503, "unreachable"),  # no model
    ErrorCode("NOT_FOUND",           "voice",    "VoiceNotFound", "NotFound",         404, "voice_not_found"),
    ErrorCode("ALREADY_EXISTS",      "",         "VoiceExists",   "AlreadyExists",    409, "voice_exists"),
    ErrorCode("UNAVAILABLE",         "",         "Overloaded",    "Unavailable",      503, "overloaded"),
    ErrorCode("UNAVAILABLE",         "streams",  "StreamsTaken",  "Unavailable",      503, "overloaded"),
    ErrorCode("UNAVAILABLE",         "memory",   "MemoryTaken",   "Unavailable",      503, "overloaded"),
    ErrorCode("UNAVAILABLE",         "draining", "Draining",      "Unavailable",      503, "overloaded"),
    ErrorCode("UNIMPLEMENTED",       "",         "Unsupported",   "Unimplemented",    400, "unsupported"),
    ErrorCode("CANCELLED",           "client",   "Cancelled",     "Cancelled",        503, "cancelled"),
    ErrorCode("CANCELLED",           "idle",     "SessionIdle",   "Cancelled",        503, "cancelled"),
    ErrorCode("CANCELLED",           "lifetime", "LifetimeOver",  "Cancelled",        503, "cancelled"),
    ErrorCode("DEADLINE_EXCEEDED",   "",         "",              "DeadlineExceeded", 504, "timeout"),
    ErrorCode("INTERNAL",            "",         "StageFailed",   "Internal",         502, "server_failed"),
    ErrorCode("INTERNAL",            "finite",   "NotFinite",     "Internal",         502, "server_failed"),
    ErrorCode("FAILED_PRECONDITION", "",         "BundleError",   "ServerError",      502, "server_failed"),
    ErrorCode("FAILED_PRECONDITION", "",         "WeightsError",  "ServerError",      502, "server_failed"),
    ErrorCode("FAILED_PRECONDITION", "",         "ServeError",    "ServerError",      502, "server_failed"),
    ErrorCode("",                    "",         "",              "ConnectFailed",    503, "unreachable"),
    ErrorCode("",                    "",         "",              "StreamTruncated",  502, "server_failed"),
    ErrorCode("",                    "",         "",         "CosyServeClientError",  502, "server_failed"),
)
# fmt: on


def reasons(status: str) -> tuple[str, ...]:
    """All reasons of the errors with this status."""
    return tuple(code.reason for code in CODES if code.status == status and code.reason)


def of_client(name: str, reason: str = "") -> ErrorCode:
    """The code of a client's error of that class; one of a reason that is not known counts as the class's first."""
    codes = [code for code in CODES if code.client == name]
    return next((code for code in codes if code.reason == reason), codes[0])


CODED_ERRORS = "coded_errors"
"""Request parameter of who wants errors as a `CodedMessage`: true, or `WITH_REASON`. Our clients do: Triton 2.51 dies
when it ends streams with a status while others run, once in some hundred."""

WITH_REASON = "reason"
"""Value of `CODED_ERRORS` that asks for the form with a reason, which older clients take for a part of the code."""

_CODED = re.compile(r"(?<!\S)([A-Z_]+)(?:/([a-z_]*))? \| (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CodedMessage:
    """An error as text, where its code has no other place: ``STATUS | message`` or ``STATUS/reason | message``.

    Inner models always send the second form, entry models the one that was asked for with `CODED_ERRORS`, and the first
    to sessions that ask for nothing.
    """

    status: str
    reason: str
    message: str

    def encode(self, *, with_reason: bool) -> str:
        """The text."""
        return f"{self.status}/{self.reason} | {self.message}" if with_reason else f"{self.status} | {self.message}"

    @classmethod
    def decode(cls, text: str) -> Self | None:
        """The error in a text of either form, behind words that an ensemble may put before it; None in any other."""
        found = _CODED.search(text)
        return cls(found[1], found[2] or "", found[3]) if found else None
