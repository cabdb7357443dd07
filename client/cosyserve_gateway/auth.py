"""Authentication, rate limits and stream quotas of ``/v1``."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cosyserve_gateway.errors import FORBIDDEN_ORIGIN, INVALID_API_KEY, OVERLOADED, RATE_LIMIT, TOO_MANY_STREAMS
from cosyserve_gateway.limits import REMEMBERED_CLIENTS, RETRY_SECONDS
from cosyserve_gateway.metrics import Metrics
from cosyserve_gateway.settings import Settings

CALLER = "cosyserve.caller"
"""Key in the scope of an admitted request: identity of its client, for limits and logs."""


class AuthMiddleware:
    """Passes requests on to `app`; those to ``/v1`` need an allowed origin and a key, and are rate-limited."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._keys = [_digest(key) for key in settings.api_keys]
        self._rate = RateLimit(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["path"].startswith("/v1/"):
            headers = Headers(scope=scope)
            self._check_origin(headers)
            scope[CALLER] = caller = self._identify(headers, scope["client"])
            self._rate.take(caller)
        await self._app(scope, receive, send)

    def _check_origin(self, headers: Headers) -> None:
        # A page may post forms and open WebSockets anywhere, whatever CORS says; its browser only sends the origin.
        origin = headers.get("origin")
        own = origin is not None and origin.partition("://")[2] == headers.get("host")
        if origin is not None and not own and origin not in self._settings.origins:
            raise FORBIDDEN_ORIGIN("this origin is not allowed to call the gateway")

    def _identify(self, headers: Headers, address: tuple[str, int] | None) -> str:
        if not self._keys:
            return address[0] if address else "local"
        scheme, _, key = headers.get("authorization", "").partition(" ")
        shown = _digest(key) if scheme.lower() == "bearer" else b""
        # Digests, all of them, in constant time: the time it takes reveals nothing about a key.
        if not sum(hmac.compare_digest(shown, known) for known in self._keys):
            raise INVALID_API_KEY("an API key of this gateway is required as a bearer token")
        return f"key-{shown.hex()[:8]}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class RateLimit:
    """Rate limit of each client: a token bucket for one minute."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when that was

    def take(self, caller: str) -> None:
        """Counts a request; `ApiError` 429 if it exceeds the limit."""
        now = time.monotonic()
        left, before = self._buckets.pop(caller, (self._per_minute, now))
        left = min(self._per_minute, left + (now - before) * self._per_minute / 60)
        enough = left >= 1
        self._buckets[caller] = (left - enough, now)
        if len(self._buckets) > REMEMBERED_CLIENTS:
            self._buckets.popitem(last=False)
        if not enough:
            wait = math.ceil((1 - left) * 60 / self._per_minute)
            raise RATE_LIMIT(f"more than {self._per_minute} requests per minute", retry_after=wait)


class StreamSlots:
    """Utterances in progress, in total and of each client."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._most = settings.streams
        self._most_each = settings.streams_per_client
        self._gauge = metrics.active_streams
        self._taken: dict[str, int] = {}

    @contextmanager
    def taken(self, caller: str) -> Iterator[None]:
        """Occupies a slot; `ApiError` at once if there is none: 429 for the client's limit, 503 for the total."""
        own = self._taken.get(caller, 0)
        if own >= self._most_each:
            raise TOO_MANY_STREAMS(f"more than {self._most_each} concurrent utterances", retry_after=RETRY_SECONDS)
        if sum(self._taken.values()) >= self._most:
            raise OVERLOADED(f"all {self._most} streams are in use", retry_after=RETRY_SECONDS)
        self._taken[caller] = own + 1
        self._gauge.inc()
        try:
            yield
        finally:
            self._gauge.dec()
            self._taken[caller] -= 1
            if not self._taken[caller]:
                del self._taken[caller]
