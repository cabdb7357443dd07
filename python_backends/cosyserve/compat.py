"""Upstream's Triton contract in terms of ours (upstream runtime/triton_trtllm :: model_repo/cosyvoice2, cosyvoice3)."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import Tensors
from cosyserve.errors import CosyServeError, InvalidInput, passed_on
from cosyserve.text.special_tokens import END_OF_PROMPT

REFERENCE_RATE = 16_000
"""Rate of reference audio in Hz."""

SEED = 42
"""Of every request, as upstream's version 2: the same text and reference give the same samples."""

NAMES = {"prompt_audio": "reference_wav", "prompt_text": "reference_text", "text": "target_text"}
"""Our inputs as upstream calls them."""


def tts_request(inputs: Tensors) -> Tensors:
    """The inputs of contract `TTS` that say the same.

    Args:
        inputs: those of a contract of `UPSTREAM`, without batch dimension.

    Raises:
        InvalidInput: the length is not one of the reference.
    """
    request: Tensors = {"text": inputs["target_text"], "seed": np.array([SEED], np.int64)}
    if "reference_wav" in inputs:
        wave = inputs["reference_wav"]
        length = int(inputs["reference_wav_len"][0]) if "reference_wav_len" in inputs else len(wave)
        if not 0 <= length <= len(wave):
            raise InvalidInput("reference_wav_len", f"is {length}, but reference_wav has {len(wave)} samples")
        # Clients pad, because requests of different lengths cannot share upstream's batches.
        request["prompt_audio"] = wave[:length]
        request["prompt_sample_rate"] = np.array([REFERENCE_RATE], np.int32)
    if "reference_text" in inputs:
        # What upstream's version 3 puts before the transcript is put there by the frontend.
        transcript = inputs["reference_text"][0].rpartition(END_OF_PROMPT.encode())[2]
        if transcript.strip():
            request["prompt_text"] = np.array([transcript], np.object_)
    return request


def waveform(pcm: NDArray[np.int16]) -> NDArray[np.float32]:
    """Samples in -1..1: our PCM, which has been rounded to 16 bits."""
    return pcm.astype(np.float32) / np.float32(32768)


def renamed(error: CosyServeError) -> CosyServeError:
    """The error, with fields called as the client called them."""
    names = "|".join(NAMES)
    message = re.sub(rf"^(?:{names})(?=: )|\bprompt_(?:audio|text)\b", lambda found: NAMES[found[0]], str(error))
    return passed_on(message, error.code, error.reason)
