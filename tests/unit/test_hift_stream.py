"""Vocoder streams: the same samples however the frames arrive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cosyserve.audio.pcm import to_pcm16
from cosyserve.hift.sessions import HiftSessions
from cosyserve.hift.stream import F0_RADIUS, HiftNetworks, HiftStream, decoder_radius

Float = NDArray[np.float32]
Pcm = NDArray[np.int16]
Vectors = dict[str, Float]
FRAMES = 276
SEED = 5


@pytest.fixture(scope="module")
def mel(e2e_vectors: Vectors) -> Float:
    recorded: Float = e2e_vectors["offline_mel"][0]
    return recorded


@pytest.fixture(scope="module")
def whole(hift_networks: HiftNetworks, mel: Float) -> Pcm:
    return to_pcm16(HiftStream(hift_networks, SEED).step(mel, final=True))


def run(stream: HiftStream, mel: Float, at: Sequence[int] = ()) -> Pcm:
    pieces = np.split(mel, sorted(at), axis=1)
    heads = [stream.step(piece, final=False) for piece in pieces[:-1]]
    return to_pcm16(np.concatenate([*heads, stream.step(pieces[-1], final=True)]))


def assert_same_sound(found: Pcm, expected: Pcm) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(np.int64) - expected).max(initial=0) <= 1


def test_without_noise_it_is_the_recorded_waveform(
    hift_networks: HiftNetworks, mel: Float, e2e_vectors: Vectors
) -> None:
    audio = HiftStream(hift_networks, SEED, noise_gain=0).step(mel, final=True)
    np.testing.assert_allclose(audio, e2e_vectors["offline_pcm"][0], rtol=0, atol=5e-3)


@settings(max_examples=10, deadline=None)
@given(at=st.lists(st.integers(0, FRAMES), max_size=9))
@example(at=list(range(4, FRAMES, 4)))
@example(at=[0, FRAMES])
@example(at=[1, 2, 3, FRAMES - 1])
@example(at=[64, 164])
def test_any_split_sounds_the_same(hift_networks: HiftNetworks, mel: Float, whole: Pcm, at: list[int]) -> None:
    assert len(whole) == 480 * FRAMES
    assert_same_sound(run(HiftStream(hift_networks, SEED), mel, at), whole)


@pytest.mark.parametrize("length", [0, 1, 2, 21, 23])
def test_short_mels_are_spoken_whole(hift_networks: HiftNetworks, mel: Float, length: int) -> None:
    short = mel[:, :length]
    once = run(HiftStream(hift_networks, SEED), short)
    assert len(once) == 480 * length
    assert_same_sound(run(HiftStream(hift_networks, SEED), short, at=[length // 2, length]), once)


def test_a_running_stream_holds_back_what_may_still_change(hift_networks: HiftNetworks, mel: Float) -> None:
    stream = HiftStream(hift_networks, SEED)
    sent = 0
    for frames in (10, 20, 30, 40):
        sent += len(stream.step(mel[:, :frames], final=False)) // 480
        mel = mel[:, frames:]
    assert sent == 100 - stream.frames_held
    assert stream.frames_held == F0_RADIUS + 1 + decoder_radius(hift_networks.config)


def test_seeds_decide_the_noise(hift_networks: HiftNetworks, mel: Float, whole: Pcm) -> None:
    np.testing.assert_array_equal(run(HiftStream(hift_networks, SEED), mel), whole)
    other = run(HiftStream(hift_networks, SEED + 1), mel)
    assert np.abs(other.astype(np.int64) - whole).max() > 10


@settings(max_examples=4, deadline=None)
@given(at=st.integers(0, FRAMES))
@example(at=100)
def test_a_snapshot_goes_on_alike_twice(hift_networks: HiftNetworks, mel: Float, whole: Pcm, at: int) -> None:
    stream = HiftStream(hift_networks, SEED)
    head = stream.step(mel[:, :at], final=False)
    saved = stream.snapshot()
    tails = []
    for _ in range(2):
        tails.append(stream.step(mel[:, at:], final=True))
        stream.restore(saved)
    np.testing.assert_array_equal(tails[0], tails[1])
    assert_same_sound(to_pcm16(np.concatenate([head, tails[0]])), whole)


def test_a_stream_keeps_a_bounded_past(hift_networks: HiftNetworks, mel: Float) -> None:
    stream = HiftStream(hift_networks, SEED)
    held = []
    for _ in range(6):
        stream.step(mel, final=False)
        held.append(stream.snapshot().mel.shape[1])
    assert held == [held[0]] * 6
    assert held[0] <= 64


@pytest.mark.parametrize("path", ["mel", "source"])
def test_the_decoder_sees_no_further_than_its_radius(hift_networks: HiftNetworks, path: str) -> None:
    frames, hit = 100, 50
    random = np.random.default_rng(0)
    inputs = {
        "mel": random.standard_normal((1, 80, frames)).astype(np.float32),
        "source": 0.1 * random.standard_normal((1, 1, 480 * frames)).astype(np.float32),
    }
    clean = hift_networks.decoder(inputs)["audio"][0]
    width = inputs[path].shape[2] // frames
    spoilt = inputs[path].copy()
    spoilt[:, :, hit * width : (hit + 1) * width] = np.nan  # spreads to everything that depends on it
    changed = np.flatnonzero(hift_networks.decoder(inputs | {path: spoilt})["audio"][0] != clean) // 480
    radius = decoder_radius(hift_networks.config)
    assert hit - radius <= changed.min() <= hit - radius + 3
    assert hit + radius - 3 <= changed.max() <= hit + radius


def test_the_f0_predictor_sees_no_further_than_its_radius(hift_networks: HiftNetworks, mel: Float) -> None:
    spoilt = mel[None].copy()
    spoilt[:, :, 50] = np.nan
    f0, clean = (hift_networks.f0({"mel": m})["f0"][0] for m in (spoilt, mel[None]))
    np.testing.assert_array_equal(np.flatnonzero(f0 != clean), np.arange(50 - F0_RADIUS, 50 + F0_RADIUS + 1))


def test_sessions_speak_pcm_with_the_seed_of_the_opening(hift_networks: HiftNetworks, mel: Float, whole: Pcm) -> None:
    sessions = HiftSessions(hift_networks)

    def speak(*seed: int) -> Pcm:
        inputs = {"mel": mel[:, :150], "mel_final": np.array([False])} | ({"seed": np.array(seed)} if seed else {})
        session = sessions.open(inputs)
        head = session.step(inputs)["audio"]
        tail = session.step({"mel": mel[:, 150:], "mel_final": np.array([True])})["audio"]
        return np.concatenate([head, tail]).astype(np.int16)

    assert_same_sound(speak(SEED), whole)
    np.testing.assert_array_equal(speak(), speak(0))
