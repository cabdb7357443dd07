"""Train the vocoder: HiFT on the corpus's mels, with the true pitch as input of its source.

Losses: spectra at several resolutions (Yamamoto et al., Parallel WaveGAN, 2020) and mels (Kong et al., HiFi-GAN, 2020),
without an adversarial loss.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.audio.features import mel_filters
from cosyserve.config import HiftConfig
from cosyserve.networks.hift import Decoder, F0Predictor
from cosyserve.networks.hift_source import HarmonicSource
from cosyserve_build.demo_voice.source import Recording
from cosyserve_build.demo_voice.training import Run, device, train

DECODER = Run("hift", steps=7_500, rate=1e-3, warmup=200, average=0.998)
PITCH = Run("f0", steps=6_000, rate=2e-3)
_BATCH, _CROP = 6, 24  # crops, mel frames of each
_PITCH_BATCH, _PITCH_CROP = 8, 64
_WINDOWS = (2048, 1024, 512, 256, 128, 96)
_FLOOR = 0.01  # magnitudes below this count as equal
_MEL_FLOOR = -7.0
_MEL_WINDOWS = (1920, 512)
_MEL_WEIGHT = 2.0


class Vocoder(nn.Module):
    """Source and decoder as one module, from mel and pitch to audio."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config = config
        self.source, self.decoder = HarmonicSource(config), Decoder(config)

    def forward(self, mel: Tensor, f0: Tensor, noise: Tensor) -> Tensor:
        """Map log-mel [B, mels, W], Hz [B, W] and normal noise [B, samples, sines] to audio [B, samples]."""
        phase = torch.zeros(len(f0), self.config.harmonics + 1, dtype=torch.float64, device=f0.device)
        source, _ = self.source(f0.double(), phase, torch.ones(len(f0), device=f0.device), noise)
        audio: Tensor = self.decoder(mel, source)
        return audio


class SpectralLoss(nn.Module):
    """Distance of two waves [B, samples] in magnitude spectra and in mels."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        for window in _WINDOWS:
            self.register_buffer(f"window{window}", torch.hann_window(window))
        for window in _MEL_WINDOWS:
            filters = mel_filters(config.sample_rate, window, config.mels, 0.0, config.sample_rate / 2)
            self.register_buffer(f"mel{window}", torch.from_numpy(filters).float())
            self.register_buffer(f"mel_window{window}", torch.hann_window(window))

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Return the scalar loss."""
        loss = torch.zeros((), device=made.device)
        for window in _WINDOWS:
            hann = self.get_buffer(f"window{window}")
            a, b = _magnitude(made, window, hann), _magnitude(wanted, window, hann)
            loss = loss + F.l1_loss(a.clamp(min=_FLOOR).log(), b.clamp(min=_FLOOR).log())
            loss = loss + (a - b).norm() / b.norm()
        loss = loss / len(_WINDOWS)
        for window in _MEL_WINDOWS:
            hann, filters = self.get_buffer(f"mel_window{window}"), self.get_buffer(f"mel{window}")
            a, b = (filters @ _magnitude(wave, window, hann) for wave in (made, wanted))
            floor = float(np.exp(_MEL_FLOOR))
            loss = loss + _MEL_WEIGHT * F.l1_loss(a.clamp(min=floor).log(), b.clamp(min=floor).log())
        return loss


def _magnitude(wave: Tensor, window: int, hann: Tensor) -> Tensor:
    spectrum = torch.stft(wave, window, window // 4, window=hann, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()


class Crops:
    """Random crops of a corpus; each step draws from its own generator."""

    def __init__(self, corpus: list[Recording], frames: int) -> None:
        self._corpus = [u for u in corpus if len(u.mel) >= frames]
        self.frames = frames

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw mels [B, mels, W], pitch [B, W] and waves [B, samples]."""
        mels, pitches, waves = [], [], []
        for index in rng.integers(0, len(self._corpus), count):
            u = self._corpus[index]
            hop = len(u.wave) // len(u.mel)
            start = int(rng.integers(0, len(u.mel) - self.frames + 1))
            mels.append(u.mel[start : start + self.frames].T.astype(np.float32))
            pitches.append(u.f0[start : start + self.frames])
            waves.append(u.wave[start * hop : (start + self.frames) * hop].astype(np.float32) / 32767)
        return _on_device(mels), _on_device(pitches), _on_device(waves)


def _on_device(arrays: list[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).to(device())


def train_vocoder(folder: Path, config: HiftConfig, corpus: list[Recording], run: Run = DECODER) -> Vocoder:
    """Train the vocoder on the waves of the corpus."""
    torch.manual_seed(run.seed)
    vocoder, spectra = Vocoder(config).to(device()), SpectralLoss(config).to(device())
    crops = Crops(corpus, _CROP)

    def loss(rng: np.random.Generator, _: float) -> Tensor:
        mel, f0, wave = crops.draw(rng, _BATCH)
        noise = rng.standard_normal((*wave.shape, config.harmonics + 1), dtype=np.float32)
        value: Tensor = spectra(vocoder(mel, f0, torch.from_numpy(noise).to(device())), wave)
        return value

    train(folder, run, vocoder, loss)
    return vocoder


def train_pitch(folder: Path, config: HiftConfig, corpus: list[Recording], run: Run = PITCH) -> F0Predictor:
    """Train the pitch predictor; the target of unvoiced frames is 0 Hz."""
    torch.manual_seed(run.seed)
    predictor = F0Predictor(config).to(device())
    crops = Crops(corpus, _PITCH_CROP)

    def loss(rng: np.random.Generator, done: float) -> Tensor:
        mel, f0, _ = crops.draw(rng, _PITCH_BATCH)
        return F.l1_loss(predictor(mel), f0.double()) / 100

    train(folder, run, predictor, loss)
    return predictor
