"""Speaking rate: mel frames interpolated along time, incrementally and exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


class TimeStretch:
    """The frames of one segment at another speed (upstream cli/model.py :: CosyVoice2Model.token2wav, for whole mels).

    L frames become ``int(L / speed)``. Frame m lies at ``(m + 0.5) * speed - 0.5`` between those given, held at the
    ends. CompatModel, which knows L, spreads its frames over the whole with a scale of ``L / int(L / speed)``; a stream
    cannot, so less than two frames at its end may stay unheard.

    Args:
        mels: bins of a frame.
        speed: 1 = as generated.
        whole: wait for the end and place the frames as upstream does.
    """

    def __init__(self, mels: int, speed: float, whole: bool = False) -> None:
        self._speed = speed
        self._whole = whole
        self._mel = np.zeros((mels, 0), np.float32)  # from frame `_base`
        self._base = 0
        self._made = 0

    def step(self, mel: Float, final: bool) -> Float:
        """Take the next frames ``[mels, n]``, and return those that they settle.

        Args:
            mel: log-mel.
            final: no frame follows.
        """
        self._mel = np.concatenate([self._mel, mel], axis=1)
        length = self._base + self._mel.shape[1]
        if final:
            count = int(length / self._speed)
            made = self._frames(count, length, length / max(count, 1) if self._whole else self._speed)
        elif self._whole:
            made = self._mel[:, :0]
        else:
            # Those that have both their neighbours, which is less than int(length / speed).
            made = self._frames(int((length - 0.5) / self._speed - 0.5), length, self._speed)
            self._trim()
        return made

    def _frames(self, stop: int, length: int, scale: float) -> Float:
        at = np.clip((np.arange(self._made, stop) + 0.5) * scale - 0.5, 0, max(length - 1, 0))
        self._made = max(self._made, stop)
        left = at.astype(np.int64)
        right = np.minimum(left + 1, length - 1)
        share = (at - left).astype(np.float32)
        frames: Float = self._mel[:, left - self._base] * (1 - share) + self._mel[:, right - self._base] * share
        return frames

    def _trim(self) -> None:
        needed = max(0, int((self._made + 0.5) * self._speed - 0.5))
        drop = min(needed - self._base, self._mel.shape[1])
        self._mel = self._mel[:, drop:]
        self._base += drop
