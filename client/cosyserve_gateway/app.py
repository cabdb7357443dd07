"""The application: its routes, and the layers around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router, WebSocketRoute
from starlette.types import ASGIApp

from cosyserve_client import AsyncClient
from cosyserve_gateway.auth import AuthMiddleware, StreamSlots
from cosyserve_gateway.conversation import Conversation
from cosyserve_gateway.limits import RETRIES
from cosyserve_gateway.metrics import Metrics
from cosyserve_gateway.middleware import VOICES, AccessLogMiddleware, DisconnectMiddleware
from cosyserve_gateway.page import page_routes
from cosyserve_gateway.settings import Settings
from cosyserve_gateway.speech import Speech
from cosyserve_gateway.voices import Voices, models


def create_app(settings: Settings) -> ASGIApp:
    """The gateway to the server that `settings` name, for any ASGI server."""
    server = AsyncClient(settings.url, retries=RETRIES)
    metrics = Metrics()
    places = StreamSlots(settings, metrics)
    voices = Voices(server, settings)

    @asynccontextmanager
    async def connected(_: Starlette) -> AsyncIterator[None]:
        async with server:
            yield

    async def health(_: Request) -> Response:
        """200 while the speech server is ready, else 503."""
        ready = await server.ready()
        return JSONResponse({"status": "ok" if ready else "the speech server is not ready"}, 200 if ready else 503)

    async def exposition(_: Request) -> Response:
        """Metrics in the format of Prometheus."""
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")

    routes = [
        *page_routes(),
        Route("/healthz", health),
        Route("/metrics", exposition),
        Route("/v1/models", models),
        Route("/v1/audio/speech", Speech(server, places, metrics), methods=["POST"]),
        WebSocketRoute("/v1/audio/speech/stream", Conversation(server, places, metrics)),
        Route(VOICES, voices.list),
        Route(VOICES, voices.register, methods=["POST"]),
        Route(VOICES + "/{name}", voices.remove, methods=["DELETE"]),
    ]
    app: ASGIApp = Router(routes, redirect_slashes=False, lifespan=connected)
    app = AccessLogMiddleware(AuthMiddleware(DisconnectMiddleware(app), settings), metrics)
    if settings.origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("authorization", "content-type"),
            expose_headers=("x-request-id", "retry-after"),
        )
    return app
