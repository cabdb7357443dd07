"""``cosyserve-gateway``: serve HTTP in front of a CosyServe server."""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import Annotated

import typer
import uvicorn
from starlette.types import ASGIApp

from cosyserve.logs import log_json_lines
from cosyserve_gateway import limits
from cosyserve_gateway.app import create_app
from cosyserve_gateway.settings import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"auto_envvar_prefix": "COSYSERVE_GATEWAY"})
def serve(
    url: Annotated[str, typer.Option(help="gRPC address of the server, host:port")] = Settings.url,
    host: Annotated[str, typer.Option(help="Address to bind")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind")] = 8080,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="API key(s) required from callers of /v1 (none: open to all); prefer the environment variable"
        ),
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Allowed origin(s) of other web pages, such as https://example.org")
    ] = None,
    requests_per_minute: Annotated[
        int, typer.Option(min=1, help="Requests per minute and client")
    ] = limits.REQUESTS_PER_MINUTE,
    streams: Annotated[int, typer.Option(min=1, help="Concurrent utterances")] = limits.STREAMS,
    streams_per_client: Annotated[
        int, typer.Option(min=1, help="Concurrent utterances per client")
    ] = limits.STREAMS_PER_CLIENT,
    voice_changes: Annotated[bool, typer.Option(help="Allow callers to register and delete voices")] = True,
) -> None:
    """Serve OpenAI's speech endpoint, a WebSocket and a page until interrupted.

    Each option can be set in the environment too, as COSYSERVE_GATEWAY_URL; separate several keys with spaces.
    """
    log_json_lines()
    settings = Settings(
        url=url,
        api_keys=tuple(api_key or ()),
        origins=tuple(origin or ()),
        requests_per_minute=requests_per_minute,
        streams=streams,
        streams_per_client=streams_per_client,
        voice_changes=voice_changes,
    )
    server = Server(configuration(create_app(settings), host, port))
    with contextlib.suppress(KeyboardInterrupt):
        server.run()


def configuration(application: ASGIApp, host: str, port: int) -> uvicorn.Config:
    """Returns uvicorn's configuration with the gateway's limits."""
    return uvicorn.Config(
        application,
        host,
        port,
        loop="asyncio",
        http="h11",
        ws="websockets-sansio",
        ws_max_size=limits.MAX_JSON_BYTES,
        ws_per_message_deflate=False,  # audio gets no smaller, and a small frame could become a large one
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # anybody could name an address in them
        server_header=False,
        limit_concurrency=limits.CONNECTIONS,
        timeout_graceful_shutdown=limits.SHUTDOWN_SECONDS,
    )


class Server(uvicorn.Server):
    """Prints the address as soon as the server listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            url = f"http://{self.config.host}:{self.config.port}"
            logging.getLogger("cosyserve_gateway").info("ready", extra={"fields": {"url": url}})
