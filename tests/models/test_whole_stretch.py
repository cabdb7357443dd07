"""Speaking rate: whole segments get upstream's frames."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cosyserve.hift.time_stretch import TimeStretch

MELS = 3


@settings(deadline=None)
@given(frames=st.integers(2, 60), speed=st.floats(0.5, 2.0), at=st.lists(st.integers(0, 60), max_size=8))
@example(frames=33, speed=0.8, at=[])
@example(frames=50, speed=1.25, at=[20])
def test_whole_segments_are_upstream_s(frames: int, speed: float, at: list[int]) -> None:
    mel = np.random.default_rng(frames).standard_normal((MELS, frames)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(mel)[None], size=int(frames / speed), mode="linear")[0]
    stretch = TimeStretch(MELS, speed, whole=True)
    *pieces, last = np.split(mel, sorted(at), axis=1)
    assert all(stretch.step(piece, final=False).shape[1] == 0 for piece in pieces)
    np.testing.assert_allclose(stretch.step(last, final=True), expected, rtol=0, atol=1e-4)
