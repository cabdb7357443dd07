"""What an operator can set."""

from __future__ import annotations

from dataclasses import dataclass

from cosyserve_gateway import limits


@dataclass(frozen=True)
class Settings:
    """Settings of one gateway.

    Attributes:
        url: gRPC address of the server.
        api_keys: those that callers of ``/v1`` must show one of; with none, anybody may call.
        origins: of web pages elsewhere that may call it, as ``https://example.org``.
        requests_per_minute: of one client, which is a key, or an address where there are none.
        streams: utterances in progress at once.
        streams_per_client: of one client.
        voice_changes: whether voices may be registered and deleted.
    """

    url: str = "127.0.0.1:8001"
    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    requests_per_minute: int = limits.REQUESTS_PER_MINUTE
    streams: int = limits.STREAMS
    streams_per_client: int = limits.STREAMS_PER_CLIENT
    voice_changes: bool = True
