"""The gateway's routes as an OpenAPI document, from which requests are made up."""

from __future__ import annotations

from typing import Any

from cosyserve_gateway.speech import MODELS

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}

_REFUSED = {"description": "a refusal", "content": {"application/json": {"schema": _ERROR}}}


def _answers(status: int, kind: str, *refusals: int) -> dict[str, Any]:
    right = {"description": "the answer", "content": {kind: {}}}
    return {str(status): right, **{str(refusal): _REFUSED for refusal in refusals}}


def _get(kind: str, *refusals: int) -> dict[str, Any]:
    return {"get": {"responses": _answers(200, kind, *refusals)}}


_SPEECH = {
    "type": "object",
    "additionalProperties": False,
    "required": ["model", "input"],
    "properties": {
        "model": {"enum": list(MODELS)},
        "input": {"type": "string", "minLength": 1, "maxLength": 4096},
        "voice": {
            "anyOf": [
                {"type": ["string", "null"]},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["id"],
                    "properties": {"id": {"type": "string"}},
                },
            ]
        },
        "instructions": {"type": ["string", "null"]},
        "response_format": {"enum": ["mp3", "opus", "aac", "flac", "wav", "pcm"]},
        "speed": {"type": ["number", "null"], "minimum": 0.5, "maximum": 2},
        "stream_format": {"enum": ["audio", "sse"]},
        "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
    },
}

_VOICE = {
    "type": "object",
    "required": ["name", "consent", "audio_sample"],
    "properties": {
        "name": {"type": "string"},
        "consent": {"type": "string"},
        "prompt_text": {"type": "string"},
        "audio_sample": {"type": "string", "format": "binary"},
    },
}

_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "CosyServe's gateway", "version": "1"},
    "paths": {
        "/": _get("text/html"),
        "/healthz": _get("application/json", 503),
        "/metrics": _get("text/plain"),
        "/v1/models": _get("application/json"),
        "/v1/audio/speech": {
            "post": {
                "requestBody": {"required": True, "content": {"application/json": {"schema": _SPEECH}}},
                "responses": _answers(200, "*/*", 400, 404, 413, 415),
            }
        },
        "/v1/audio/voices": {
            **_get("application/json", 400),
            "post": {
                "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _VOICE}}},
                "responses": _answers(201, "application/json", 400, 409, 413),
            },
        },
        "/v1/audio/voices/{name}": {
            "delete": {"parameters": [_NAME], "responses": _answers(200, "application/json", 400, 404)}
        },
    },
}
