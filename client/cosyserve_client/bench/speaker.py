"""Speaks the utterances of one load and times them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cosyserve_client.aio import AsyncClient
from cosyserve_client.bench.playback import Playback
from cosyserve_client.bench.results import INAUDIBLE, OK, REFUSED, Result
from cosyserve_client.errors import CosyServeClientError, ServerError, Unavailable
from cosyserve_client.types import SpeechRequest


@dataclass(frozen=True, slots=True)
class Script:
    """What is said: utterance n has text n (in turn) and seed n, so that every load says the same.

    Attributes:
        request: voice and options; its text is not used.
        texts: at least one.
        seed: of utterance 0.
    """

    request: SpeechRequest
    texts: Sequence[str]
    seed: int

    def utterance(self, number: int) -> SpeechRequest:
        """The request of utterance `number`."""
        return replace(self.request, text=self.texts[number % len(self.texts)], seed=self.seed + number)


class Speaker:
    """Speaks utterances over connections that they take in turn. Its clock starts when it is made.

    Args:
        clients: open.
        script: what is said.
    """

    def __init__(self, clients: Sequence[AsyncClient], script: Script) -> None:
        self._clients = clients
        self._script = script
        self._began = time.perf_counter()

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    async def speak(self, number: int, due: float) -> Result:
        """Speaks utterance `number`, which was due at `due`, and times it from then. Never raises a client's error."""
        client = self._clients[number % len(self._clients)]
        request = self._script.utterance(number)
        playback = Playback(request.sample_rate or await client.sample_rate())
        late = self.now() - due
        try:
            async for chunk in client.stream(request):
                playback.add(chunk.pcm, self.now() - due)
            outcome = INAUDIBLE if playback.first_audible is None else OK
        except CosyServeClientError as error:
            outcome = _outcome(error, playback)
        return Result(due, late, self.now() - due, outcome, playback)


def _outcome(error: CosyServeClientError, playback: Playback) -> str:
    if isinstance(error, Unavailable) and playback.first_audio is None:
        return REFUSED
    return error.code if isinstance(error, ServerError) else type(error).__name__
