"""Train the networks that read prompts: the speech tokenizer and the speaker model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.audio.features import fbank, log_mel_128, resample, subtract_mean
from cosyserve_build.demo_voice.codebook import PHONES, token_ids
from cosyserve_build.demo_voice.source import SAMPLE_RATE, Recording
from cosyserve_build.demo_voice.training import Run, device, train

TOKENIZER = Run("speech_tokenizer", steps=3_000, rate=2e-3, decay=0.05)
SPEAKER = Run("campplus", steps=1_200, rate=2e-3)
_RATE = 16_000  # Hz, input of both
_PITCH_SCALES = (0.82, 0.9, 1.0, 1.1, 1.2)
"""Each source voice counts as one speaker for each pitch scale, so that embeddings interpolate between voices."""
_SPEAKER_BATCH, _SPEAKER_CROP = 24, 150  # utterances, frames of 10 ms
_TOKEN_BATCH, _TOKEN_CROP = 16, 64  # utterances, tokens
_SPEAKER_SAID = 100  # utterances of each speaker
_DROPOUT = 0.3  # of the speech tokenizer's channels
_HIDDEN_BANDS, _LOUDNESS = 20, 0.15  # largest number of masked mel bands; spread of the level
_SHARPNESS = 16.0  # of the softmax over cosines


class SpeechTokenizer(nn.Module):
    """Convolutions that map log-mel to the digits of the designed codebook.

    Its interface is that of CosyVoice2's ``speech_tokenizer_v2.onnx``.
    """

    def __init__(self, width: int = 160) -> None:
        super().__init__()
        self.ins = nn.ModuleList([nn.Conv1d(128, width, 5, 2, 2), nn.Conv1d(width, width, 5, 2, 2)])
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.head = nn.Conv1d(width, len(PHONES) + 6, 1)

    def logits(self, feats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map log-mel [B, 128, T] to scores of phones, places and pitches [B, choices, ceil(T / 4)]."""
        x = feats
        for conv in self.ins:
            x = F.gelu(conv(x))
        for conv in self.blocks:
            x = x + F.dropout(F.gelu(conv(x)), _DROPOUT, self.training)
        phones, places, pitches = torch.split(self.head(x), [len(PHONES), 3, 3], dim=1)
        return phones, places, pitches

    def forward(self, feats: Tensor, feats_length: Tensor) -> Tensor:
        """Map log-mel [B, 128, T] with `feats_length` [B] valid frames to ids, int32 [B, ceil(T / 4)]."""
        counts = torch.arange(feats.shape[2], device=feats.device) < feats_length[:, None]
        phones, places, pitches = (part.argmax(1) for part in self.logits(feats * counts[:, None]))
        ids: Tensor = token_ids(phones, places, pitches)
        return ids.to(torch.int32)


class SpeakerModel(nn.Module):
    """Time-delay network (Snyder et al., X-vectors, 2018) with the interface of ``campplus.onnx``."""

    def __init__(self, width: int = 64, speaker: int = 192) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv1d(80, width, 5, padding=2), nn.Conv1d(width, width, 3, padding=2, dilation=2)]
        )
        self.out = nn.Linear(2 * width, speaker)

    def forward(self, input: Tensor) -> Tensor:
        """Map filter-bank energies without their mean [B, T, 80] to speaker embeddings [B, speaker]."""
        x = input.mT
        for conv in self.convs:
            x = F.relu(conv(x))
        spread = (x - x.mean(2, keepdim=True)).square().mean(2).add(1e-5).sqrt()
        embedding: Tensor = self.out(torch.cat([x.mean(2), spread], dim=1))
        return embedding


def heard(utterance: Recording, scale: float = 1.0) -> NDArray[np.float32]:
    """Resample the wave to 16 kHz for both networks; `scale` raises the pitch by that factor."""
    wave = utterance.wave.astype(np.float32) / np.float32(32767)
    return resample(wave, round(SAMPLE_RATE * scale), _RATE)


def energies(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the speaker model's input, filter-bank energies [T, 80]."""
    return subtract_mean(fbank(wave))


def train_tokenizer(folder: Path, corpus: list[Recording], run: Run = TOKENIZER) -> SpeechTokenizer:
    """Train the speech tokenizer on the corpus's tokens."""
    torch.manual_seed(run.seed)
    module = SpeechTokenizer().to(device())
    known = [u for u in corpus if len(u.tokens) >= _TOKEN_CROP]
    mels = [log_mel_128(heard(u)) for u in known]

    def loss(rng: np.random.Generator, _: float) -> Tensor:
        feats, ids = [], []
        for index in rng.integers(0, len(known), _TOKEN_BATCH):
            tokens, mel = known[index].tokens.astype(np.int64), mels[index]
            start = int(rng.integers(0, len(tokens) - _TOKEN_CROP + 1))
            crop = mel[:, 4 * start : 4 * (start + _TOKEN_CROP)] + rng.normal(0, _LOUDNESS)
            band = int(rng.integers(0, len(crop)))
            crop[band : band + int(rng.integers(0, _HIDDEN_BANDS))] = crop.min()
            feats.append(crop.astype(np.float32))
            ids.append(tokens[start : start + _TOKEN_CROP])
        wanted = torch.from_numpy(np.stack(ids)).to(device())
        phones, places, pitches = module.logits(torch.from_numpy(np.stack(feats)).to(device()))
        return (
            F.cross_entropy(phones, wanted % 81)
            + F.cross_entropy(places, wanted // 81 % 3)
            + F.cross_entropy(pitches, wanted // 243 % 3)
        )

    train(folder, run, module, loss)
    return module


def train_speaker(folder: Path, speakers: list[list[Recording]], run: Run = SPEAKER) -> SpeakerModel:
    """Train the speaker model to classify the source voices at several pitches."""
    torch.manual_seed(run.seed)
    module = SpeakerModel().to(device())
    said = [[energies(heard(u, scale)) for u in own[:_SPEAKER_SAID]] for own in speakers for scale in _PITCH_SCALES]
    centres = nn.Parameter(torch.randn(len(said), module.out.out_features, device=device()))
    module.register_parameter("centres", centres)

    def loss(rng: np.random.Generator, _: float) -> Tensor:
        who = rng.integers(0, len(said), _SPEAKER_BATCH)
        rows = []
        for index in who:
            feats = said[index][int(rng.integers(0, len(said[index])))]
            start = int(rng.integers(0, max(1, len(feats) - _SPEAKER_CROP)))
            rows.append(np.resize(feats[start : start + _SPEAKER_CROP], (_SPEAKER_CROP, 80)))
        embedding = F.normalize(module(torch.from_numpy(np.stack(rows)).to(device())), dim=1)
        scores = _SHARPNESS * embedding @ F.normalize(centres, dim=1).mT
        return F.cross_entropy(scores, torch.from_numpy(who).to(device()))

    train(folder, run, module, loss)
    del module.centres
    return module
