"""Targets of malformed requests: one server with a gateway, and another stream that must not be affected."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from gateways import Gateway, serving
from judging import ANSWERED_SECONDS, TALLY, Tally
from live import Live
from numpy.typing import NDArray

from cosyserve_client import Client
from cosyserve_gateway import Settings

TEXT = "Whatever others send, this is spoken as ever."


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[TALLY].tried:
        terminalreporter.write_line(str(config.stash[TALLY]))


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    return pytestconfig.stash[TALLY]


@pytest.fixture(scope="session")
def doorman(server: Live) -> Iterator[Gateway]:
    """A gateway that lets every request in."""
    with serving(Settings(url=server.url, requests_per_minute=1_000_000)) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def spoken(client: Client) -> NDArray[np.int16]:
    """Audio from before the first malformed request."""
    return client.synthesize(TEXT, seed=7).pcm


@pytest.fixture(autouse=True, scope="module")
def unharmed(server: Live, client: Client, spoken: NDArray[np.int16]) -> Iterator[None]:
    """During and after the requests of a module, other streams get the same samples as before; nothing is held."""
    server.wait_idle()
    before = processes()
    over = threading.Event()

    def listen() -> None:
        while not over.wait(0.2):
            np.testing.assert_array_equal(client.synthesize(TEXT, seed=7).pcm, spoken)

    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(listen)
        yield
        over.set()
        neighbour.result(ANSWERED_SECONDS)
    server.wait_idle()
    np.testing.assert_array_equal(client.synthesize(TEXT, seed=7).pcm, spoken)
    assert before <= processes()


def processes() -> set[int]:
    """Of all servers that were started here."""
    below = psutil.Process().children(recursive=True)
    return {process.pid for process in below if process.name().startswith("triton")}
