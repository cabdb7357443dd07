"""Speaking rate: the same frames for any pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cosyserve.hift.time_stretch import TimeStretch

Float = NDArray[np.float32]
MELS = 3
speeds = st.floats(0.5, 2.0)
cuts = st.lists(st.integers(0, 60), max_size=8)


def mel_of(frames: int) -> Float:
    return np.random.default_rng(frames).standard_normal((MELS, frames)).astype(np.float32)


def stretched(mel: Float, speed: float, at: list[int]) -> tuple[Float, list[int]]:
    """Return all frames, and their number at each step."""
    stretch = TimeStretch(MELS, speed)
    pieces = np.split(mel, sorted(at), axis=1)
    made = [stretch.step(piece, final=index == len(pieces) - 1) for index, piece in enumerate(pieces)]
    return np.concatenate(made, axis=1), [frames.shape[1] for frames in made]


@settings(deadline=None)
@given(frames=st.integers(0, 60), speed=speeds, at=cuts)
@example(frames=59, speed=1.5, at=[1, 2, 3, 4])
@example(frames=7, speed=2.0, at=[3, 7])
def test_any_split_gives_the_same_frames(frames: int, speed: float, at: list[int]) -> None:
    mel = mel_of(frames)
    once, _ = stretched(mel, speed, [])
    assert once.shape == (MELS, int(frames / speed))
    np.testing.assert_array_equal(stretched(mel, speed, at)[0], once)


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.25, 2.0])
def test_time_runs_at_the_speed(speed: float) -> None:
    ramp = np.tile(np.arange(100, dtype=np.float32), (MELS, 1))
    made, _ = stretched(ramp, speed, [10, 50])
    inner = slice(2, -2)
    np.testing.assert_allclose(np.diff(made[0])[inner], speed, rtol=1e-4)
    # The middle of the frames stays in the middle.
    assert abs(made[0].mean() - ramp[0].mean()) < 1


@pytest.mark.parametrize("speed", [0.5, 1.3, 2.0])
def test_frames_come_as_soon_as_they_are_settled(speed: float) -> None:
    _, counts = stretched(mel_of(200), speed, [100])
    assert 100 - 2 * speed <= counts[0] * speed <= 100


def test_a_stream_keeps_a_bounded_past() -> None:
    stretch = TimeStretch(MELS, 0.7)
    for _ in range(50):
        stretch.step(mel_of(20), final=False)
    assert stretch._mel.shape[1] <= 3
