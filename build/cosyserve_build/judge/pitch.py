"""Pitch of short windows by autocorrelation."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Float = NDArray[np.float64]

LOW, HIGH = 70.0, 400.0
"""Range of a speaking voice in Hz."""

VOICED = 0.7
"""Minimum correlation of a voiced window with itself one period later."""

_RATE = 8_000  # Hz, enough for lags of 20 samples and more
_FIRST = 0.9  # share of the best peak's height: the shortest lag with such a peak is the period, not its double


def pitch(windows: Float, rate: int) -> Float:
    """Compute Hz of each window, 0 where it is unvoiced.

    The period is a lag between 1 / `HIGH` and 1 / `LOW` seconds at which a window's correlation with itself, normalised
    by the energies of the two overlapping parts, has a peak of at least `VOICED`.

    Args:
        windows: [windows, samples], each of at least 1.5 / `LOW` seconds.
        rate: Hz of the samples, at least 8 kHz.
    """
    step = rate // _RATE
    count = windows.shape[1] // step
    low = windows[:, : count * step].reshape(len(windows), count, step).mean(axis=2)  # also a low-pass filter
    low = (low - low.mean(axis=1, keepdims=True)).astype(np.float64)  # numpy 2 would transform float32 in float32
    rate_low = rate / step
    lags = np.arange(int(rate_low / HIGH) - 1, int(np.ceil(rate_low / LOW)) + 2)

    spectrum = np.fft.rfft(low, 2 * count)
    products = np.fft.irfft(np.abs(spectrum) ** 2)[:, lags]
    energy = np.cumsum(np.pad(low**2, ((0, 0), (1, 0))), axis=1)
    heads, tails = energy[:, count - lags], energy[:, -1:] - energy[:, lags]
    likeness = products / np.sqrt(np.maximum(heads * tails, 1e-12))

    left, middle, right = np.moveaxis(sliding_window_view(likeness, 3, axis=1), 2, 0)
    peaks = np.where((middle >= left) & (middle > right), middle, 0.0)
    best = peaks.max(axis=1)
    first = np.argmax(peaks >= _FIRST * np.maximum(best, VOICED)[:, None], axis=1)
    rows = np.arange(len(windows))
    a, b, c = left[rows, first], middle[rows, first], right[rows, first]
    summit = 0.5 * (a - c) / np.where(a - 2 * b + c == 0, 1.0, a - 2 * b + c)  # parabola through three points
    hertz: Float = rate_low / (lags[1:-1][first] + summit)
    return np.where(best >= VOICED, hertz, 0.0)
