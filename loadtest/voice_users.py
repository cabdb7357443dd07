"""Locust users that request one utterance after another."""

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
"""Names of Locust's events for an utterance; the event's type is the user class."""

WORD_SECONDS = 0.05
"""Seconds between words of TextIn: 20 words a second, the pace of a language model."""

SENTENCE = "The small boat drifted slowly across the quiet lake while the sun went down behind the hills. "
PROMPT = Path(__file__).parents[1] / "tests" / "data" / "cosyvoice2-tiny" / "prompt.wav"


def add_voice_options(parser: ArgumentParser) -> None:
    """Add text and voice to Locust's options."""
    group = parser.add_argument_group("voice")
    group.add_argument("--text", default=SENTENCE, help="text to speak; LongText and BargeIn repeat it four times")
    group.add_argument("--voice", help="registered voice of all users except ClonedVoice")
    group.add_argument("--prompt-wav", default=str(PROMPT), help="audio file with the prompt of ClonedVoice")
    group.add_argument("--prompt-text", help="transcript of that file")


class VoiceUser(User):
    """User that requests speech, plays it back in real time, and reports to Locust."""

    abstract = True
    host = "127.0.0.1:8001"
    # A refused user waits too, so that a full server is not flooded.
    wait_time = constant(0.1)

    def on_start(self) -> None:
        """Connect, so that no utterance's time includes it."""
        self.options = self.environment.parsed_options
        self.client = Client(self.host or VoiceUser.host)
        self.client.sample_rate()

    def on_stop(self) -> None:
        """Disconnect."""
        self.client.close()

    def request(self) -> SpeechRequest:
        """Make the next request."""
        return SpeechRequest(text=self.options.text, voice=self.options.voice)

    def speech(self) -> SpeechStream:
        """Start the next utterance."""
        return self.client.stream(self.request())

    def begin(self, speech: Any) -> None:
        """Act at the start of an utterance; called once its stream is open."""

    def listens(self, playback: Playback) -> bool:
        """Return whether the user continues to listen."""
        return True

    @task
    def utterance(self) -> None:
        """Run one utterance, from its request to its last response."""
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
    """User of a registered voice."""


class ClonedVoice(VoiceUser):
    """User with a prompt that the server has not cached: every prompt differs."""

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
    """User with many sentences in one request."""

    def request(self) -> SpeechRequest:
        return SpeechRequest(text=4 * self.options.text, voice=self.options.voice)


class TextIn(VoiceUser):
    """User that writes word by word while it listens."""

    def speech(self) -> SpeechStream:
        return self.client.session(voice=self.options.voice) if self.options.voice else self.client.session()

    def begin(self, speech: Session) -> None:
        threading.Thread(target=self._write, args=(speech,), daemon=True).start()

    def _write(self, session: Session) -> None:
        with suppress(CosyServeClientError):  # the listener gets the error too
            for word in self.options.text.split():
                session.push(word + " ")
                time.sleep(WORD_SECONDS)
            session.end()


class BargeIn(LongText):
    """User that interrupts a long text after a second of audio."""

    def listens(self, playback: Playback) -> bool:
        return playback.seconds < 1
