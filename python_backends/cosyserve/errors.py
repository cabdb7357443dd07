"""Every error a user or an operator can see; `cosyserve.codes.CODES` has the code and reason of each class.

Messages never carry a path of the server or a traceback when they reach a client.

The tables of docs/operations.md are made from the docstrings below.
"""

from __future__ import annotations

from cosyserve.codes import CODES


class CosyServeError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        code: gRPC status name.
        reason: tells errors of one code apart; may be empty.
    """

    code = "INTERNAL"
    reason = ""

    def __init_subclass__(cls) -> None:
        """Takes code and reason from the table; a class that is not in it has those of its base."""
        for row in CODES:
            if row.server == cls.__name__:
                cls.code, cls.reason = row.status, row.reason


class InvalidInput(CosyServeError):
    """A request field is missing, malformed or out of bounds.

    What to do: the caller's to mend.

    Args:
        field: name of the tensor or argument, as the user wrote it.
        problem: what is wrong with it, and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class VoiceNotFound(CosyServeError):
    """The named voice is not registered.

    What to do: register it; do the servers share their voices?
    """


class VoiceExists(CosyServeError):
    """A voice of that name is registered already.

    What to do: replace it, or name another.
    """


class Overloaded(CosyServeError):
    """Every stream, the cache memory, the voices or the disk for them is taken; nothing was started.

    What to do: more servers.
    """


class StreamsTaken(Overloaded):
    """As many utterances are in progress as may be."""


class MemoryTaken(Overloaded):
    """The caches of running utterances leave no room for another."""


class Draining(CosyServeError):
    """The server is about to stop: what it speaks it speaks to the end, and takes nothing new.

    What to do: clients that retry find another.
    """


class Unsupported(CosyServeError):
    """A well-formed request for something that this server or bundle does not do; or the voices' folder is read-only.

    What to do: other weights; a folder that can be written.
    """


class Cancelled(CosyServeError):
    """The client closed the stream or its deadline passed."""


class SessionIdle(CosyServeError):
    """A session waited `session_idle` seconds for text and was closed.

    What to do: raise it, or write to it.
    """


class LifetimeOver(CosyServeError):
    """An utterance was under way for longer than `lifetime` seconds.

    What to do: raise it, or speak less at once.
    """


class StageFailed(CosyServeError):
    """A stage of the pipeline failed, or took longer for one answer than its timeout.

    What to do: the server's log has the traceback.
    """


class NotFinite(StageFailed):
    """A network returned infinities or NaN, which would be heard as silence.

    What to do: another `precision`; other weights.
    """


class BundleError(CosyServeError):
    """A CosyVoice bundle is incomplete or contradicts its own YAML.

    What to do: download it again.
    """


class WeightsError(CosyServeError):
    """Prepared weights are missing, damaged or made by an incompatible version, or a setting is wrong.

    What to do: prepare the bundle again; the line names file or setting.
    """


class ServeError(CosyServeError):
    """The server could not be started or did not become ready, or a model process ended.

    What to do: the line says which; then the log.
    """


def passed_on(message: str, code: str, reason: str) -> CosyServeError:
    """An error of an inner model, as the entry model raises it again."""
    error = CosyServeError(message)
    error.code, error.reason = code, reason
    return error
