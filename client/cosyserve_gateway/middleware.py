"""Middleware of every request: answers to errors, access log, limits of the body, cancels."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cosyserve.logs import request_id
from cosyserve_client import SpeechOptions
from cosyserve_gateway.auth import CALLER
from cosyserve_gateway.errors import REQUEST_TIMEOUT, TOO_LARGE, ApiError, ClientLeft, api_error
from cosyserve_gateway.limits import BODY_SECONDS, MAX_JSON_BYTES, MAX_UPLOAD_BYTES, STALLED_SECONDS
from cosyserve_gateway.metrics import Metrics

NOTES = "cosyserve.notes"
"""Key in the scope: fields for the log line of a request, never its text or audio."""

REQUEST_ID = "cosyserve.request_id"
"""Key in the scope: id of the request in all logs."""

VOICES = "/v1/audio/voices"

_LOG = logging.getLogger("cosyserve_gateway")
_CLIENT_CLOSED = 499  # as nginx logs it; no client is left to read it


def origin(scope: Scope) -> SpeechOptions:
    """Returns the options that pass request id and trace on to the server."""
    return {"request_id": scope[REQUEST_ID], "traceparent": Headers(scope=scope).get("traceparent")}


class AccessLogMiddleware:
    """Runs `app`; answers its errors, counts and logs. The outermost layer.

    An error after the answer has begun breaks the connection off: a client that got all it was promised can tell.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        scope[REQUEST_ID] = id = request_id(Headers(scope=scope).get("x-request-id", ""))
        scope[NOTES] = notes = {}
        scope["app"] = self  # the router then raises its 404 and 405, to be answered here like the rest
        started = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
                status = message.get("status", 101)
                MutableHeaders(scope=message)["x-request-id"] = id
            # A client that does not read would hold a slot for ever.
            try:
                async with asyncio.timeout(STALLED_SECONDS):
                    await send(message)
            except TimeoutError:
                raise ClientLeft from None

        try:
            await self._app(scope, receive, answer)
        except ClientLeft:
            notes["outcome"] = "cancelled"
            status = status or _CLIENT_CLOSED
        except Exception as error:
            refusal = api_error(error)
            notes |= {"outcome": "failed", "error": refusal.code}
            if refusal.status == 500:
                _LOG.error("failed", exc_info=error, extra={"fields": {"request_id": id}})
            elif refusal.status > 500:  # the answer leaves out what only operators may know
                notes["detail"] = str(error)
            if not status:
                await _refuse(scope, receive, answer, refusal, error)
        finally:
            # The pattern, not the path, which may hold anything.
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, status).inc()
            line = {
                "request_id": id,
                "method": scope.get("method", "WEBSOCKET"),
                "route": route,
                "status": status,
                "seconds": round(time.perf_counter() - started, 4),
                "client": scope.get(CALLER) or (scope["client"] or ("local",))[0],
                **notes,
            }
            _LOG.info("request", extra={"fields": line})


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: ApiError, error: Exception) -> None:
    headers = {**(getattr(error, "headers", None) or {}), **refusal.headers}
    response = JSONResponse(refusal.envelope(), refusal.status, headers)
    if scope["type"] == "websocket":
        await receive()  # the request to open, which is refused

        async def deny(message: Message) -> None:
            await send({**message, "type": f"websocket.{message['type']}"})

        return await response({**scope, "type": "http"}, receive, deny)
    return await response(scope, receive, send)


class DisconnectMiddleware:
    """Runs `app` with the whole body of a request, and cancels it if the client disconnects.

    Raises:
        ApiError: the body is too large, of a kind that nothing here takes, or too slow.
        ClientLeft: the client closed its connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = await _body(scope, receive)
        complete = False

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def note_end(message: Message) -> None:
            nonlocal complete
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def listen() -> None:
            while not complete and (await receive())["type"] != "http.disconnect":
                pass

        working = asyncio.ensure_future(self._app(scope, replay, note_end))
        listening = asyncio.ensure_future(listen())
        try:
            await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and not complete:
                raise ClientLeft
            await working
        finally:
            for task in (working, listening):
                task.cancel()
            await asyncio.gather(working, listening, return_exceptions=True)


async def _body(scope: Scope, receive: Receive) -> bytes:
    headers = Headers(scope=scope)
    most = MAX_UPLOAD_BYTES if scope["path"] == VOICES else MAX_JSON_BYTES
    large = TOO_LARGE(f"the body is larger than {most} bytes")
    if int(headers.get("content-length", 0)) > most:
        raise large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                body += message.get("body", b"")
                if len(body) > most:
                    raise large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise REQUEST_TIMEOUT(f"the body did not arrive within {BODY_SECONDS:g} s") from None
