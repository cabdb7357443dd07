"""The page at ``/``, and the two files that it loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Everything comes from the gateway itself; nothing is inline."""

_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-cache",
}

_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def page_routes() -> list[Route]:
    """A route for each file, which is read once."""
    return [Route(path, _serve(name, media_type)) for path, (name, media_type) in _FILES.items()]


def _serve(name: str, media_type: str) -> Callable[[Request], Response]:
    content = Path(__file__).with_name(name).read_bytes()

    def serve(_: Request) -> Response:
        """A page: type a text, choose or record a voice, listen while the audio is generated."""
        return Response(content, media_type=media_type, headers=_HEADERS)

    return serve
