"""Malformed HTTP requests as bytes, with the right status and error code."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from cosyserve_gateway.limits import MAX_JSON_BYTES, MAX_UPLOAD_BYTES

SPEECH = "/v1/audio/speech"
VOICES = "/v1/audio/voices"


@dataclass(frozen=True)
class Asked:
    """Bytes to send.

    Attributes:
        status: of the answer.
        code: of the error in its body; empty where the HTTP layer itself refuses, in words.
        param: the field that is named.
    """

    data: bytes
    status: int
    code: str = "invalid_value"
    param: str | None = None


def request(method: str, path: str, *headers: str, body: bytes = b"", length: int | None = None) -> bytes:
    """A request as it goes over the wire; the length is that of the body unless said otherwise."""
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"content-length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


JSON = "content-type: application/json"


def post(body: bytes, *, path: str = SPEECH) -> bytes:
    return request("POST", path, JSON, body=body)


OK = {"model": "tts-1", "input": "Hi.", "response_format": "pcm"}


def fields(param: str | None, status: int = 400, code: str = "invalid_value", **changed: object) -> Asked:
    """Make a valid request with some fields changed."""
    return Asked(post(json.dumps(OK | changed).encode()), status, code, param)


def raw(text: str | bytes, param: str | None = None) -> Asked:
    """Make a request whose body is not valid JSON."""
    return Asked(post(text if isinstance(text, bytes) else text.encode()), 400, param=param)


def without(name: str) -> Asked:
    body = {key: value for key, value in OK.items() if key != name}
    return Asked(post(json.dumps(body).encode()), 400, param=name)


START = json.dumps(OK)[:-1]

BODIES = {
    "nothing": raw(""),
    "blank": raw(" \n"),
    "NUL": raw("\0"),
    "half": raw(START),
    "a comma too many": raw(START + ",}"),
    "two bodies": raw(json.dumps(OK) * 2),
    "comment": raw("/* */" + json.dumps(OK)),
    "single quotes": raw(str(OK)),
    "null": raw("null"),
    "number": raw("1"),
    "string": raw('"Hi."'),
    "list": raw("[" + json.dumps(OK) + "]"),
    "BOM": raw(b"\xef\xbb\xbf" + json.dumps(OK).encode()),
    "UTF-16": raw(json.dumps(OK).encode("utf-16")),
    "latin-1": raw('{"model": "tts-1", "input": "é"}'.encode("latin-1")),
    "100,000 levels of lists": raw("[" * 100_000),
    "20,000 levels of objects": raw('{"a":' * 20_000),
    "deep input": raw(START + ', "input": ' + "[" * 5000 + "]" * 5000 + "}"),
    "deep unknown field": raw(START + ', "x": ' + "[" * 100 + "]" * 100 + "}", "x"),
    "NaN": raw(START + ', "speed": NaN}', "speed"),
    "Infinity": raw(START + ', "speed": Infinity}', "speed"),
    "1e999": raw(START + ', "speed": 1e999}', "speed"),
    "10,000 digits": raw(START + ', "speed": ' + "9" * 10_000 + "}", None),
    "10,000 digits of seed": raw(START + ', "seed": ' + "9" * 4000 + "}", "seed"),
    "lone surrogate": raw(START + ', "input": "\\ud800"}'),
    "reversed surrogates": raw(START + ', "input": "\\ude00\\ud83d"}'),
    "half an escape": raw(START + ', "input": "\\u12"}'),
    "control character": raw(START + ', "input": "a\nb"}'),
    "form": raw("model=tts-1&input=Hi."),
    "XML": raw("<speak>Hi.</speak>"),
    "gzip": raw(b"\x1f\x8b\x08\x00" + bytes(20)),
    "one field twice, the last wrong": raw(START + ', "speed": "x"}', "speed"),
    "a thousand unknown fields": raw(START + "".join(f', "x{n}": 1' for n in range(1000)) + "}", "x0"),
    "long name of a field": raw(START + f', "{"x" * 10_000}": 1}}', "x" * 200),
    "field with lines": raw(START + ', "a\\nb": 1}', "a\nb"),
}

FIELDS = {
    "no model": without("model"),
    "no input": without("input"),
    "model null": fields("model", model=None),
    "model number": fields("model", model=1),
    "model unknown": fields("model", 404, "model_not_found", model="../cosyvoice"),
    "model empty": fields("model", 404, "model_not_found", model=""),
    "model long": fields("model", 404, "model_not_found", model="m" * 10_000),
    "input null": fields("input", input=None),
    "input list": fields("input", input=["Hi."]),
    "input object": fields("input", input={"text": "Hi."}),
    "input true": fields("input", input=True),
    "input empty": fields("input", input=""),
    "input blank": fields("input", input=" \t\n\u3000"),
    "input NUL": fields("input", input="\0"),
    "input emoji": fields("input", input="\U0001f600" * 10),
    "input 4097": fields("input", input="a" * 4097),
    "input 4097 emoji": fields("input", input="\U0001f600" * 4097),
    "voice number": fields("voice", voice=1),
    "voice list": fields("voice", voice=["demo"]),
    "voice object without id": fields("voice", voice={"name": "demo"}),
    "voice object with more": fields("voice", voice={"id": "demo", "path": "/etc"}),
    "voice id number": fields("voice", voice={"id": 1}),
    "voice empty": fields("voice", 404, "voice_not_found", voice=""),
    "voice path": fields("voice", 404, "voice_not_found", voice="../../etc/passwd"),
    "voice NUL": fields("voice", 404, "voice_not_found", voice="demo\0"),
    "voice long": fields("voice", 404, "voice_not_found", voice="v" * 10_000),
    "voice object unknown": fields("voice", 404, "voice_not_found", voice={"id": "nobody"}),
    "instructions number": fields("instructions", instructions=1),
    "instructions empty": fields("instructions", instructions=""),
    "instructions long": fields("instructions", instructions="slowly " * 200),
    "format upper": fields("response_format", response_format="MP3"),
    "format unknown": fields("response_format", response_format="ogg"),
    "format null": fields("response_format", response_format=None),
    "format number": fields("response_format", response_format=3),
    "stream_format unknown": fields("stream_format", stream_format="ws"),
    "stream_format null": fields("stream_format", stream_format=None),
    "speed text": fields("speed", speed="1.0"),
    "speed true": fields("speed", speed=True),
    "speed list": fields("speed", speed=[1]),
    "speed 0": fields("speed", speed=0),
    "speed negative": fields("speed", speed=-1.0),
    "speed 0.25": fields("speed", speed=0.25),
    "speed 4": fields("speed", speed=4.0),
    "speed 1e300": fields("speed", speed=1e300),
    "speed tiny": fields("speed", speed=5e-324),
    "seed text": fields("seed", seed="1"),
    "seed float": fields("seed", seed=1.5),
    "seed true": fields("seed", seed=True),
    "seed 2^63": fields("seed", seed=2**63),
    "seed -2^63-1": fields("seed", seed=-(2**63) - 1),
    "unknown field": fields("sample_rate", sample_rate=8000),
    "prototype": fields("__proto__", __proto__={"x": 1}),
}

NOT_FOUND = (404, "not_found")
NOT_ALLOWED = (405, "method_not_allowed")
UNSUPPORTED = (415, "unsupported_media_type")
PLAIN = b"Invalid HTTP request received."

ROUTES = {
    "GET speech": Asked(request("GET", SPEECH), *NOT_ALLOWED),
    "PUT speech": Asked(request("PUT", SPEECH, JSON, body=b"{}"), *NOT_ALLOWED),
    "DELETE speech": Asked(request("DELETE", SPEECH), *NOT_ALLOWED),
    "unknown method": Asked(request("SING", SPEECH), *NOT_ALLOWED),
    "PATCH voices": Asked(request("PATCH", VOICES), *NOT_ALLOWED),
    "POST models": Asked(request("POST", "/v1/models", JSON, body=b"{}"), *NOT_ALLOWED),
    "POST health": Asked(request("POST", "/healthz", body=b"x"), *NOT_ALLOWED),
    "POST metrics": Asked(request("POST", "/metrics"), *NOT_ALLOWED),
    "nowhere": Asked(request("GET", "/nowhere"), *NOT_FOUND),
    "other version": Asked(request("POST", "/v2/audio/speech", JSON, body=b"{}"), *NOT_FOUND),
    "a slash more": Asked(request("POST", SPEECH + "/", JSON, body=b"{}"), *NOT_FOUND),
    "two slashes": Asked(request("POST", "//v1/audio/speech", JSON, body=b"{}"), *NOT_FOUND),
    "upper case": Asked(request("POST", SPEECH.upper(), JSON, body=b"{}"), *NOT_FOUND),
    "up and up": Asked(request("GET", "/../../../../etc/passwd"), *NOT_FOUND),
    "up and up, encoded": Asked(request("GET", "/%2e%2e/%2e%2e/etc/passwd"), *NOT_FOUND),
    "NUL, encoded": Asked(request("GET", "/%00"), *NOT_FOUND),
    "not UTF-8, encoded": Asked(request("GET", "/%ff%fe"), *NOT_FOUND),
    "half an escape": Asked(request("GET", "/%"), *NOT_FOUND),
    "long path": Asked(request("GET", "/" + "a" * 20_000), *NOT_FOUND),
    "long query": Asked(request("GET", "/nowhere?" + "a=b&" * 5000), *NOT_FOUND),
    "speech by GET, socket's path": Asked(request("GET", SPEECH + "/stream"), *NOT_FOUND),
    "delete no voice": Asked(request("DELETE", VOICES + "/nobody"), 404, "voice_not_found", "voice"),
    "delete a path": Asked(request("DELETE", VOICES + "/%2e%2e%2fdemo"), *NOT_FOUND),
    "delete NUL": Asked(request("DELETE", VOICES + "/demo%00"), 404, "voice_not_found", "voice"),
    "delete not UTF-8": Asked(request("DELETE", VOICES + "/%ff"), 404, "voice_not_found", "voice"),
    "delete everything": Asked(request("DELETE", VOICES), *NOT_ALLOWED),
    "no type": Asked(request("POST", SPEECH, body=json.dumps(OK).encode()), *UNSUPPORTED),
    "text": Asked(request("POST", SPEECH, "content-type: text/plain", body=json.dumps(OK).encode()), *UNSUPPORTED),
    "form": Asked(
        request("POST", SPEECH, "content-type: application/x-www-form-urlencoded", body=b"input=Hi."), *UNSUPPORTED
    ),
    "empty type": Asked(request("POST", SPEECH, "content-type:", body=json.dumps(OK).encode()), *UNSUPPORTED),
    "long type": Asked(request("POST", SPEECH, "content-type: " + "x" * 9000, body=b"{}"), *UNSUPPORTED),
    "json of another kind": Asked(
        request("POST", SPEECH, "content-type: application/jsonp", body=json.dumps(OK).encode()), *UNSUPPORTED
    ),
    "another page": Asked(request("POST", SPEECH, JSON, "origin: null", body=b"{}"), 403, "forbidden_origin"),
    "a page like ours": Asked(
        request("POST", SPEECH, JSON, "origin: http://x.evil", body=b"{}"), 403, "forbidden_origin"
    ),
}


def refused(data: bytes, status: int = 400) -> Asked:
    """Make bytes that are not HTTP; the answer has no error envelope."""
    return Asked(data, status, "")


HEAD = f"POST {SPEECH} HTTP/1.1\r\nhost: x\r\n{JSON}\r\n".encode()
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
TOO_LARGE = (413, "request_too_large")

FRAMING = {
    "garbage": refused(bytes(range(128, 256)) * 4 + b"\r\n\r\n"),
    "TLS": refused(bytes.fromhex("16030100a5010000a10303") + bytes(160) + b"\r\n\r\n"),
    "HTTP/2": Asked(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", *NOT_FOUND),
    "HTTP/0.9": refused(b"GET /healthz\r\n\r\n"),
    "HTTP/9.9": Asked(b"GET /nowhere HTTP/9.9\r\nhost: x\r\n\r\n", *NOT_FOUND),
    "no host": refused(b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": refused(b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n"),
    "blank before colon": refused(b"GET / HTTP/1.1\r\nhost : x\r\n\r\n"),
    "folded header": Asked(b"GET /nowhere HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n", *NOT_FOUND),
    "NUL in a header": refused(b"GET / HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n"),
    "header without colon": refused(b"GET / HTTP/1.1\r\nhost: x\r\nxyz\r\n\r\n"),
    "blank in the path": refused(b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n"),
    "100 kB of a header": Asked(b"GET /nowhere HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 100_000 + b"\r\n\r\n", *NOT_FOUND),
    "10,000 headers": Asked(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", *NOT_FOUND),
    "length in words": refused(HEAD + b"content-length: ten\r\n\r\n"),
    "negative length": refused(HEAD + b"content-length: -1\r\n\r\n"),
    "two lengths": refused(HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}"),
    "length of 30 digits": refused(HEAD + b"content-length: " + b"9" * 30 + b"\r\n\r\n"),
    "length of a gigabyte": Asked(HEAD + b"content-length: 1000000000\r\n\r\n{", *TOO_LARGE),
    "one byte too many": Asked(request("POST", SPEECH, JSON, length=MAX_JSON_BYTES + 1), *TOO_LARGE),
    "upload too large": Asked(request("POST", VOICES, JSON, length=MAX_UPLOAD_BYTES + 1), *TOO_LARGE),
    "chunks too large": Asked(CHUNKED + (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 3, *TOO_LARGE),
    "length and chunks": Asked(
        HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400, param="model"
    ),
    "unknown coding": refused(HEAD + b"transfer-encoding: gzip\r\n\r\n"),
    "chunk of words": refused(CHUNKED + b"ten\r\n{}\r\n0\r\n\r\n"),
    "negative chunk": refused(CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n"),
    "chunk of 30 digits": refused(CHUNKED + b"f" * 30 + b"\r\n{}"),
    "chunk longer than said": refused(CHUNKED + b"1\r\n{}\r\n0\r\n\r\n"),
}


BOUNDARY = "content-type: multipart/form-data; boundary=b"


def part(name: str, content: bytes, extra: str = "") -> bytes:
    return f'--b\r\ncontent-disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + content + b"\r\n"


def file(content: bytes, name: str = "voice.wav") -> bytes:
    return part("audio_sample", content, f'; filename="{name}"')


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return request("POST", VOICES, BOUNDARY, body=b"".join(parts) + end)


NAMED = part("name", b"never")
AGREED = part("consent", b"signed")


def wav(
    data: bytes = bytes(64_000), *, rate: int = 16_000, channels: int = 1, bits: int = 16, kind: int = 1, said: int = -1
) -> bytes:
    """Make a file with the given values in its header."""
    length = len(data) if said < 0 else said
    block = channels * bits // 8
    header = struct.pack(
        "<4sI4s4sIHHIIHH",
        b"RIFF",
        min(36 + length, 2**32 - 1),
        b"WAVE",
        b"fmt ",
        16,
        kind,
        channels & 0xFFFF,
        rate,
        rate * block & 0xFFFFFFFF,
        block & 0xFFFF,
        bits,
    )
    return header + struct.pack("<4sI", b"data", length) + data


def sample(content: bytes, name: str = "voice.wav") -> Asked:
    return Asked(form(NAMED, AGREED, file(content, name)), 400, param="audio_sample")


UPLOADS = {
    "nothing": Asked(request("POST", VOICES), 400, param="audio_sample"),
    "JSON": Asked(request("POST", VOICES, JSON, body=b'{"name": "x"}'), 400, param="audio_sample"),
    "no boundary": Asked(request("POST", VOICES, "content-type: multipart/form-data", body=b"x"), 400, "*"),
    "another boundary": Asked(request("POST", VOICES, BOUNDARY, body=b"--c\r\n\r\nx\r\n--c--\r\n"), 400, "*"),
    "empty form": Asked(form(), 400, "*", "*"),
    "no end": Asked(form(NAMED, AGREED, end=b""), 400, "*", "*"),
    "part without a name": Asked(form(b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n"), 400, "*"),
    "part without a header": Asked(form(b"--b\r\n\r\nx\r\n"), 400, "*"),
    "header without an end": Asked(form(b"--b\r\ncontent-disposition: " + b"x" * 20_000), 400, "*", "*"),
    "audio as a field": Asked(form(NAMED, AGREED, part("audio_sample", wav())), 400, param="audio_sample"),
    "two files": Asked(form(NAMED, AGREED, file(wav()), file(wav())), 400, "*"),
    "a hundred fields": Asked(form(*[NAMED] * 100, AGREED, file(wav())), 400, "*"),
    "a field of 2 MB": Asked(form(part("name", b"x" * 2_000_000), AGREED, file(wav())), 400, "*"),
    "name as a file": Asked(form(part("name", b"x", '; filename="n"'), AGREED, file(wav())), 400, "*", "*"),
    "name a path": Asked(form(part("name", b"../x"), AGREED, file(b"")), 400, param="audio_sample"),
    "name not UTF-8": Asked(form(part("name", b"\xff"), AGREED, file(wav())), 400, "*", "*"),
    "empty file": sample(b""),
    "text file": sample(b"Hello.\n" * 100),
    "ELF": sample(b"\x7fELF" + bytes(1000)),
    "zip": sample(b"PK\3\4" + bytes(1000)),
    "MP3 of garbage": sample(b"\xff\xfb\x90\x00" + bytes(range(256)) * 40, "voice.mp3"),
    "Ogg of garbage": sample(b"OggS\0\2" + bytes(range(256)) * 4, "voice.ogg"),
    "FLAC of garbage": sample(b"fLaC\0\0\0\x22" + bytes(range(256)), "voice.flac"),
    "only RIFF": sample(b"RIFF"),
    "only a header": sample(wav(b"")),
    "cut in its header": sample(wav()[:30]),
    "4 GB declared": sample(wav(bytes(2000), said=2**32 - 1)),
    "0 Hz": sample(wav(rate=0)),
    "1 Hz": sample(wav(rate=1)),
    "4 GHz": sample(wav(rate=2**32 - 1)),
    "no channels": sample(wav(channels=0)),
    "255 channels": sample(wav(channels=255)),
    "65535 channels": sample(wav(channels=65_535)),
    "0 bits": sample(wav(bits=0)),
    "65535 bits": sample(wav(bits=65_535)),
    "unknown kind": sample(wav(kind=0x1234)),
    "silence": sample(wav()),
    "NaN": sample(wav(struct.pack("<f", float("nan")) * 32_000, bits=32, kind=3)),
    "loud": sample(wav(struct.pack("<f", 1e30) * 32_000, bits=32, kind=3)),
    "path as file name": sample(b"x", "../../../etc/passwd"),
    "NUL as file name": sample(b"x", "a\0b.wav"),
    "long file name": sample(b"x", "a" * 3000),
}

CASES = {
    f"{group}: {name}": asked
    for group, asked_of in (
        ("body", BODIES),
        ("field", FIELDS),
        ("route", ROUTES),
        ("framing", FRAMING),
        ("upload", UPLOADS),
    )
    for name, asked in asked_of.items()
}
