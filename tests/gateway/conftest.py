"""Gateways: one as a process in front of the shared server, and one in front of a dummy server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dummy_server import DummyServer
from gateways import Gateway, serving
from live import PATIENCE, Live

from cosyserve.serve import free_port
from cosyserve_client import Client
from cosyserve_gateway import Settings


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Log of `gateway`."""
    return tmp_path_factory.mktemp("gateway") / "log.jsonl"


@pytest.fixture(scope="session")
def gateway(server: Live, log: Path) -> Iterator[Gateway]:
    port = free_port()
    command = [sys.executable, "-m", "cosyserve_gateway", "--port", str(port)]
    environ = {**os.environ, "COSYSERVE_GATEWAY_URL": server.url}
    with log.open("wb") as out, subprocess.Popen(command, env=environ, stdout=out, stderr=out) as process:
        try:
            gateway = Gateway(f"http://127.0.0.1:{port}")
            gateway.wait_ready()
            yield gateway
        finally:
            process.terminate()
            process.wait(PATIENCE)


@pytest.fixture(scope="session")
def voice(client: Client) -> str:
    """A voice of the server."""
    return client.list_voices()[0].name


@pytest.fixture(scope="session")
def dummy() -> Iterator[DummyServer]:
    with DummyServer() as running:
        yield running


@pytest.fixture(scope="session")
def before_dummy(dummy: DummyServer) -> Iterator[Gateway]:
    """Gateway in front of a dummy server, whose behaviour the text selects."""
    with serving(Settings(url=dummy.url)) as gateway:
        yield gateway
