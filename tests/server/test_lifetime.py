"""An utterance that takes too long is cancelled, with a reason."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live import PATIENCE, Live, running

from cosyserve.metrics import CANCELLED
from cosyserve_client import Cancelled, Client, Session

OVER = "the utterance took longer than 1 s"
LONG = "This is said over and over, for much longer than anyone would listen. " * 40


@pytest.fixture(scope="module")
def hasty(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Server with a lifetime of one second."""
    with running(weights, tmp_path_factory.mktemp("hasty") / "triton.log", lifetime="1") as live:
        _warm(live)
        yield live


def _warm(live: Live) -> None:
    """Warm up until a short utterance is within the lifetime: the first ones of a server take longer."""
    deadline = time.monotonic() + PATIENCE
    with Client(live.url) as client:
        while True:
            try:
                client.synthesize("Hi.", seed=1)
                return
            except Cancelled:
                assert time.monotonic() < deadline, "a short utterance takes too long"


def talk(session: Session) -> None:
    """Write text and read audio without end."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        session.push("One more word and ")
        next(session)


def test_a_text_that_takes_too_long_is_cut_off(hasty: Live) -> None:
    with Client(hasty.url) as client:
        short = client.synthesize("Hi.", seed=1).pcm
        counted = hasty.metric(CANCELLED, model="tts", reason="lifetime")
        with client.stream(LONG, seed=1) as stream:
            assert len(next(stream).pcm)
            with pytest.raises(Cancelled, match=OVER):
                list(stream)
        hasty.wait_idle()
        assert hasty.metric(CANCELLED, model="tts", reason="lifetime") == counted + 1
        np.testing.assert_array_equal(client.synthesize("Hi.", seed=1).pcm, short)


def test_a_session_that_goes_on_too_long_is_ended(hasty: Live) -> None:
    with Client(hasty.url) as client, client.session(seed=1) as session:
        with pytest.raises(Cancelled, match=OVER):
            talk(session)
        hasty.wait_idle()
