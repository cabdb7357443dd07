"""Every error a user or an operator can see.

    CosyServeError                 code
      InvalidInput                 INVALID_ARGUMENT   a request field is wrong; the message starts with its name
      VoiceNotFound                NOT_FOUND          no such registered voice
      VoiceExists                  ALREADY_EXISTS     a voice of that name is registered
      Overloaded                   UNAVAILABLE        the server is full; try again or elsewhere
        StreamsTaken                 reason streams   every place for an utterance is taken
        MemoryTaken                  reason memory    the caches of running utterances leave no room
      Draining                     UNAVAILABLE        the server is about to stop; try elsewhere (reason draining)
      Unsupported                  UNIMPLEMENTED      a valid request that this server or bundle cannot serve
      Cancelled                    CANCELLED          the client went away (reason client)
      SessionIdle                  CANCELLED          nothing was written to a session for too long (reason idle)
      LifetimeOver                 CANCELLED          the utterance took too long (reason lifetime)
      StageFailed                  INTERNAL           a stage broke; details are in the log only
      BundleError                  (operator)         a model bundle is incomplete or does not fit its YAML
      WeightsError                 (operator)         prepared weights are missing, damaged or of another version
      ServeError                   (operator)         the server could not be started

Messages never carry a path of the server or a traceback when they reach a client.

The tables of docs/operations.md are made from the docstrings below.
"""

from __future__ import annotations


class CosyServeError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        code: the gRPC status name it maps to.
        reason: what refused and cancelled utterances are counted by; empty for all others.
    """

    code = "INTERNAL"
    reason = ""


class InvalidInput(CosyServeError):
    """A request field is missing, malformed or out of bounds.

    What to do: the caller's to mend.

    Args:
        field: name of the tensor or argument, as the user wrote it.
        problem: what is wrong with it, and what would be right.
    """

    code = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class VoiceNotFound(CosyServeError):
    """The named voice is not registered.

    What to do: register it; do the servers share their voices?
    """

    code = "NOT_FOUND"


class VoiceExists(CosyServeError):
    """A voice of that name is registered already.

    What to do: replace it, or name another.
    """

    code = "ALREADY_EXISTS"


class Overloaded(CosyServeError):
    """Every stream, the cache memory, the voices or the disk for them is taken; nothing was started.

    What to do: more servers.
    """

    code = "UNAVAILABLE"


class StreamsTaken(Overloaded):
    """As many utterances are in progress as may be."""

    reason = "streams"


class MemoryTaken(Overloaded):
    """The caches of running utterances leave no room for another."""

    reason = "memory"


class Draining(CosyServeError):
    """The server is about to stop: what it speaks it speaks to the end, and takes nothing new.

    What to do: clients that retry find another.
    """

    code = "UNAVAILABLE"
    reason = "draining"


class Unsupported(CosyServeError):
    """A well-formed request for something that this server or bundle does not do; or the voices' folder is read-only.

    What to do: other weights; a folder that can be written.
    """

    code = "UNIMPLEMENTED"


class Cancelled(CosyServeError):
    """The client closed the stream or its deadline passed."""

    code = "CANCELLED"
    reason = "client"


class SessionIdle(CosyServeError):
    """A session waited `session_idle` seconds for text and was closed.

    What to do: raise it, or write to it.
    """

    code = "CANCELLED"
    reason = "idle"


class LifetimeOver(CosyServeError):
    """An utterance was under way for longer than `lifetime` seconds.

    What to do: raise it, or speak less at once.
    """

    code = "CANCELLED"
    reason = "lifetime"


class StageFailed(CosyServeError):
    """A stage of the pipeline failed, or took longer for one answer than its timeout.

    What to do: the server's log has the traceback.
    """

    code = "INTERNAL"


class BundleError(CosyServeError):
    """A CosyVoice bundle is incomplete or contradicts its own YAML.

    What to do: download it again.
    """

    code = "FAILED_PRECONDITION"


class WeightsError(CosyServeError):
    """Prepared weights are missing, damaged or made by an incompatible version, or a setting is wrong.

    What to do: prepare the bundle again; the line names file or setting.
    """

    code = "FAILED_PRECONDITION"


class ServeError(CosyServeError):
    """The server could not be started or did not become ready, or a model process ended.

    What to do: the line says which; then the log.
    """

    code = "FAILED_PRECONDITION"


CODE_END = " | "
"""Between code and message where an error has no other place for its code: those of inner models, of sessions, and of
requests with the parameter `CODED_ERRORS`."""

CODED_ERRORS = "coded_errors"
"""Request parameter (true) of who wants the code in the message. Our clients do: Triton 2.51 dies when it ends streams
with a status while others run, once in some hundred."""


def passed_on(message: str, code: str, reason: str) -> CosyServeError:
    """An error of an inner model, as the entry model raises it again."""
    error = CosyServeError(message)
    error.code, error.reason = code, reason
    return error


def reasons(code: str, kind: type[CosyServeError] = CosyServeError) -> tuple[str, ...]:
    """All reasons of the errors with this code."""
    own = (kind.reason,) if kind.code == code and kind.reason else ()
    return tuple(dict.fromkeys(own + sum((reasons(code, each) for each in kind.__subclasses__()), ())))
