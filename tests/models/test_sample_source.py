"""The vocoder source of CosyVoice 1, whose phase runs on from sample to sample."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cosyserve.hift.stream import HiftNetworks, HiftStream
from cosyserve.load.hift import load_hift_networks
from cosyserve.settings import Settings

FRAMES = 130


@pytest.fixture(scope="module")
def networks(weights1: Path) -> HiftNetworks:
    return load_hift_networks(Settings(weights=str(weights1)))


@pytest.fixture(scope="module")
def mel() -> np.ndarray:
    return np.random.default_rng(0).normal(-4, 1.5, (80, FRAMES)).astype(np.float32)


@pytest.mark.parametrize("cuts", [(1, 40), (24, 25, 100), (64,)])
def test_pieces_equal_the_whole(networks: HiftNetworks, mel: np.ndarray, cuts: tuple[int, ...]) -> None:
    whole = HiftStream(networks, seed=3).step(mel, final=True)
    stream = HiftStream(networks, seed=3)
    bounds = [0, *cuts, FRAMES]
    pieces = [stream.step(mel[:, start:stop], final=stop == FRAMES) for start, stop in pairwise(bounds)]
    assert whole.shape == (FRAMES * 256,)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1 / 32767)


def test_overtones_begin_at_phases_of_the_seed(networks: HiftNetworks, mel: np.ndarray) -> None:
    def phases(seed: int) -> np.ndarray:
        return HiftStream(networks, seed)._state.phase

    assert phases(1)[0] == 0
    assert np.all(np.abs(phases(1)[1:]) <= 0.5)
    assert len(set(phases(1))) == 9
    np.testing.assert_array_equal(phases(1), phases(1))
    assert not np.array_equal(phases(1), phases(2))


def test_a_steady_pitch_is_a_steady_sine(networks: HiftNetworks) -> None:
    f0 = np.full((1, 4), 220.5)
    inputs = {
        "f0": f0,
        "phase": np.zeros((1, 9)),
        "start": np.ones(1, np.float32),
        "noise": np.zeros((1, 4 * 256, 9), np.float32),
    }
    out = networks.source(inputs)
    # 220.5 Hz at 22,050 Hz: 100 samples a period, of all harmonics together.
    source = out["source"][0, 0]
    np.testing.assert_allclose(source[100:], source[:-100], atol=1e-5)
    assert source.std() > 1e-3
    np.testing.assert_allclose(out["phases"][0, -1, 0], (4 * 256 / 100) % 1, atol=1e-9)
