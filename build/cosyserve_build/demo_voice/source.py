"""Synthesise the source voices with flite, and label the speech with its phones."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from cosyserve.audio.features import prompt_mel, resample
from cosyserve.config import MelConfig
from cosyserve_build.demo_voice.codebook import (
    FIRST,
    HIGH,
    LAST,
    LEVEL,
    LOW,
    MIDDLE,
    PHONES,
    RATE,
    spread,
    token_ids,
)

SAMPLE_RATE = 24_000
TOKEN = SAMPLE_RATE // RATE  # samples of a token
MEL = MelConfig(n_fft=1920, hop=480, window=1920, mels=80, fmin=0.0, fmax=8000.0, sample_rate=SAMPLE_RATE)
_LEAD, _TAIL = 0.06, 0.16  # seconds of silence kept before and after the speech
_FLITE_RATE = 16_000
_FRAMES = 2  # mel frames of a token


@dataclass(frozen=True)
class Speaker:
    """Voice of flite.

    Attributes:
        name: flite's name of it.
        gain: factor that makes the voices equally loud.
        tertiles: Hz; pitch between the two counts as level.
    """

    name: str
    gain: float
    tertiles: tuple[float, float]


SPEAKERS = (Speaker("slt", 0.9, (166.0, 177.0)), Speaker("rms", 1.6, (95.0, 107.0)))


@dataclass(frozen=True)
class Recording:
    """Speech of N tokens with its labels.

    Attributes:
        text: what was said.
        wave: int16 [960 N] at 24 kHz.
        mel: log-mel, float16 [2 N, 80].
        f0: Hz at the middle of each mel frame, 0 where unvoiced, float32 [2 N].
        tokens: speech tokens, int16 [N].
    """

    text: str
    wave: NDArray[np.int16]
    mel: NDArray[np.float16]
    f0: NDArray[np.float32]
    tokens: NDArray[np.int16]


def speak(text: str, speaker: Speaker) -> Recording:
    """Synthesise a text with flite.

    Raises:
        FileNotFoundError: flite is not installed.
        subprocess.CalledProcessError: flite failed.
    """
    raw, phones = _flite(text, speaker.name)
    spoken = [i for i, (phone, _) in enumerate(phones) if phone != "pau"]
    first, last = spoken[0], spoken[-1]
    start = max(0.0, phones[first - 1][1] - _LEAD) if first else 0.0
    stop = min(phones[last][1] + _TAIL, len(raw) / _FLITE_RATE)
    cut = raw[round(start * _FLITE_RATE) : round(stop * _FLITE_RATE)]
    inner = [*phones[max(first - 1, 0) : last + 1], ("pau", stop)]
    wave = resample(cut * np.float32(speaker.gain), _FLITE_RATE, SAMPLE_RATE)
    count = max(-(-len(wave) // TOKEN), len(inner))
    wave = np.pad(wave, (0, count * TOKEN - len(wave))).clip(-1, 1)

    f0 = _pitch(wave)
    counts = spread([end - start for _, end in inner], count)
    tokens = _tokens([PHONES.index(phone) for phone, _ in inner], counts, f0, speaker)
    mel = prompt_mel(wave, MEL)
    return Recording(text, (wave * 32767).astype(np.int16), mel.astype(np.float16), f0, tokens.astype(np.int16))


def _flite(text: str, voice: str) -> tuple[NDArray[np.float32], list[tuple[str, float]]]:
    """Return samples [n] at 16 kHz, and phones with their end times in seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "speech.wav")
        # Without -t, flite takes a text without spaces for the name of a file.
        command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", str(path)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        samples, _ = soundfile.read(path, dtype="float32")
    return samples, [(phone, float(end)) for phone, end in re.findall(r"(\w+):([\d.]+)", told)]


def _pitch(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the pitch in Hz at the middle of each mel frame."""
    import pyworld  # only synthesis needs it, and pip compiles it

    wide = wave.astype(np.float64)
    half = MEL.hop * 500 / SAMPLE_RATE  # milliseconds
    coarse, times = pyworld.dio(wide, SAMPLE_RATE, f0_floor=60.0, f0_ceil=350.0, frame_period=half)
    fine = pyworld.stonemask(wide, coarse, times, SAMPLE_RATE)
    frames = len(wave) // MEL.hop
    middle: NDArray[np.float32] = fine[1 : 2 * frames : 2].astype(np.float32)
    return middle


def _tokens(phones: list[int], counts: list[int], f0: NDArray[np.float32], speaker: Speaker) -> NDArray[np.int64]:
    places = np.concatenate(
        [[FIRST] if n == 1 else [FIRST, *[MIDDLE] * (n - 2), LAST] for n in counts], dtype=np.int64, casting="unsafe"
    )
    pairs = f0.reshape(-1, _FRAMES)
    voiced = (pairs > 0).sum(axis=1)
    mean = pairs.sum(axis=1) / np.maximum(voiced, 1)
    low, high = speaker.tertiles
    pitches = np.where(mean < low, LOW, np.where(mean > high, HIGH, LEVEL))
    pitches[voiced == 0] = LEVEL
    return token_ids(np.repeat(np.asarray(phones), counts), places, pitches)
