"""What the prompt's networks hear: resampled waves, log-mel, filter-bank energies, prompt mel. All float32."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cosyserve.config import MelConfig

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_ZEROS = 6  # zero crossings of the low-pass sinc on each side
_ROLLOFF = 0.99  # cut-off as a part of the lower Nyquist rate
_BLOCK = 1 << 16  # output samples resampled at once


def resample(samples: Float32, rate: int, target: int) -> Float32:
    """Band-limited resampling with a Hann-windowed sinc (torchaudio transforms :: Resample, its defaults).

    Args:
        samples: [n].
        rate: Hz of the samples.
        target: Hz wanted.

    Returns:
        [ceil(n * target / rate)].
    """
    if rate == target:
        return samples
    divisor = gcd(rate, target)
    step, phases = rate // divisor, target // divisor
    weights, first = _sinc(step, phases)
    taps = weights.shape[1]
    index = np.arange(ceil(phases * len(samples) / step))
    phase = index % phases
    start = index // phases * step + first[phase]
    left = max(0, -int(start.min(initial=0)))
    right = max(0, int(start.max(initial=0)) + taps - len(samples))
    windows = sliding_window_view(np.pad(samples, (left, right)), taps)
    blocks = [slice(i, i + _BLOCK) for i in range(0, len(index), _BLOCK)]
    out = [np.einsum("nt,nt->n", windows[start[b] + left], weights[phase[b]]) for b in blocks]
    resampled: Float32 = np.concatenate(out)
    return resampled


@lru_cache(maxsize=8)
def _sinc(step: int, phases: int) -> tuple[Float32, NDArray[np.int64]]:
    """Weights [phases, taps] and, for each phase, the first input sample they apply to."""
    cutoff = _ROLLOFF * min(step, phases)  # in half cycles per `step` input samples
    half = _ZEROS * step / cutoff
    centre = np.arange(phases) * step / phases
    first = np.ceil(centre - half).astype(np.int64)
    position = first[:, None] + np.arange(ceil(2 * half) + 1) - centre[:, None]
    t = np.clip(position * cutoff / step, -_ZEROS, _ZEROS)
    weights = np.sinc(t) * np.cos(t * np.pi / (2 * _ZEROS)) ** 2 * cutoff / step
    return weights.astype(np.float32), first


def log_mel_128(wave: Float32) -> Float32:
    """Log-mel of the speech tokenizer (upstream whisper/audio.py :: log_mel_spectrogram with 128 bins).

    Args:
        wave: [n] at 16 kHz, more than 200 samples.

    Returns:
        [128, n // 160], not padded to 30 s.
    """
    power = _spectrum(np.pad(wave, 200, mode="reflect"), 400, 160, 400)[:-1] ** 2
    log = np.log10(np.maximum(power @ mel_filters(16000, 400, 128, 0.0, None).T, 1e-10))
    log = (np.maximum(log, log.max() - 8.0) + 4.0) / 4.0
    return np.ascontiguousarray(log.T, dtype=np.float32)


def prompt_mel(wave: Float32, config: MelConfig) -> Float32:
    """Log-mel that the flow continues (upstream matcha/utils/audio.py :: mel_spectrogram).

    Args:
        wave: [n] at ``config.sample_rate``, more than (n_fft - hop) / 2 samples.
        config: sizes of the mel.

    Returns:
        [n // hop, mels].
    """
    padded = np.pad(wave, (config.n_fft - config.hop) // 2, mode="reflect")
    magnitude = np.sqrt(_spectrum(padded, config.n_fft, config.hop, config.window) ** 2 + 1e-9)
    filters = mel_filters(config.sample_rate, config.n_fft, config.mels, config.fmin, config.fmax)
    mel: Float32 = np.log(np.maximum(magnitude @ filters.T, 1e-5)).astype(np.float32)
    return mel


def _spectrum(padded: Float32, n_fft: int, hop: int, window: int) -> Float64:
    """Magnitudes [frames, n_fft // 2 + 1] under a periodic Hann window centred in the frame."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    hann = np.pad(hann, ((n_fft - window) // 2, n_fft - window - (n_fft - window) // 2))
    magnitudes: Float64 = np.abs(np.fft.rfft(sliding_window_view(padded, n_fft)[::hop] * hann))
    return magnitudes


@lru_cache(maxsize=8)
def mel_filters(rate: int, n_fft: int, mels: int, fmin: float, fmax: float | None) -> Float64:
    """Triangular filters of unit area on the Slaney mel scale (librosa filters.mel), [mels, n_fft // 2 + 1]."""
    top = rate / 2 if fmax is None else fmax
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(top), mels + 2))
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    filters: Float64 = np.maximum(0.0, np.minimum(rise, fall)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return filters


# The Slaney scale is linear (200/3 Hz a mel) up to 1 kHz, then 27 mels for each factor of 6.4.
_KNEE_HZ, _KNEE_MEL, _LOG_STEP = 1000.0, 15.0, np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    return hz * 3 / 200 if hz < _KNEE_HZ else float(_KNEE_MEL + np.log(hz / _KNEE_HZ) / _LOG_STEP)


def _mel_to_hz(mel: Float64) -> Float64:
    return np.where(mel < _KNEE_MEL, mel * 200 / 3, _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL)))


def fbank(wave: Float32) -> Float32:
    """Kaldi log filter-bank energies without dither (torchaudio compliance/kaldi.py :: fbank, 80 bins).

    Args:
        wave: [n] at 16 kHz in -1..1, at least 400 samples.

    Returns:
        [1 + (n - 400) // 160, 80].
    """
    # Each step rounds to float32 as the original does: in quiet bins that rounding is most of the value's error.
    frames = sliding_window_view(wave, 400)[::160]
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - np.float32(0.97) * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    angle = np.arange(400, dtype=np.float32) * np.float32(2 * np.pi / 399)
    hann = np.float32(0.5) - np.float32(0.5) * np.cos(angle.astype(np.float64)).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * hann ** np.float32(0.85), 512)[:, :256]) ** 2
    energies: Float32 = np.log(np.maximum(power @ _kaldi_filters().T, np.finfo(np.float32).eps)).astype(np.float32)
    return energies


@lru_cache(maxsize=1)
def _kaldi_filters() -> Float64:
    """80 triangles, straight on Kaldi's mel scale, over 20 Hz to 8 kHz: [80, 256]."""
    low, high, *bins = 1127.0 * np.log1p(np.concatenate([[20.0, 8000.0], np.arange(256) * 31.25]) / 700.0)
    step = (high - low) / 81
    position = (np.array(bins) - low) / step - np.arange(80)[:, None]
    filters: Float64 = np.maximum(0.0, np.minimum(position, 2.0 - position))
    return filters


def subtract_mean(energies: Float32) -> Float32:
    """[T, 80] minus the mean of each bin over time: what the speaker model takes."""
    centred: Float32 = energies - energies.mean(axis=0, keepdims=True)
    return centred
