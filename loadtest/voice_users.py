"""Users that listen to one utterance after another."""

from __future__ import annotations

import random
import threading
import time
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from locust import User, constant, task

from cosyserve_client import (
    Client,
    CosyServeClientError,
    Session,
    SpeechRequest,
    SpeechStream,
    Unavailable,
    read_prompt,
)
from cosyserve_client.bench.playback import Playback

FIRST_AUDIO, GAP, UTTERANCE, REFUSED = "first audio", "gap", "utterance", "refused"
"""What happens to an utterance, as Locust's events name it; their type is the class of the user."""

WORD_SECONDS = 0.05
"""From word to word of TextIn: 20 words a second, as a language model writes."""

SENTENCE = "The small boat drifted slowly across the quiet lake while the sun went down behind the hills. "
PROMPT = Path(__file__).parents[1] / "tests" / "data" / "cosyvoice2-tiny" / "prompt.wav"


def add_voice_options(parser: ArgumentParser) -> None:
    """Adds to Locust's options what is said and in whose voice."""
    group = parser.add_argument_group("voice")
    group.add_argument("--text", default=SENTENCE, help="what is said; LongText and BargeIn say it four times over")
    group.add_argument("--voice", help="registered voice of all users but ClonedVoice")
    group.add_argument("--prompt-wav", default=str(PROMPT), help="audio file with the voice that ClonedVoice clones")
    group.add_argument("--prompt-text", help="what is said in that file")


class VoiceUser(User):
    """Speaks, listens, and tells Locust what was heard."""

    abstract = True
    host = "127.0.0.1:8001"
    # A user who was refused waits too, so a full server is not flooded.
    wait_time = constant(0.1)

    def on_start(self) -> None:
        """Connects, so that no utterance is timed with it."""
        self.options = self.environment.parsed_options
        self.client = Client(self.host or VoiceUser.host)
        self.client.sample_rate()

    def on_stop(self) -> None:
        """Disconnects."""
        self.client.close()

    def request(self) -> SpeechRequest:
        """The next utterance."""
        return SpeechRequest(text=self.options.text, voice=self.options.voice)

    def speech(self) -> SpeechStream:
        """The next utterance, to be listened to."""
        return self.client.stream(self.request())

    def begin(self, speech: Any) -> None:
        """Called when listening begins."""

    def listens(self, playback: Playback) -> bool:
        """Whether the user wants to hear more."""
        return True

    @task
    def utterance(self) -> None:
        """One utterance, from its request to its last response."""
        playback = Playback(self.client.sample_rate())
        error: CosyServeClientError | None = None
        speech = self.speech()
        began = time.perf_counter()
        try:
            with speech as stream:
                self.begin(stream)
                for chunk in stream:
                    fresh = playback.first_audio is None
                    playback.add(chunk.pcm, time.perf_counter() - began)
                    if fresh and playback.first_audio is not None:
                        self._fire(FIRST_AUDIO, playback.first_audio)
                    if not self.listens(playback):
                        break
        except CosyServeClientError as raised:
            error = raised
        self._report(playback, time.perf_counter() - began, error)

    def _report(self, playback: Playback, seconds: float, error: CosyServeClientError | None) -> None:
        if isinstance(error, Unavailable) and playback.first_audio is None:
            self._fire(REFUSED, seconds)
            return
        if playback.worst_gap:
            self._fire(GAP, playback.worst_gap)
        self._fire(UTTERANCE, seconds, exception=error)

    def _fire(self, name: str, seconds: float, **more: Any) -> None:
        event = {"request_type": type(self).__name__, "name": name, "response_time": 1000 * seconds, **more}
        self.environment.events.request.fire(response_length=0, context={}, **event)


class KnownVoice(VoiceUser):
    """A registered voice."""


class ClonedVoice(VoiceUser):
    """A voice that the server never heard before: every prompt differs, so none is found among the cached ones."""

    def on_start(self) -> None:
        super().on_start()
        self.prompt, self.rate = read_prompt(self.options.prompt_wav)

    def request(self) -> SpeechRequest:
        return SpeechRequest(
            text=self.options.text,
            prompt_audio=self.prompt * np.float32(random.uniform(0.8, 1.0)),
            prompt_sample_rate=self.rate,
            prompt_text=self.options.prompt_text,
        )


class LongText(VoiceUser):
    """Many sentences in one request."""

    def request(self) -> SpeechRequest:
        return SpeechRequest(text=4 * self.options.text, voice=self.options.voice)


class TextIn(VoiceUser):
    """Writes word by word while it listens."""

    def speech(self) -> SpeechStream:
        return self.client.session(voice=self.options.voice) if self.options.voice else self.client.session()

    def begin(self, speech: Session) -> None:
        threading.Thread(target=self._write, args=(speech,), daemon=True).start()

    def _write(self, session: Session) -> None:
        with suppress(CosyServeClientError):  # the listener learns of it too
            for word in self.options.text.split():
                session.push(word + " ")
                time.sleep(WORD_SECONDS)
            session.end()


class BargeIn(LongText):
    """Interrupts a long text after a second of audio."""

    def listens(self, playback: Playback) -> bool:
        return playback.seconds < 1
