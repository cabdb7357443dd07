"""CosyVoice3 against the tensors recorded from the original implementation, from frontend to vocoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosyserve.hift.noise import FixedNoise
from cosyserve_build.bundles.bundle import read
from cosyserve_build.noise import vocoder_draws
from cosyserve_build.verify import Report, verify


@pytest.fixture(scope="module")
def report(set3: Path) -> Report:
    return verify(set3)


def test_every_recorded_tensor_is_reproduced(report: Report, set3: Path) -> None:
    assert [(row.name, row.note, row.max_abs_error) for row in report.rows if not row.passed] == []
    recorded = 0
    for path in (set3 / "vectors").glob("*.npz"):
        with np.load(path) as archive:
            recorded += len(archive.files)
    assert len(report.rows) + len(report.declared) == recorded


def test_the_noise_of_the_vocoder_is_drawn_and_not_only_fed(report: Report) -> None:
    errors = {row.name: row.max_abs_error for row in report.rows}
    assert errors["hift/noise"] == errors["hift/rand_ini"] == 0


def test_official_sizes_draw_the_published_noise(set3: Path) -> None:
    config = read(set3 / "bundle").config
    phases, twister = vocoder_draws(replace(config, hift=replace(config.hift, f0_channels=512)))
    noise = FixedNoise(twister)
    first, second = noise(1, 9), noise(1, 9)
    expected = [0, 0.1709889, 0.1653319, 0.1437801, 0.7629474, 0.6589301, 0.0275190, 0.4348254, 0.0538356]
    np.testing.assert_allclose(phases, expected, atol=1e-7)
    expected = [0.9228260, 0.4774475, 0.8270519, 0.2834572, 0.7934816, 0.1734348, 0.8523750, 0.9228546, 0.7310200]
    np.testing.assert_allclose(first[0], expected, atol=1e-7)
    expected = [0.9203, 0.2437, 0.7897, 0.3580, 0.0182, 0.7698, 0.0905, 0.0133, 0.5192]
    np.testing.assert_allclose(second[0], expected, atol=1e-4)
