"""What Triton does wrong, and what is done here about it: every workaround, with the versions that need it.

2.51 is the release of 24.10, in the Python wheel; 2.71 that of 26.07, built from source. A workaround goes when the
oldest supported Triton no longer needs it, and not before its test passes without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

STATUS_HEADER = "triton_grpc_error"
"""gRPC header of a caller who wants errors as statuses instead of messages. The launcher has Triton hand it on."""

FORWARDED_HEADERS = ("traceparent", STATUS_HEADER)
"""Headers of a call that reach the models as parameters of its requests."""

STATUS_PAUSE_SECONDS = 0.02
"""Wait before an error that becomes a status: 3,968 in a row were sent after it without a crash."""

LOAD_ARGUMENT = "--model-load-thread-count=1"
"""One model is loaded after another, which takes no longer on few cores."""

CALL_SECONDS = 0.05
"""Shortest time that a call of an entry model takes; its answers do not wait for it."""

LOOKS_PER_SECOND = 50
"""Most looks of all streams of an entry model whether their callers are still there."""


@dataclass(frozen=True)
class Defect:
    """One thing that Triton does wrong.

    Attributes:
        name: what goes wrong.
        versions: those it was seen on.
        seen: how it was seen, with counts.
        workaround: what is done about it, and where.
        test: file and name of the test that holds it.
    """

    name: str
    versions: str
    seen: str
    workaround: str
    test: str


DEFECTS = (
    Defect(
        "The server dies when it ends a stream with a gRPC status while others run",
        "2.51, 2.71",
        "header `triton_grpc_error`: dead after 20 to 1,000 refusals (2.51), 63 to 2,735 (2.71); sent after 20 ms, "
        "3,968 were fine; where 40 % of the callers leave meanwhile, dead after 1,300",
        "the clients ask for errors as messages (`coded_errors`); an error is sent after something was awaited, and "
        "`STATUS_PAUSE_SECONDS` later to who asks for statuses all the same, whom the log warns",
        "tests/server/test_statuses.py::test_a_full_server_survives_callers_who_ask_for_statuses",
    ),
    Defect(
        "The server dies when responses are sent before the call awaits and callers leave",
        "2.51, 2.71",
        "half of the callers leave: dead after 33 to 527 utterances (2.51), 629 to 1,787 (2.71)",
        "`outlast`: a call of `tts` awaits first and answers from tasks",
        "tests/unit/test_triton_defects.py::test_a_call_outlasts_its_answers",
    ),
    Defect(
        "A call that has ended by the time the stub takes note of it is kept for ever",
        "2.51",
        "the stub's memory grows with each call",
        "`outlast`: a call takes `CALL_SECONDS` at least",
        "tests/unit/test_triton_defects.py::test_a_call_outlasts_its_answers",
    ),
    Defect(
        "Reading a decoupled model from inside another corrupts the caller's memory",
        "2.51, 2.71",
        "`async_exec(decoupled=True)`: dead after 38 utterances at 4 at once (2.51), after 1 (2.71). A decoupled `llm` "
        "that answers each request with one response (2.51): its iterators free memory of the stub unless each is read "
        "to its end and kept for 2 s (120,000 calls fine then; dead after 4,000 to 12,000 without), and 576 of 2,499 "
        "errors were lost",
        "`llm` is not decoupled: `tts` asks for each group of tokens, and each request has one response",
        "tests/contract/test_configs.py::test_no_inner_model_is_decoupled",
    ),
    Defect(
        "A stage stands still while its process lives, and nobody is told",
        "2.71",
        "`llm` stopped for 2 s and continued: one caller told after 3 s, the others wait for the stage's timeout",
        "`Watchdog`: a stage that has answered nothing for long is asked for a sign of life; without one the "
        "process ends, and the launcher ends the server",
        "tests/server/test_still_stage.py::test_a_stage_that_stands_still_ends_the_server_and_callers_are_told",
    ),
    Defect(
        "A model process that stops for more than a second with a request under way ends the server",
        "2.51, 2.71",
        "SIGSTOP and SIGCONT of flow or hift: 0.9 s survived, 1.2 s not (`lock_exception`, SIGSEGV)",
        "none; the launcher ends what is left, and whoever runs it starts it again",
        "tests/server/test_chaos.py::test_all_is_well_after",
    ),
    Defect(
        "The server stays ready when a model process has died, and useless",
        "2.51, 2.71",
        "kill -9 of a stub: `ready` stays true, requests fail or hang",
        "`watch` sees each process end and kills the server at once; the probe of containers speaks",
        "tests/server/test_chaos.py::test_all_is_well_after",
    ),
    Defect(
        "A stop leaves callers waiting for the exit timeout",
        "2.71",
        "handlers of callers who left stay behind (8 of 3,000): SIGTERM tells the others after 4.6 s",
        "the launcher has `tts` end what runs before it sends SIGTERM (`STOP`)",
        "tests/server/test_chaos.py::test_all_is_well_after",
    ),
    Defect(
        "The start hangs or aborts when models are loaded side by side",
        "2.51",
        "twice in thirty starts on busy cores: a fork inherits a lock that nobody opens",
        "`LOAD_ARGUMENT`",
        "tests/server/test_launcher.py::test_models_load_one_after_another",
    ),
    Defect(
        "Asking whether a caller is still there blocks the event loop",
        "2.51, 2.71",
        "240 looks a second made one refusal in a hundred take 150 ms",
        "`LOOKS_PER_SECOND` bounds them",
        "tests/server/test_cancel.py::test_others_do_not_notice_a_cancellation",
    ),
    Defect(
        "A stream that is cancelled as it ends is not counted as ended",
        "2.51, 2.71",
        "SIGTERM then waits for it: 8 of 3,000 (2.71)",
        "the clients read on to the end behind an error",
        "tests/client/test_client_stream.py::test_the_end_behind_an_error_is_read",
    ),
    Defect(
        "Calls between models drop the code of an error",
        "2.51, 2.71",
        "the caller sees a message alone, after words of an ensemble's own",
        "code and reason travel in the message (`CodedMessage`)",
        "tests/server/test_wrong_input.py::test_errors_of_inner_models_keep_their_code",
    ),
    Defect(
        "The Python backend does not know numpy 2",
        "2.51",
        "it reads the size of an element where numpy 2 has the flags of the type: texts and arrays arrive as their "
        "first byte over and over, or empty",
        "`tensors` gives the backend's arrays the strides that it means, and hands numbers over by DLPack",
        "tests/server/test_tensors.py::test_tensors_of_every_type_and_shape_arrive_as_they_were_sent",
    ),
    Defect(
        "The Python backend needs a libpython that Debian's and Ubuntu's Python comes without",
        "2.51",
        "the stubs for 3.11 and 3.12 do not start on a machine without the package libpython3.11 or libpython3.12",
        "`fetch` takes the library out of the distribution's package, without root",
        "tests/unit/test_tritonserver.py::test_a_missing_python_library_is_taken_from_the_distribution",
    ),
    Defect(
        "A shape of 2^62 elements without bytes ends a model process",
        "2.51, 2.71",
        "the size overflows to 0 and passes Triton's check; numpy refuses it where nobody catches that",
        "none: the launcher ends the server",
        "tests/malformed/test_known_in_triton.py::test_a_shape_beyond_64_bits_is_refused_or_ends_the_server",
    ),
    Defect(
        "What a hard stop leaves in shared memory stays",
        "2.51, 2.71",
        "kill -9 of the launcher: regions of 1 to 64 MB a model",
        "regions have a name of the launcher's own, and the next start removes those whose server is gone",
        "tests/server/test_launcher.py::test_what_a_killed_server_left_is_removed_by_the_next",
    ),
)


def table() -> str:
    """`DEFECTS` as the table of docs/triton.md."""
    rows = ["| what | versions | how it was seen | what is done | test |", "|---|---|---|---|---|"]
    for defect in DEFECTS:
        test = defect.test.rpartition("/")[2].replace("::", " :: ")
        rows.append(f"| {defect.name} | {defect.versions} | {defect.seen} | {defect.workaround} | `{test}` |")
    return "\n".join(rows)


def asks_for_status(parameters: Mapping[str, object]) -> bool:
    """Whether a request's caller has sent the `STATUS_HEADER`."""
    return str(parameters.get(STATUS_HEADER, "")).lower() == "true"


async def outlast(answers: list[Awaitable[Any]]) -> None:
    """Await the answers of one call of an entry model, which are sent while it waits and never before."""
    await asyncio.gather(asyncio.sleep(CALL_SECONDS), *answers)
