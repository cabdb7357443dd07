"""Signal defects: the inserted ones are found, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from cosyserve_build.judge.pitch import pitch
from cosyserve_build.judge.signals import CLICK, Signal

RATE = 24_000
JOINS = (9_000, 21_001, 33_017)
SPEECH = Path(__file__).parents[1] / "data" / "speech"
Float = NDArray[np.float64]


def sine(hertz: float = 200.0, seconds: float = 2.0, size: float = 0.3) -> Float:
    return size * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def pcm(wave: Float) -> NDArray[np.int16]:
    return np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16)


@pytest.fixture(scope="module", params=["slt", "rms"])
def speech(request: pytest.FixtureRequest) -> tuple[Float, int]:
    samples, rate = soundfile.read(SPEECH / f"{request.param}.flac")
    return samples, rate


def test_a_clean_tone_cut_anywhere_has_no_fault() -> None:
    found = Signal.of(pcm(sine()), JOINS, RATE)
    assert (found.clipped, found.silent, found.clicks, found.breaks) == (0, 0, 0, 0)
    assert (found.samples, found.frames, len(found.jolts), len(found.steps)) == (48_000, 100, 3, 3)


def test_int16_and_float_are_judged_alike() -> None:
    whole, share = (Signal.of(one, JOINS, RATE) for one in (pcm(sine()), pcm(sine()) / 32768))
    np.testing.assert_allclose(whole.jolts, share.jolts)
    np.testing.assert_allclose(whole.steps, share.steps)


def test_samples_at_the_limit_are_counted() -> None:
    wave = sine()
    wave[1000:1010] = 1.0
    wave[2000:2005] = -0.99
    wave[3000:3005] = 0.985
    assert Signal.of(wave, (), RATE).clipped == 15


def test_silent_frames_are_counted() -> None:
    wave = sine()
    wave[:12_000] = 0
    wave[12_000:24_000] = sine(seconds=0.5, size=0.004)  # -51 dB
    wave[24_000:36_000] = sine(seconds=0.5, size=0.005)  # -49 dB
    found = Signal.of(wave, (), RATE)
    assert (found.silent, found.frames) == (50, 100)


def _missing(wave: Float, at: int) -> Float:
    return np.concatenate([wave[:at], wave[at + 30 :]])


def _turned(wave: Float, at: int) -> Float:
    return np.concatenate([wave[:at], -wave[at:]])


def _offset(wave: Float, at: int) -> Float:
    return np.concatenate([wave[:at], wave[at:] + 0.05])


@pytest.mark.parametrize("fault", [_missing, _turned, _offset])
def test_a_click_at_a_join_is_found_and_only_there(fault: Callable[[Float, int], Float]) -> None:
    # Both sides of the sine are far from zero here.
    found = Signal.of(pcm(fault(sine(), JOINS[1] + 20)), (JOINS[0], JOINS[1] + 20, JOINS[2]), RATE)
    assert found.clicks == 1
    assert np.argmax(found.jolts) == 1


def test_a_click_in_speech_is_found(speech: tuple[Float, int]) -> None:
    wave, rate = speech
    at = len(wave) // 3 + int(np.argmax(np.abs(wave[len(wave) // 3 :])))
    assert Signal.of(wave, [at], rate).clicks == 0
    assert Signal.of(_turned(wave, at), [at], rate).clicks == 1


def test_speech_is_no_click_wherever_it_is_cut(speech: tuple[Float, int]) -> None:
    wave, rate = speech
    everywhere = [Signal.of(wave, range(start, len(wave), 1999), rate) for start in range(500, 2500, 100)]
    assert Signal.all(everywhere).jolts.max() < 1.2 * CLICK
    assert Signal.all(everywhere).clicks <= 2  # of 400


def test_a_faint_click_in_silence_counts_and_rounding_does_not() -> None:
    quiet = np.zeros(RATE)
    quiet[6_000:18_000] = sine(seconds=0.5)
    rounding = np.random.default_rng(0).integers(-1, 2, RATE) / 32768
    click = quiet + rounding
    click[20_000:] += 0.02
    assert Signal.of(quiet + rounding, [20_000], RATE).clicks == 0
    assert Signal.of(click, [20_000], RATE).clicks == 1


@pytest.mark.parametrize(("hertz", "found"), [(200.0, 0), (205.0, 0), (240.0, 1), (150.0, 1)])
def test_a_pitch_jump_at_a_join_is_found(hertz: float, found: int) -> None:
    join = 24_000  # both tones are at zero and rise
    signal = Signal.of(np.concatenate([sine(200.0, 1.0), sine(hertz, 1.0)]), [join], RATE)
    assert signal.breaks == found
    assert signal.steps == pytest.approx([abs(12 * np.log2(hertz / 200))], abs=0.05)


def test_a_pitch_jump_inside_a_chunk_is_ordinary() -> None:
    melody = np.concatenate([sine(hertz, 0.05) for hertz in [200, 260] * 10 + [240, 300] * 10])
    signal = Signal.of(melody, [24_000], RATE)
    assert signal.steps[0] > 1
    assert signal.breaks == 0


def test_joins_in_silence_and_noise_have_no_pitch() -> None:
    wave = np.concatenate([np.zeros(12_000), 0.1 * np.random.default_rng(0).standard_normal(12_000)])
    found = Signal.of(wave, [6_000, 12_000, 18_000], RATE)
    assert len(found.steps) == 0
    assert len(found.jolts) == 3
    assert found.clicks == 0


def test_nothing_at_all_is_judged_too() -> None:
    found = Signal.of(np.zeros(0, np.int16), (), RATE)
    assert (found.samples, found.frames, found.clicks, found.breaks) == (0, 0, 0, 0)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize("hertz", [75.0, 110.0, 187.0, 390.0])
def test_the_pitch_of_a_rich_tone(hertz: float, rate: int) -> None:
    time = np.arange(round(0.03 * rate)) / rate
    # The second harmonic is the loudest, as under a vowel's first resonance.
    wave = sum(np.sin(2 * np.pi * k * hertz * time + k) / abs(k - 2.2) for k in range(1, 9))
    assert pitch(np.asarray(wave)[None], rate) == pytest.approx([hertz], rel=0.02)


def test_a_woman_and_a_man(speech: tuple[Float, int]) -> None:
    wave, rate = speech
    size = round(0.03 * rate)
    found = pitch(wave[: len(wave) // size * size].reshape(-1, size), rate)
    voiced = found[found > 0]
    assert len(voiced) > len(found) / 3
    low, high = (90, 115) if len(wave) < 2.5 * rate else (160, 190)
    assert low < np.median(voiced) < high
