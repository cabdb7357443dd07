"""Limits of the gateway, each with its reason. The server checks those of texts and voices."""

from __future__ import annotations

MAX_JSON_BYTES = 128 * 1024
"""Largest body of a request in JSON, and largest WebSocket message: 4096 characters of text and 512 of instruction,
each of which JSON may write as two escapes of six bytes."""

MAX_UPLOAD_BYTES = 12 * 1024 * 1024
"""Largest upload of a voice: 30 s of stereo at 48 kHz in 32 bits have 11.5 MB."""

MAX_FORM_FIELDS = 8
"""Fields of the form with a voice, which has four."""

BODY_SECONDS = 60.0
"""Maximum time for a body to arrive: 12 MB at 1.6 Mbit/s."""

STALLED_SECONDS = 30.0
"""Longest wait for a client that does not read, whose utterance occupies a slot on the server: a phone between two
cells takes some seconds."""

SOCKET_IDLE_SECONDS = 120.0
"""Longest silence of a WebSocket client between utterances: people pause, but a lost client occupies a connection. In
an utterance the server's own, shorter limit applies."""

REQUESTS_PER_MINUTE = 600
"""Default for the requests of one client: ten per second are more than a person or an agent needs, but stop an endless
loop."""

STREAMS = 64
"""Default for utterances in progress at once, each with an encoder and a gRPC stream: as many as a server admits."""

STREAMS_PER_CLIENT = 16
"""Default for those of one client: a quarter, so that one client cannot occupy every slot."""

REMEMBERED_CLIENTS = 10_000
"""Number of clients whose requests are counted; beyond it, the least recently active ones are forgotten."""

CONNECTIONS = 1000
"""Open connections, after which new ones are answered 503: each holds a file handle, of which a process has 1024."""

SHUTDOWN_SECONDS = 30
"""Maximum duration of running utterances after the gateway is told to stop."""

RETRIES = 2
"""Retries of an utterance that a server refuses: each retry asks the next of several servers, so that full and draining
ones are skipped. All of them take 0.3 s."""

RETRY_SECONDS = 1
"""Retry-After of a refusal without a free slot: about the duration of a sentence."""

OPUS_PAGE_MICROSECONDS = 20_000
"""Audio in one page of Ogg, one frame of Opus; the muxer's default is a second."""
