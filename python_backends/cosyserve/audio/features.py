"""What the prompt's networks hear: resampled waves, log-mel, filter-bank energies, prompt mel. All float32."""

from __future__ import annotations

from functools import lru_cache

import kaldi_native_fbank as knf
import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cosyserve.config import MelConfig

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def resample(samples: Float32, rate: int, target: int) -> Float32:
    """Band-limited resampling by soxr at quality HQ. Upstream's audio loader uses another low-pass filter.

    Args:
        samples: [n].
        rate: Hz of the samples.
        target: Hz wanted.

    Returns:
        [n * target / rate, rounded].
    """
    resampled: Float32 = soxr.resample(samples, rate, target, quality="HQ")
    return resampled


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
    extractor = knf.OnlineFbank(_fbank_options())
    extractor.accept_waveform(16_000, wave)
    energies: Float32 = np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)])
    return energies


@lru_cache(maxsize=1)
def _fbank_options() -> knf.FbankOptions:
    # Kaldi's other defaults are upstream's: 25 ms povey windows each 10 ms, pre-emphasis 0.97, 20 Hz to Nyquist.
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 80
    return options


def subtract_mean(energies: Float32) -> Float32:
    """[T, 80] minus the mean of each bin over time: what the speaker model takes."""
    centred: Float32 = energies - energies.mean(axis=0, keepdims=True)
    return centred
