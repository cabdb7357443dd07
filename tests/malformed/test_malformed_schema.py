"""Generated requests to the gateway's routes, right and wrong ones, get documented answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import schemathesis
from dummy_server import DummyServer
from gateways import Gateway, serving
from hypothesis import HealthCheck, settings
from judging import ANSWERED_SECONDS, Hung, Tally
from openapi import DOCUMENT
from raw import INSIDE
from requests.exceptions import Timeout

from cosyserve_gateway import Settings
from cosyserve_gateway.app import create_app

SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def speaking() -> Iterator[Gateway]:
    """Gateway in front of a dummy server that answers any text at once."""
    with DummyServer() as dummy, serving(Settings(url=dummy.url, requests_per_minute=1_000_000)) as gateway:
        yield gateway


@SCHEMA.parametrize()
@settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_made_up_requests(speaking: Gateway, tally: Tally, case: Any) -> None:
    malformed = case.meta.generation.mode.is_negative
    with tally.judging() if malformed else nullcontext():
        try:
            answer = case.call(base_url=speaking.url, timeout=ANSWERED_SECONDS)
        except Timeout:
            raise Hung from None
        known = DOCUMENT["paths"][case.path].get(case.method.lower(), {"responses": ("405",)})["responses"]
        assert str(answer.status_code) in known, answer.text
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert not INSIDE.search(error["message"]), error


def test_the_document_has_every_route() -> None:
    layer: Any = create_app(Settings())
    while not hasattr(layer, "routes"):
        layer = layer._app
    # The page's own files are no part of the API, and OpenAPI does not support WebSockets.
    served = {route.path for route in layer.routes if "." not in route.path and hasattr(route, "methods")}
    assert served == set(DOCUMENT["paths"])
