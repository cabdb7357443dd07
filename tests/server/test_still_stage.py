"""A stage that hangs ends the server within seconds, and its callers get an error."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from live import PATIENCE, Live
from measure import model_name
from raw import Answer, message, numbers, send

from cosyserve.errors import ServeError
from cosyserve.limits import SIGN_OF_LIFE_SECONDS, STILL_SECONDS
from cosyserve.serve import Server, free_port, watch
from cosyserve_client import Client, CosyServeClientError

TEXT = "This is said for long enough that a stage can stop in the middle of it. " * 4
LATE = STILL_SECONDS + 2 * SIGN_OF_LIFE_SECONDS + PATIENCE
"""Maximum seconds until the watchdog reacts: far below the timeouts of stages, which are minutes."""


def speak(client: Client) -> CosyServeClientError | None:
    try:
        client.synthesize(TEXT, seed=1)
    except CosyServeClientError as error:
        return error
    return None


@pytest.mark.parametrize("model", ["llm", "frontend"])
def test_a_stage_that_stands_still_ends_the_server_and_callers_are_told(
    demo_weights: Path, tmp_path: Path, model: str
) -> None:
    server = Server(demo_weights, grpc_port=free_port(), metrics_port=free_port(), log=tmp_path / "triton.log")
    with server.running() as process, Client(f"127.0.0.1:{server.grpc_port}") as client, ThreadPoolExecutor(4) as pool:
        (stage,) = (p for p in psutil.Process(process.pid).children() if model_name(p) == model)
        stage.suspend()
        began = time.monotonic()
        callers = [pool.submit(speak, client) for _ in range(3)]
        with pytest.raises(ServeError):
            watch(process, server.processes)
        told = [caller.result(timeout=PATIENCE) for caller in callers]
        assert time.monotonic() - began < LATE, "a timeout of the stage ended it"
        assert all(told)
        assert process.wait(timeout=PATIENCE)


PINGED = {
    "frontend": (),
    "llm": (numbers("utterance", "INT64", [0]),),
    "flow": (numbers("speech_tokens", "INT32", [[0]]), numbers("final", "BOOL", [[False]])),
    "hift": (numbers("mel", "FP32", np.zeros((1, 80, 1))), numbers("mel_final", "BOOL", [[False]])),
}
"""Inputs without which Triton itself would refuse a request."""


@pytest.mark.parametrize("model", PINGED)
def test_a_ping_is_answered_by_the_process_without_any_work(server: Live, model: str) -> None:
    sequence = {"sequence": 2**41, "start": True, "end": True} if model in ("flow", "hift") else {}
    asked = message(model, *PINGED[model], **sequence, ping=True)  # type: ignore[arg-type]
    assert send(server.url, asked, seconds=5) == Answer("OK", "", 1)
    assert not any(server.held().values())


def test_a_session_that_waits_for_its_writer_is_no_stage_that_stands_still(demo_weights: Path, tmp_path: Path) -> None:
    server = Server(demo_weights, grpc_port=free_port(), metrics_port=free_port(), log=tmp_path / "triton.log")
    with server.running() as process, Client(f"127.0.0.1:{server.grpc_port}") as client:
        with client.session(seed=1) as session:
            session.push("It waits ")
            time.sleep(STILL_SECONDS + SIGN_OF_LIFE_SECONDS + 2)
            session.push("for its writer.")
            session.end()
            assert sum(len(chunk.pcm) for chunk in session)
        assert process.poll() is None
