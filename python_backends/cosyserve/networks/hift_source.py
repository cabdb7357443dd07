"""The harmonic source signal of the vocoder.

Source of the algorithm: upstream hifigan/generator.py :: SourceModuleHnNSF, SineGen2. Upstream accumulates phases in
float32 over one call; here they are float64 and in cycles, so that a stream can carry them from call to call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosyserve.config import HiftConfig


class HarmonicSource(nn.Module):
    """f0 to an excitation signal.

    Shapes: B streams, T frames of ``frame`` samples each, H sines (the fundamental and its harmonics).
    """

    left: Tensor
    right: Tensor

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config = config
        harmonics = config.harmonics + 1
        self.m_source = nn.ModuleDict({"l_linear": nn.Linear(harmonics, 1)})
        # Where sample n lies between frame centres: weights of the previous and of the next frame's phase.
        offset = (torch.arange(config.frame, device="cpu", dtype=torch.float64) + 0.5) / config.frame - 0.5
        self.register_buffer("left", (-offset).clamp(min=0)[:, None], persistent=False)
        self.register_buffer("right", offset.clamp(min=0)[:, None], persistent=False)

    def forward(self, f0: Tensor, phase: Tensor, start: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Render T frames.

        The second half of a frame leans on the next frame's phase; behind the last frame the phase is held. A stream
        therefore renders its newest frame again once the next one is known.

        Args:
            f0: Hz, float64 [B, T].
            phase: phases of the frame before the first, in cycles, float64 [B, H].
            start: 1.0 where the first frame begins the utterance (then no frame lies before it), float32 [B].
            noise: standard normal, float32 [B, frame * T, H].

        Returns:
            Source float32 [B, 1, frame * T] in (-1, 1) and the phase of every frame in cycles, float64 [B, T, H].
        """
        config = self.config
        batch, frames = f0.shape
        harmonics = torch.arange(1, config.harmonics + 2, device=f0.device)
        rad = f0.double()[:, :, None] * harmonics / config.sample_rate  # cycles per sample
        rad = rad - rad.floor()
        phases = phase[:, None] + config.frame * rad.cumsum(1)

        voiced = (f0 > config.voiced_threshold).float()[:, :, None, None]
        amplitude = voiced * config.nsf_sigma + (1 - voiced) * (config.nsf_alpha / 3)
        sines = torch.sin(2 * torch.pi * self._cycles(phases, phase, start).float())
        excitation = config.nsf_alpha * voiced * sines + amplitude * noise.view(batch, frames, config.frame, -1)
        source = torch.tanh(self.m_source["l_linear"](excitation)).reshape(batch, 1, frames * config.frame)
        return source, phases - phases.floor()

    def _cycles(self, phases: Tensor, phase: Tensor, start: Tensor) -> Tensor:
        """Phase in cycles, less than one, of every sample [B, T, frame, H], or of every frame [B, T, 1, H]."""
        if not self.config.phase_ahead:
            return (phases - phases.floor())[:, :, None]
        before = torch.where(start[:, None, None] > 0, phases[:, :1], phase[:, None])
        to_left = torch.cat([before, phases[:, :-1]], dim=1) - phases
        to_right = torch.cat([phases[:, 1:], phases[:, -1:]], dim=1) - phases
        cycles = phases[:, :, None] + self.left * to_left[:, :, None] + self.right * to_right[:, :, None]
        return cycles - cycles.floor()


class SampleSource(HarmonicSource):
    """The source of CosyVoice 1 (upstream SineGen): the phase runs on from sample to sample.

    Frames lean on nothing behind them. The phase before the first frame is drawn at random but for the fundamental.
    """

    def _cycles(self, phases: Tensor, phase: Tensor, start: Tensor) -> Tensor:
        before = torch.cat([phase[:, None], phases[:, :-1]], dim=1)
        steps = torch.arange(1, self.config.frame + 1, device=phases.device) / float(self.config.frame)
        cycles = before[:, :, None] + steps.double()[:, None] * (phases - before)[:, :, None]
        return cycles - cycles.floor()


def source_of(config: HiftConfig) -> HarmonicSource:
    """The source of a vocoder."""
    return SampleSource(config) if config.phase == "by sample" else HarmonicSource(config)
