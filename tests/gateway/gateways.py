"""Running gateways for tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
from live import PATIENCE, wait_until
from openai import OpenAI

from cosyserve.serve import free_port
from cosyserve_gateway import Settings, create_app
from cosyserve_gateway.cli import Server, configuration


@dataclass(frozen=True)
class Gateway:
    """Address of a running gateway, with clients."""

    url: str

    @property
    def socket_url(self) -> str:
        return self.url.replace("http", "ws") + "/v1/audio/speech/stream"

    def openai(self, key: str = "none") -> OpenAI:
        """Make OpenAI's own client for this gateway."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)

    def post(self, headers: dict[str, str] | None = None, **body: object) -> httpx2.Response:
        """Send a speech request, and return the response."""
        filled = {"model": "cosyvoice", "input": "Hi.", "response_format": "pcm", **body}
        return httpx2.post(f"{self.url}/v1/audio/speech", json=filled, headers=headers, timeout=PATIENCE)

    def metric(self, name: str) -> float:
        """The value of one metric, with its labels as Prometheus writes them."""
        lines = httpx2.get(f"{self.url}/metrics", timeout=PATIENCE).text.splitlines()
        return next((float(value) for found, value in (line.rsplit(" ", 1) for line in lines) if found == name), 0.0)

    def wait_idle(self) -> None:
        """Wait until no utterance is in progress."""
        wait_until(lambda: not self.metric("cosyserve_gateway_active_streams"), lambda: "an utterance goes on")

    def wait_ready(self) -> None:
        """Wait until the gateway answers."""
        wait_until(self._answers, lambda: "the gateway does not answer")

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/healthz", timeout=PATIENCE).is_success
        except httpx2.TransportError:
            return False


@contextmanager
def serving(settings: Settings) -> Iterator[Gateway]:
    """A gateway in a thread of this process."""
    port = free_port()
    server = Server(configuration(create_app(settings), "127.0.0.1", port))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        gateway = Gateway(f"http://127.0.0.1:{port}")
        gateway.wait_ready()
        yield gateway
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the gateway does not stop"
