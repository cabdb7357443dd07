"""Malformed WebSocket conversations, and how they must end."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cosyserve_gateway.limits import MAX_JSON_BYTES

REFUSED, TOO_BIG, NOT_UTF8, PROTOCOL = 1008, 1009, 1007, 1002


@dataclass(frozen=True)
class Talk:
    """Messages that are sent after the greeting.

    Attributes:
        messages: text, or bytes for a binary frame.
        frames: bytes on the connection itself, behind the messages.
        param: the field that is named in the last answer.
        closed: code with which the connection is closed; 0: it is not, and another utterance may begin.
    """

    messages: tuple[str | bytes, ...] = ()
    frames: bytes = b""
    param: str | None = None
    closed: int = REFUSED
    told: bool = True


def said(kind: object, **fields: object) -> str:
    return json.dumps({"type": kind, **fields})


def config(param: str, **fields: object) -> Talk:
    return Talk((said("config", **fields),), param=param)


def later(param: str, code: str = "", **fields: object) -> Talk:
    """Errors that only the server detects: they end the utterance, but not the connection."""
    return Talk((said("config", **fields), said("text", text="Hi. "), said("end")), param=param, closed=0)


def framed(first: int, payload: bytes, length: int | None = None) -> bytes:
    """A frame of a client, masked with zeros."""
    size = len(payload) if length is None else length
    head = bytes([first, 0x80 | size]) if size < 126 else bytes([first, 0xFF]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


CASES = {
    "nothing": Talk(("",)),
    "half of JSON": Talk(('{"type": "text"',)),
    "two messages in one": Talk((said("flush") * 2,)),
    "number": Talk(("1",)),
    "null": Talk(("null",)),
    "NUL": Talk(("\0",)),
    "100,000 levels": Talk(("[" * 100_000,)),
    "binary": Talk((b"\x00\x01",), param="type"),
    "JSON in a binary frame": Talk((said("flush").encode(),), param="type"),
    "empty binary frame": Talk((b"",), param="type"),
    "type missing": Talk(("{}",)),
    "type number": Talk((said(1),)),
    "type null": Talk((said(None),)),
    "type list": Talk((said(["text"]),)),
    "type in capitals": Talk((said("TEXT", text="Hi."),)),
    "long type": Talk((said("x" * 10_000),)),
    "text missing": Talk((said("text"),), param="text"),
    "text null": Talk((said("text", text=None),), param="text"),
    "text object": Talk((said("text", text={}),), param="text"),
    "lone surrogate": Talk(('{"type": "text", "text": "\\ud800"}',)),
    "text with more": Talk((said("text", text="Hi.", voice="demo"),), param="voice"),
    "end with text": Talk((said("end", text="Hi."),), param="text"),
    "cancel with more": Talk((said("cancel", all=True),), param="all"),
    "voice object": config("voice", voice={"id": "demo"}),
    "speed text": config("speed", speed="1"),
    "seed float": config("seed", seed=0.5),
    "sample rate text": config("sample_rate", sample_rate="24k"),
    "timestamps number": config("timestamps", timestamps=1),
    "audio unknown": config("audio", audio="mp3"),
    "config with more": config("model", model="tts-1"),
    "unknown voice": later("voice", voice="nobody"),
    "path as voice": later("voice", voice="../demo"),
    "speed 9": later("speed", speed=9.0),
    "seed 2^63": later("seed", seed=2**63),
    "sample rate 7": later("sample_rate", sample_rate=7),
    "sample rate 2^40": later("sample_rate", sample_rate=2**40),
    "empty instructions": later("instructions", instructions=""),
    "text of 5000": Talk((said("text", text="a" * 5000), said("end")), param="input", closed=0),
    "nothing to speak": Talk((said("text", text=" \n"), said("end")), param="input", closed=0),
    "too large a message": Talk((said("text", text="x" * MAX_JSON_BYTES),), closed=TOO_BIG, told=False),
    "not UTF-8": Talk(frames=framed(0x81, b'"\xff"'), closed=NOT_UTF8, told=False),
    "unmasked": Talk(frames=b"\x81\x02{}", closed=PROTOCOL, told=False),
    "reserved bits": Talk(frames=framed(0xF1, b"{}"), closed=PROTOCOL, told=False),
    "unknown kind of frame": Talk(frames=framed(0x83, b"{}"), closed=PROTOCOL, told=False),
    "long ping": Talk(frames=framed(0x89, bytes(200)), closed=PROTOCOL, told=False),
    "rest of nothing": Talk(frames=framed(0x80, b"{}"), closed=PROTOCOL, told=False),
    "ping in pieces": Talk(frames=framed(0x09, b"x"), closed=PROTOCOL, told=False),
    "frame of 2^62": Talk(frames=framed(0x81, b"{", 2**62), closed=TOO_BIG, told=False),
}
