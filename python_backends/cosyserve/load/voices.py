"""The registered voices."""

from __future__ import annotations

from cosyserve.voices import VoiceStore
from cosyserve.weights import VOICES_FOLDER, Weights


def load_voices(weights: Weights) -> VoiceStore:
    """Registered voices."""
    return VoiceStore(weights.folder / VOICES_FOLDER)
