"""Resampling, features and checks of prompt audio, against the values of the facts sheet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cosyserve import limits
from cosyserve.audio.features import Float32, fbank, log_mel_128, prompt_mel, resample, subtract_mean
from cosyserve.audio.prompt_audio import check_prompt, check_source, cut_at_pauses
from cosyserve.config import MelConfig
from cosyserve.errors import InvalidInput

V2 = MelConfig(n_fft=1920, hop=480, window=1920, mels=80, fmin=0, fmax=8000, sample_rate=24000)


def signal_a(rate: int) -> Float32:
    n = np.arange(rate)
    tone = 0.5 * np.sin(2 * np.pi * 440 * n / rate) + 0.1 * np.sin(2 * np.pi * 3000 * n / rate)
    return tone.astype(np.float32)


def test_prompt_mel_values() -> None:
    mel = prompt_mel(signal_a(24000), V2)
    assert mel.shape == (50, 80)
    assert mel.dtype == np.float32
    # Bins whose energy is float32 noise of the original agree to a few 1e-4 only.
    np.testing.assert_allclose(
        mel[25, [0, 10, 20, 40, 79]], [-9.1286583, 1.1285379, -8.6278439, -11.5129251, -11.5129251], atol=3e-4
    )
    np.testing.assert_allclose(mel[0, [0, 10, 20]], [-0.4881446, 1.8254941, -1.3528327], atol=1e-6)
    assert mel.mean() == pytest.approx(-9.0654087, abs=1e-4)


def test_prompt_mel_of_another_configuration() -> None:
    mel = prompt_mel(signal_a(24000), MelConfig(1024, 256, 1024, 80, 0, 8000, 22050))
    assert mel.shape == (93, 80)
    np.testing.assert_allclose(mel[40, [0, 10, 20, 40]], [-8.4501009, 1.5521896, -8.3645916, -11.5129251], atol=3e-4)


def test_prompt_mel_without_upper_bound() -> None:
    mel = prompt_mel(signal_a(24000), MelConfig(1920, 480, 1920, 80, 0, None, 24000))
    np.testing.assert_allclose(mel[0, [0, 10, 20]], [-0.4975766, 1.9971091, -1.7279929], atol=1e-6)


def test_log_mel_values() -> None:
    mel = log_mel_128(signal_a(16000))
    assert mel.shape == (128, 100)
    assert mel.dtype == np.float32
    np.testing.assert_allclose(
        mel[[0, 10, 20, 60, 127], 50], [-0.5146458] * 2 + [1.2873931] + [-0.5146458] * 2, atol=1e-6
    )
    assert mel.max() == pytest.approx(1.4853542, abs=1e-6)
    assert mel.mean() == pytest.approx(-0.3897954, abs=1e-5)


def test_fbank_values() -> None:
    energies = fbank(signal_a(16000))
    assert energies.shape == (98, 80)
    assert energies.dtype == np.float32
    bins = [0, 10, 20, 40, 79]
    np.testing.assert_allclose(
        energies[50, bins], [-11.5606365, -4.5735354, -7.3344316, -15.9423847, -15.9423847], atol=3e-4
    )
    np.testing.assert_allclose(
        subtract_mean(energies)[50, bins], [-0.4396267, -0.0033054, 0.0175805, -0.3612194, -0.000001], atol=3e-4
    )


RATES = [(16000, 24000), (24000, 16000), (16001, 24000), (44100, 16000), (48000, 24000), (192000, 24000)]


@pytest.mark.parametrize(("rate", "target"), RATES)
def test_resampling_keeps_a_tone_and_its_energy(rate: int, target: int) -> None:
    heard = resample(signal_a(rate), rate, target)
    assert heard.dtype == np.float32
    assert heard.shape == (target,)
    # The ends of the tone are steps, which no band-limited signal has.
    np.testing.assert_allclose(heard[200:-200], signal_a(target)[200:-200], atol=1e-4)
    assert (heard**2).mean() == pytest.approx((0.5**2 + 0.1**2) / 2, rel=1e-3)


@pytest.mark.parametrize(("rate", "target"), [(24000, 16000), (48000, 24000), (192000, 16000)])
def test_resampling_removes_what_the_target_cannot_hold(rate: int, target: int) -> None:
    tone = np.sin(2 * np.pi * 0.6 * target * np.arange(rate) / rate).astype(np.float32)
    assert np.abs(resample(tone, rate, target)[200:-200]).max() < 1e-3


@pytest.mark.parametrize("samples", [60029, 12345, 8000])
def test_resampled_length(samples: int) -> None:
    wave = voiced(samples / 44100, 44100)
    assert len(resample(wave, 44100, 24000)) == pytest.approx(samples * 24000 / 44100, abs=0.5)


def test_a_wave_at_the_wanted_rate_stays_as_it_is() -> None:
    np.testing.assert_array_equal(resample(signal_a(24000), 24000, 24000), signal_a(24000))


def test_fbank_frames_lie_inside_the_wave() -> None:
    assert [len(fbank(signal_a(16000)[:n])) for n in (400, 559, 560, 8000)] == [1, 1, 2, 48]


def test_fbank_of_digital_silence_is_the_floor() -> None:
    np.testing.assert_allclose(fbank(np.zeros(800, np.float32)), np.log(np.finfo(np.float32).eps), atol=1e-6)


def voiced(seconds: float, rate: int = 16000) -> Float32:
    return np.sin(np.arange(round(seconds * rate)) * 0.1).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 44100, 192000])
def test_good_prompts_pass(rate: int) -> None:
    check_prompt(voiced(1.0, rate), rate)
    check_prompt(voiced(limits.MAX_PROMPT_SECONDS, rate), rate)
    check_prompt(voiced(limits.MIN_PROMPT_SECONDS, rate), rate)


@pytest.mark.parametrize("rate", [-1, 0, 8000, 15999, 192001, 2**31 - 1])
def test_bad_rates(rate: int) -> None:
    with pytest.raises(InvalidInput, match=r"^prompt_sample_rate: "):
        check_prompt(voiced(1.0), rate)


def with_sample(value: float) -> Float32:
    samples = voiced(1.0)
    samples[123] = value
    return samples


@pytest.mark.parametrize(
    ("samples", "problem"),
    [
        (voiced(0.49), "seconds"),
        (voiced(30.1), "seconds"),
        (np.zeros(0, np.float32), "seconds"),
        (voiced(1.0).reshape(1, -1), "one channel"),
        (np.ones(16000, np.int16), "floating-point"),
        (with_sample(np.nan), "NaN"),
        (with_sample(-np.inf), "NaN"),
        (voiced(1.0) * 32767, "scaled"),
        (np.full(16000, 5e-5, np.float32), "silent"),
    ],
)
def test_bad_prompts(samples: Float32, problem: str) -> None:
    with pytest.raises(InvalidInput, match=f"^prompt_audio: .*{problem}"):
        check_prompt(samples, 16000)


def test_a_source_may_be_longer_and_is_named() -> None:
    check_source(voiced(limits.MAX_SOURCE_SECONDS), 16000)
    for samples, rate, field in ((voiced(300.1), 16000, "audio"), (voiced(1.0), 8000, "sample_rate")):
        with pytest.raises(InvalidInput, match=f"^source_{field}: "):
            check_source(samples, rate)


def test_a_long_wave_is_cut_where_it_is_quiet() -> None:
    wave = np.concatenate([voiced(20.0), np.zeros(1000, np.float32), voiced(25.0), voiced(3.3)])
    pieces = cut_at_pauses(wave, 640, 30 * 16000)
    np.testing.assert_array_equal(np.concatenate(pieces), wave)
    assert len(pieces) == 2
    assert len(pieces[0]) % 640 == 0
    assert 320_000 <= len(pieces[0]) <= 321_000
    # Audio without a pause is cut too; audio that fits stays whole.
    lengths = [len(piece) for piece in cut_at_pauses(voiced(100.0), 640, 30 * 16000)]
    assert sum(lengths) == 1_600_000
    assert min(lengths[:-1]) >= 240_000
    assert max(lengths) <= 480_000
    assert [len(piece) for piece in cut_at_pauses(voiced(30.0), 640, 30 * 16000)] == [480_000]


class Unread(np.ndarray[Any, Any]):
    """Samples that no function of numpy may read."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the samples are read")


def test_length_is_judged_without_reading_samples() -> None:
    endless = np.broadcast_to(np.float32(0.1), (10**12,)).view(Unread)
    with pytest.raises(InvalidInput, match="seconds"):
        check_prompt(endless, 16000)
    with pytest.raises(AssertionError, match="are read"):
        check_prompt(endless[:48000], 16000)
