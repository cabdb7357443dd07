"""The demo voice clones the speaker of a prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from live import Live

from cosyserve.load.frontend import load_frontend
from cosyserve.settings import Settings
from cosyserve_build.judge.recogniser import Recogniser, word_errors
from cosyserve_build.judge.sentences import words
from cosyserve_client import Client
from cosyserve_client.audio import read_prompt

SPEECH = Path(__file__).parents[1] / "data" / "speech"
TRANSCRIPTS = {name: (SPEECH / f"{name}.txt").read_text("utf-8").strip() for name in ("slt", "rms")}
TEXT = "The weather in Paris is sunny and warm today."


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_clone_is_its_prompts_speaker_and_says_the_text(client: Client, server: Live, name: str) -> None:
    audio, rate = read_prompt(SPEECH / f"{name}.flac")
    cloned = client.synthesize(TEXT, prompt_audio=audio, prompt_sample_rate=rate, prompt_text=TRANSCRIPTS[name], seed=1)
    frontend = load_frontend(Settings(weights=str(server.weights)))
    heard = frontend.voice_of(cloned.pcm / 32768, cloned.sample_rate).speaker_embedding

    def likeness(other: str) -> float:
        known = frontend.voice_of(*read_prompt(SPEECH / f"{other}.flac")).speaker_embedding
        return float(heard @ known / np.linalg.norm(heard) / np.linalg.norm(known))

    (another,) = TRANSCRIPTS.keys() - {name}
    assert likeness(name) > 0.7
    assert likeness(another) < 0.4
    assert word_errors(words(TEXT), Recogniser().hear(cloned.pcm / np.float32(32768), cloned.sample_rate)) <= 4
