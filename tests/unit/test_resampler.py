"""Resampling: the same samples for any pieces, the right length, no click where segments join."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cosyserve.audio.pcm import to_pcm16
from cosyserve.audio.resampler import Resampler
from cosyserve.limits import SAMPLE_RATES

Float = NDArray[np.float32]
PAIRS = [(rate, target) for rate in (24_000, 22_050) for target in SAMPLE_RATES if rate != target]
pairs = st.sampled_from(PAIRS)
every_pair = pytest.mark.parametrize(("rate", "target"), PAIRS)


def tone(samples: int, rate: int, pitch: float = 440.0) -> Float:
    return (0.5 * np.sin(np.arange(samples) * 2 * np.pi * pitch / rate)).astype(np.float32)


def resampled(samples: Float, rate: int, target: int, at: list[int]) -> Float:
    resampler = Resampler(rate, target)
    pieces = np.split(samples, sorted(at))
    return np.concatenate([resampler.step(piece, final=i == len(pieces) - 1) for i, piece in enumerate(pieces)])


@settings(deadline=None)
@given(pair=pairs, samples=st.integers(0, 6000), at=st.lists(st.integers(0, 6000), max_size=8))
@example(pair=(24_000, 8_000), samples=1, at=[])
@example(pair=(22_050, 8_000), samples=100, at=[0, 1, 100])
def test_any_split_gives_the_same_samples(pair: tuple[int, int], samples: int, at: list[int]) -> None:
    rate, target = pair
    wave = tone(samples, rate)
    once = resampled(wave, rate, target, [])
    assert len(once) == round(samples * target / rate)
    pieces = to_pcm16(resampled(wave, rate, target, at)).astype(int)
    np.testing.assert_allclose(pieces, to_pcm16(once), rtol=0, atol=1)


@every_pair
def test_a_tone_stays_the_tone_it_was(rate: int, target: int) -> None:
    made = resampled(tone(rate, rate), rate, target, [rate // 3])
    inner = slice(target // 20, -target // 20)
    np.testing.assert_allclose(made[inner], tone(target, target)[inner], rtol=0, atol=1e-3)


@every_pair
def test_segments_join_without_a_dip(rate: int, target: int) -> None:
    """A constant level across two segments stays constant."""
    level = np.full(rate // 10, 0.5, np.float32)
    joined = np.concatenate([resampled(level, rate, target, []) for _ in range(2)])
    np.testing.assert_allclose(joined, 0.5, rtol=0, atol=1e-3)


@every_pair
def test_what_the_target_cannot_carry_is_filtered_out(rate: int, target: int) -> None:
    if target > rate:
        assert np.abs(resampled(tone(rate, rate, 0.45 * rate), rate, target, [])).max() < 0.55
    else:
        inner = slice(target // 20, -target // 20)
        assert np.abs(resampled(tone(rate, rate, 0.55 * target), rate, target, [])[inner]).max() < 1e-3
