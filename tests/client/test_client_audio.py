"""Reading prompt files and writing WAV files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cosyserve.limits import MAX_PROMPT_SECONDS
from cosyserve_client import InvalidArgument, WavWriter, read_prompt

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"


def test_a_prompt_is_mono_float32_at_its_own_rate() -> None:
    samples, rate = read_prompt(TINY / "prompt.wav")
    with wave.open(str(TINY / "prompt.wav")) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert rate == 16_000
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, pcm.astype(np.float32) / 32768)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.tile(np.array([[0.5, -0.25]], np.float32), (100, 1))
    soundfile.write(tmp_path / "stereo.flac", stereo, 44_100)
    samples, rate = read_prompt(tmp_path / "stereo.flac")
    assert rate == 44_100
    np.testing.assert_allclose(samples, np.full(100, 0.125), atol=1e-4)


@pytest.mark.parametrize("name", ["missing.wav", "noise.wav", "empty.wav", "long.wav"])
def test_unusable_prompts_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "noise.wav").write_bytes(b"not audio at all")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(tmp_path / "long.wav", np.zeros(int(MAX_PROMPT_SECONDS * 8000) + 1, np.float32), 8000)
    with pytest.raises(InvalidArgument, match=rf"prompt_audio: .*{name}"):
        read_prompt(tmp_path / name)


def test_a_wav_is_complete_after_every_chunk(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    pcm = np.arange(-300, 300, dtype=np.int16)
    with WavWriter(str(path), 24_000) as writer:
        for start, end in ((0, 100), (100, 100), (100, 600)):
            writer.write(pcm[start:end])
            samples, rate = soundfile.read(path, dtype="int16")
            assert rate == 24_000
            np.testing.assert_array_equal(samples, pcm[:end])


def test_an_unwritable_path_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no_such_folder"):
        WavWriter(str(tmp_path / "no_such_folder" / "out.wav"), 24_000)
