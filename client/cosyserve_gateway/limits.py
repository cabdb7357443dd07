"""Every bound of the gateway, each with its reason. Texts and voices have the server's, checked there."""

from __future__ import annotations

MAX_JSON_BYTES = 128 * 1024
"""Largest body of a request in JSON, and largest WebSocket message: 4096 characters of text and 512 of instruction,
each of which JSON may write as two escapes of six bytes."""

MAX_UPLOAD_BYTES = 12 * 1024 * 1024
"""Largest upload of a voice: 30 s of stereo at 48 kHz in 32 bits have 11.5 MB."""

MAX_FORM_FIELDS = 8
"""Fields of the form with a voice, which has four."""

BODY_SECONDS = 60.0
"""Longest time in which a body must have come: 12 MB at 1.6 Mbit/s."""

STALLED_SECONDS = 30.0
"""Longest wait for a client that does not read, whose speech holds a place on the server: a phone between two cells
takes some seconds."""

SOCKET_IDLE_SECONDS = 120.0
"""Longest silence of a WebSocket client between utterances: people think, but who left holds a connection. In an
utterance the server's own, shorter bound holds."""

REQUESTS_PER_MINUTE = 600
"""Default for the requests of one client: ten a second is more than a person or an agent asks for, and a loop without
an end is noticed."""

STREAMS = 64
"""Default for utterances in progress at once, each with an encoder and a gRPC stream: as many as a server admits."""

STREAMS_PER_CLIENT = 16
"""Default for those of one client: a quarter, so that one alone does not take every place."""

REMEMBERED_CLIENTS = 10_000
"""Clients whose requests are counted; of more, those that were quiet longest start anew."""

CONNECTIONS = 1000
"""Open connections, after which new ones are answered 503: each holds a file handle, of which a process has 1024."""

SHUTDOWN_SECONDS = 30
"""Longest that utterances may go on when the gateway is told to stop."""

RETRIES = 2
"""New tries of an utterance that a server refuses: of several servers each try asks the next, and one that is full or
about to stop is passed over. All of them take 0.3 s."""

RETRY_SECONDS = 1
"""Retry-After of a refusal for want of a place: about the time that a sentence takes."""

OPUS_PAGE_MICROSECONDS = 20_000
"""Audio in one page of Ogg, which its muxer would else fill for a second: one frame of Opus."""
