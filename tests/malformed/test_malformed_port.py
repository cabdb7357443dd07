"""Bytes that are not gRPC on the server's ports, and messages that are not protobuf."""

from __future__ import annotations

import random
import socket
import struct
from urllib.parse import urlsplit

import grpc
import pytest
from judging import ANSWERED_SECONDS, Hung, Tally
from live import Live
from raw import message, words
from tritonclient.grpc import service_pb2, service_pb2_grpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GARBAGE = random.Random(1).randbytes(5000)


def frame(kind: int, stream: int, payload: bytes, flags: int = 0, length: int | None = None) -> bytes:
    """One frame of HTTP/2."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


DATA, HEADERS, RESET, SETTINGS, PING, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
OPENED = PREFACE + frame(SETTINGS, 0, b"")

BYTES = {
    "nothing": b"",
    "garbage": GARBAGE,
    "HTTP/1.1": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a post": b"POST /inference.GRPCInferenceService/ModelInfer HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc",
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "half a preface": PREFACE[:10],
    "a preface": PREFACE,
    "a preface, then garbage": PREFACE + GARBAGE,
    "settings out of range": PREFACE + frame(SETTINGS, 0, struct.pack(">HI", 5, 2**31)),
    "settings by the thousand": OPENED + frame(SETTINGS, 0, b"") * 2000,
    "frame of 16 MB": OPENED + frame(DATA, 1, b"", length=2**24 - 1),
    "data of no stream": OPENED + frame(DATA, 0, b"abc"),
    "headers of garbage": OPENED + frame(HEADERS, 1, GARBAGE[:300], flags=4),
    "headers without end": OPENED + frame(HEADERS, 1, b"\x82") + frame(CONTINUATION, 1, bytes(100)) * 1000,
    "resets": OPENED + b"".join(frame(RESET, stream, bytes(4)) for stream in range(1, 1001, 2)),
    "pings": OPENED + frame(PING, 0, b"12345678") * 2000,
    "window beyond": OPENED + frame(WINDOW, 0, struct.pack(">I", 2**31 - 1)) * 2,
}

METRICS = {
    "garbage": GARBAGE,
    "a post": b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nabcd",
    "up and up": b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
    "long path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "endless chunk": b"POST /metrics HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nx",
}

GOOD = message("voices", words("action", "list")).SerializeToString()

PROTOBUF = {
    "nothing": b"",
    "garbage": GARBAGE[:200],
    "cut": GOOD[:-3],
    "half": GOOD[: len(GOOD) // 2],
    "a field of 4 GB": b"\x0a\xff\xff\xff\xff\x0f",
    "a number without end": b"\xff" * 50,
    "another wire type": b"\x08\x01",
    "groups in groups": b"\x0b" * 1000,
    "a name not UTF-8": b"\x0a\x02\xff\xfe",
    "a megabyte of zeros": bytes(2**20),
}


def push(url: str, data: bytes) -> None:
    """Send bytes, and wait for the connection's end or for a pause."""
    at = urlsplit(f"//{url}")
    with socket.create_connection((at.hostname, at.port), ANSWERED_SECONDS) as connection:
        connection.settimeout(0.2)
        try:
            connection.sendall(data)
            while connection.recv(65_536):
                pass
        except OSError:  # closed by the server, or silence
            return


def assert_serves(server: Live) -> None:
    """Check that other requests are still served."""
    with grpc.insecure_channel(server.url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = service_pb2.ModelReadyRequest(name="tts")
        try:
            ready = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelReady(request, timeout=ANSWERED_SECONDS)
        except grpc.RpcError as error:
            raise Hung from error
    assert ready.ready


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_grpc(server: Live, tally: Tally, name: str) -> None:
    with tally.judging():
        push(server.url, BYTES[name])
        assert_serves(server)


@pytest.mark.parametrize("name", METRICS)
def test_bytes_on_the_port_of_metrics(server: Live, tally: Tally, name: str) -> None:
    with tally.judging():
        push(urlsplit(server.metrics_url).netloc, METRICS[name])
        assert server.held()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
@pytest.mark.parametrize("name", PROTOBUF)
def test_messages_that_are_no_protobuf(server: Live, tally: Tally, method: str, name: str) -> None:
    path, code = f"/inference.GRPCInferenceService/{method}", grpc.StatusCode.OK
    with tally.judging(), grpc.insecure_channel(server.url) as channel:
        try:
            if method == "ModelInfer":
                channel.unary_unary(path)(PROTOBUF[name], timeout=ANSWERED_SECONDS)
            else:
                list(channel.stream_stream(path)(iter([PROTOBUF[name]]), timeout=ANSWERED_SECONDS))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Hung from error
            code = error.code()
        # Triton ends a stream that it cannot parse, without an answer.
        right = (
            (grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND) if method == "ModelInfer" else (grpc.StatusCode.OK,)
        )
        assert code in right
        assert_serves(server)
