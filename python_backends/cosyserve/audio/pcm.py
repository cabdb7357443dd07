"""Samples as 16-bit PCM."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Round samples in -1..1 to int16; what lies outside is clipped."""
    pcm: NDArray[np.int16] = np.rint(np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)
    return pcm
