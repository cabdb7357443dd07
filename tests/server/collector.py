"""OpenTelemetry collector for tests: OTLP over HTTP, with the received spans."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from live import wait_until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """Keeps all spans. While `answers` is not set, it takes requests and does not answer them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.received = b""
        self.waiting = 0
        self.answers = threading.Event()
        self.answers.set()

    def take(self, body: bytes) -> None:
        """The body of a request."""
        if not self.answers.is_set():
            self.waiting += 1
            self.answers.wait()
            self.waiting -= 1
        self.received += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def tree(self, request_id: str) -> tuple[Span, list[Span]]:
        """The span of an utterance, once it is there, and those of its stages in the order in which they began."""

        def found() -> list[Span]:
            return [s for s in self.spans if s.name == "utterance" and told(s)["request_id"] == request_id]

        wait_until(lambda: bool(found()), lambda: f"no span of {request_id}")
        (whole,) = found()
        stages = [span for span in self.spans if span.parent_span_id == whole.span_id]
        return whole, sorted(stages, key=lambda span: span.start_time_unix_nano)


def told(span: Span) -> dict[str, str | int | float | bool]:
    """The attributes of a span."""
    found = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        assert kind is not None
        found[attribute.key.removeprefix("cosyserve.")] = getattr(attribute.value, kind)
    return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            yield collector
        finally:
            collector.answers.set()
            server.shutdown()
            serving.join()
