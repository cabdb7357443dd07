"""Triton's defects and their workarounds, with the affected versions.

2.51 is the release of 24.10, in the Python wheel; 2.71 that of 26.07, built from source. Remove a workaround when the
oldest supported Triton no longer needs it and its test passes without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

STATUS_HEADER = "triton_grpc_error"
"""gRPC header that requests errors as statuses instead of messages. The launcher makes Triton forward it."""

FORWARDED_HEADERS = ("traceparent", STATUS_HEADER)
"""Headers of a call that reach the models as parameters of its requests."""

STATUS_PAUSE_SECONDS = 0.02
"""Delay of an error that becomes a status: with it, 3,968 in a row did not crash the server."""

LOAD_ARGUMENT = "--model-load-thread-count=1"
"""Loads one model after another, which takes no longer on few cores."""

CALL_SECONDS = 0.05
"""Minimum duration of a call of an entry model; its answers do not wait for it."""

LOOKS_PER_SECOND = 50
"""Maximum rate at which all streams of an entry model check that their callers are still connected."""


@dataclass(frozen=True)
class Defect:
    """A defect of Triton.

    Attributes:
        name: the wrong behaviour.
        versions: on which it was observed.
        seen: how it was observed, with counts.
        workaround: what avoids it, and where.
        test: file and name of the test of the workaround.
    """

    name: str
    versions: str
    seen: str
    workaround: str
    test: str


DEFECTS = (
    Defect(
        "The server crashes when it ends a stream with a gRPC status while others run",
        "2.51, 2.71",
        "header `triton_grpc_error`: crash after 20 to 1,000 refusals (2.51), 63 to 2,735 (2.71); with a delay of 20 "
        "ms, 3,968 without a crash; if 40 % of the callers disconnect meanwhile, crash after 1,300",
        "the clients request errors as messages (`coded_errors`); an error is sent after an await, and "
        "`STATUS_PAUSE_SECONDS` later to callers that request statuses, of which the log warns",
        "tests/server/test_statuses.py::test_a_full_server_survives_callers_who_ask_for_statuses",
    ),
    Defect(
        "The server crashes when responses are sent before the call awaits and callers disconnect",
        "2.51, 2.71",
        "half of the callers disconnect: crash after 33 to 527 utterances (2.51), 629 to 1,787 (2.71)",
        "`outlast`: a call of `tts` awaits first and answers from tasks",
        "tests/unit/test_triton_defects.py::test_a_call_outlasts_its_answers",
    ),
    Defect(
        "A call that ends before the stub registers it is never freed",
        "2.51",
        "the stub's memory grows with each call",
        "`outlast`: a call takes at least `CALL_SECONDS`",
        "tests/unit/test_triton_defects.py::test_a_call_outlasts_its_answers",
    ),
    Defect(
        "Reading a decoupled model from another model corrupts the caller's memory",
        "2.51, 2.71",
        "`async_exec(decoupled=True)`: crash after 38 utterances at 4 at once (2.51), after 1 (2.71). A decoupled "
        "`llm` that answers each request with one response (2.51): its iterators free memory of the stub unless each "
        "is read to its end and kept for 2 s (120,000 calls without a crash; otherwise a crash after 4,000 to 12,000), "
        "and 576 of 2,499 errors were lost",
        "`llm` is not decoupled: `tts` requests each group of tokens, and each request has one response",
        "tests/contract/test_configs.py::test_no_inner_model_is_decoupled",
    ),
    Defect(
        "A stage hangs while its process lives, and callers get no error",
        "2.71",
        "`llm` suspended for 2 s: one caller gets an error after 3 s, the others wait for the stage's timeout",
        "`Watchdog`: a stage that has not answered for a while gets a ping; without an answer the process exits, and "
        "the launcher ends the server",
        "tests/server/test_still_stage.py::test_a_stage_that_stands_still_ends_the_server_and_callers_are_told",
    ),
    Defect(
        "A model process that is suspended for more than a second with a request in progress ends the server",
        "2.51, 2.71",
        "SIGSTOP and SIGCONT of flow or hift: 0.9 s survived, 1.2 s not (`lock_exception`, SIGSEGV)",
        "none; the launcher ends the other processes, and a supervisor restarts the server",
        "tests/server/test_chaos.py::test_all_is_well_after",
    ),
    Defect(
        "The server stays ready, without working, when a model process has died",
        "2.51, 2.71",
        "kill -9 of a stub: `ready` stays true, requests fail or hang",
        "`watch` detects the end of each process and kills the server at once; the containers' probe is an utterance",
        "tests/server/test_chaos.py::test_all_is_well_after",
    ),
    Defect(
        "A stop leaves callers waiting for the exit timeout",
        "2.71",
        "handlers of disconnected callers remain (8 of 3,000): after SIGTERM the others get an error only after 4.6 s",
        "the launcher makes `tts` cancel running utterances before it sends SIGTERM (`STOP`)",
        "tests/server/test_chaos.py::test_all_is_well_after",
    ),
    Defect(
        "The start hangs or aborts when models are loaded in parallel",
        "2.51",
        "twice in thirty starts on busy cores: a fork inherits a locked lock",
        "`LOAD_ARGUMENT`",
        "tests/server/test_launcher.py::test_models_load_one_after_another",
    ),
    Defect(
        "The check whether a caller is still connected blocks the event loop",
        "2.51, 2.71",
        "with 240 checks per second one refusal in a hundred took 150 ms",
        "`LOOKS_PER_SECOND` limits the checks",
        "tests/server/test_cancel.py::test_others_do_not_notice_a_cancellation",
    ),
    Defect(
        "A stream that is cancelled at its end does not count as ended",
        "2.51, 2.71",
        "SIGTERM then waits for it: 8 of 3,000 (2.71)",
        "the clients read to the end of the stream after an error",
        "tests/client/test_client_stream.py::test_the_end_behind_an_error_is_read",
    ),
    Defect(
        "Calls between models drop the code of an error",
        "2.51, 2.71",
        "the caller gets only a message, prefixed by the ensemble",
        "code and reason are in the message (`CodedMessage`)",
        "tests/server/test_wrong_input.py::test_errors_of_inner_models_keep_their_code",
    ),
    Defect(
        "The Python backend does not support numpy 2",
        "2.51",
        "it reads the size of an element where numpy 2 has the flags of the type: texts and arrays arrive empty, or as "
        "repetitions of their first byte",
        "`tensors` corrects the strides of the backend's arrays, and passes numbers by DLPack",
        "tests/server/test_tensors.py::test_tensors_of_every_type_and_shape_arrive_as_they_were_sent",
    ),
    Defect(
        "The Python backend needs a libpython that Debian's and Ubuntu's Python lacks",
        "2.51",
        "the stubs for 3.11 and 3.12 do not start on a machine without the package libpython3.11 or libpython3.12",
        "`fetch` extracts the library from the distribution's package, without root",
        "tests/unit/test_tritonserver.py::test_a_missing_python_library_is_taken_from_the_distribution",
    ),
    Defect(
        "A shape of 2^62 elements without bytes ends a model process",
        "2.51, 2.71",
        "the size overflows to 0 and passes Triton's check; numpy then raises an error that the backend does not catch",
        "none: the launcher ends the server",
        "tests/malformed/test_known_in_triton.py::test_a_shape_beyond_64_bits_is_refused_or_ends_the_server",
    ),
    Defect(
        "Shared memory remains after a hard stop",
        "2.51, 2.71",
        "kill -9 of the launcher: regions of 1 to 64 MB a model",
        "regions have a name of the launcher, and the next start removes those of servers that have ended",
        "tests/server/test_launcher.py::test_what_a_killed_server_left_is_removed_by_the_next",
    ),
)


def table() -> str:
    """Return `DEFECTS` as the table of docs/triton.md."""
    rows = ["| defect | versions | observation | workaround | test |", "|---|---|---|---|---|"]
    for defect in DEFECTS:
        test = defect.test.rpartition("/")[2].replace("::", " :: ")
        rows.append(f"| {defect.name} | {defect.versions} | {defect.seen} | {defect.workaround} | `{test}` |")
    return "\n".join(rows)


def asks_for_status(parameters: Mapping[str, object]) -> bool:
    """Return whether a request's caller has sent the `STATUS_HEADER`."""
    return str(parameters.get(STATUS_HEADER, "")).lower() == "true"


async def outlast(answers: list[Awaitable[Any]]) -> None:
    """Await the answers of one call of an entry model, which are sent while it waits and never before."""
    await asyncio.gather(asyncio.sleep(CALL_SECONDS), *answers)
