"""Reproduce the random numbers that upstream draws when it builds a model."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cosyserve.config import ModelConfig
from cosyserve.limits import MAX_NOISE_FRAMES


def flow_noise(mels: int) -> torch.Tensor:
    """Draw the fixed initial noise of the flow ``[mels, frames]``, with torch on a CPU after seeding with 0.

    Source: upstream flow/flow_matching.py :: CausalConditionalCFM.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, mels, MAX_NOISE_FRAMES, generator=generator)[0]


def vocoder_draws(config: ModelConfig) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Reproduce what a causal vocoder draws from torch's global generator while upstream builds a whole model.

    The flow seeds the generator with 0 and draws its noise. Then follow the initial values of its remaining layers and
    of the pitch predictor, the phases of the harmonics, and the noise of the source.

    Source: order of construction in ``cosyvoice3.yaml``; upstream hifigan/generator.py :: SineGen2.

    Returns:
        The phases [harmonics + 1], and the generator's state after them for `cosyserve.hift.noise.FixedNoise`.
    """
    flow, hift = config.flow, config.hift
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        torch.randn(1, flow.mels, MAX_NOISE_FRAMES)
        nn.Embedding(flow.tokens, flow.mels)
        nn.Linear(flow.speaker, flow.mels)
        for layer, padding in enumerate(hift.f0_padding):
            nn.Conv1d(hift.f0_channels if layer else hift.mels, hift.f0_channels, 1 + sum(padding))
        nn.Linear(hift.f0_channels, 1)
        phases = torch.rand(hift.harmonics + 1)
        state = torch.get_rng_state().numpy().tobytes()
    phases[0] = 0
    return phases.numpy(), _twister(state)


def _twister(state: bytes) -> NDArray[np.uint32]:
    """Parse torch's state: seed (8 bytes), draws left plus one, whether seeded (4 each), next, 624 words (8 each)."""
    left = int(np.frombuffer(state, np.int32, 1, 8)[0])
    position = np.frombuffer(state, np.uint64, 1, 16)
    words = np.frombuffer(state, np.uint64, 624, 24)
    return np.append(words, [624] if left == 1 else position).astype(np.uint32)
