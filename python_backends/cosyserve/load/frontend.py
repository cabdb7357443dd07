"""The frontend."""

from __future__ import annotations

import logging

from cosyserve.frontend import Frontend
from cosyserve.load.voices import load_voices
from cosyserve.runtimes.onnx.graph import OnnxGraph, available
from cosyserve.settings import Settings
from cosyserve.text.normalize import preload
from cosyserve.text.tokenizer import Tokenizer
from cosyserve.weights import Weights

_LOG = logging.getLogger("cosyserve")


def load_frontend(settings: Settings) -> Frontend:
    """Tokenizer, speaker model, speech tokenizer and voices."""
    weights = Weights(settings.folder)
    # These two files come from the bundle as they are, so their tensors are addressed by position.
    device = settings.device
    if not available(device):
        _LOG.warning("prompts are read on the CPU, seconds for each new voice: pip install onnxruntime-gpu")
        device = "cpu"
    speaker = OnnxGraph(weights.file("campplus.onnx"), settings.threads, device)
    tokenizer = OnnxGraph(weights.file("speech_tokenizer.onnx"), settings.threads, device)
    preload()
    return Frontend(
        weights.config,
        Tokenizer.load(weights.file("tokenizer.json")),
        speaker.first,
        tokenizer.first,
        load_voices(weights),
    )
