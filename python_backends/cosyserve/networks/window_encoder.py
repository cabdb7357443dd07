"""Speech tokens of CosyVoice 1 to mu: a conformer over the whole window, then the length regulator.

Source of the algorithm: upstream flow/flow.py :: MaskedDiffWithXvec.inference, transformer/encoder.py ::
ConformerEncoder and flow/length_regulator.py :: InterpolateRegulator. Parameter names are the keys of ``flow.pt``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosyserve.config import WindowFlowConfig
from cosyserve.networks.conformer import Conformer
from cosyserve.networks.guided import mish


class WindowEncoder(nn.Module):
    """n tokens to L frames of mu, which `stretch` interpolates between the tokens (see `stretching`)."""

    def __init__(self, config: WindowFlowConfig) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(config.tokens, config.inputs)
        self.encoder = Conformer(config.inputs, config.width, config.heads, config.feed_forward, config.blocks)
        self.encoder_proj = nn.Linear(config.width, config.mels)
        self.length_regulator = _Regulator(config.mels, config.regulator_convs)

    def forward(self, tokens: Tensor, stretch: Tensor) -> Tensor:
        """Mu [B, mels, L] of tokens, int64 [B, n], negative ones read row 0; stretch is float [B, L, n]."""
        embedded = self.input_embedding(tokens.clamp(min=0))
        hidden = self.encoder(embedded, torch.zeros((), device=embedded.device, dtype=embedded.dtype))
        mu: Tensor = self.length_regulator((stretch @ self.encoder_proj(hidden)).mT)
        return mu


class _Regulator(nn.Module):
    """Convolutions behind the interpolation."""

    def __init__(self, mels: int, convs: int) -> None:
        super().__init__()
        # Upstream keeps a Mish without parameters behind each norm, so the keys count in threes.
        layers: dict[str, nn.Module] = {}
        for index in range(convs):
            layers[str(3 * index)] = nn.Conv1d(mels, mels, 3, padding=1)
            layers[str(3 * index + 1)] = nn.GroupNorm(1, mels)
        layers[str(3 * convs)] = nn.Conv1d(mels, mels, 1)
        self.model = nn.ModuleDict(layers)
        self.convs = convs

    def forward(self, x: Tensor) -> Tensor:
        for index in range(self.convs):
            x = mish(self.model[str(3 * index + 1)](self.model[str(3 * index)](x)))
        out: Tensor = self.model[str(3 * self.convs)](x)
        return out
