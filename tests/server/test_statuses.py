"""Callers that request gRPC statuses do not crash the server: see `cosyserve.triton_defects`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live import Live, running
from raw import STATUS_HEADER, call, message, send, words

from cosyserve_client import Client

AT_ONCE = 16
REFUSALS = 400
"""Without the pause Triton 2.51 crashed after 20 to 300 of them."""


@pytest.fixture(scope="module")
def small(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of two places."""
    with running(demo_weights, tmp_path_factory.mktemp("small") / "triton.log", max_streams="2") as live:
        yield live


@pytest.mark.timeout(200)
def test_a_full_server_survives_callers_who_ask_for_statuses(small: Live) -> None:
    with Client(small.url) as client:
        with client.session() as one, client.session() as other, ThreadPoolExecutor(AT_ONCE) as pool:
            for session in (one, other):
                session.push("They hold the places ")

            def refused(_: int) -> str:
                return call(small.url, words("text", "Hi."), status=True, seconds=30).code

            told = Counter(pool.map(refused, range(REFUSALS)))
            for session in (one, other):
                session.push("and are heard to the end.")
                session.end()
                assert sum(len(chunk.pcm) for chunk in session)
        assert told == {"UNAVAILABLE": REFUSALS}
        warnings = [
            line for line in small.log.read_text("utf-8").splitlines() if "a caller asks for gRPC statuses" in line
        ]
        assert len(warnings) == 1


def test_inner_models_tell_statuses_too(small: Live) -> None:
    for _ in range(100):
        answer = send(small.url, message("frontend"), seconds=10, headers=(STATUS_HEADER,))
        assert answer.code == "INVALID_ARGUMENT"
