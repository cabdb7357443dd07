"""The language model."""

from __future__ import annotations

from cosyserve.config import AnyLlm
from cosyserve.lazy import resolve
from cosyserve.llm.decoder import Decoder
from cosyserve.llm.engine import EncodePrompt
from cosyserve.load.stage import load_stage
from cosyserve.settings import Settings
from cosyserve.weights import Weights


def load_decoder(settings: Settings) -> tuple[AnyLlm, Decoder]:
    """Sizes, and the decoder with the rows that an engine of `llm_slots` sequences needs."""
    weights = Weights(settings.folder)
    return weights.config.llm, load_stage("llm", weights, settings)


def load_prompt_encoder(settings: Settings) -> EncodePrompt | None:
    """What makes the prompts of sequences, where the language model takes something else than ids."""
    weights = Weights(settings.folder)
    name = weights.version.llm.prompt_encoder
    encoder: EncodePrompt | None = resolve(name)(weights, settings) if name else None
    return encoder
