"""Vocoder streams: samples do not depend on the arrival of frames or on the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import turn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cosyserve.audio.pcm import to_pcm16
from cosyserve.contracts import Tensors
from cosyserve.errors import NotFinite
from cosyserve.hift.sequences import HiftFactory, HiftSequence
from cosyserve.hift.stream import HiftNetworks, HiftStream, decoder_reach
from cosyserve.hift.time_stretch import TimeStretch
from cosyserve.runtimes.graph import Arrays, Graph, Outputs
from cosyserve.scheduler import Scheduler, Task, run_alone

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
    config = hift_networks.config
    assert stream.frames_held == config.f0_reach[1] + config.phase_ahead + decoder_reach(config)[1]


def test_seeds_decide_the_noise(hift_networks: HiftNetworks, mel: Float, whole: Pcm) -> None:
    np.testing.assert_array_equal(run(HiftStream(hift_networks, SEED), mel), whole)
    other = run(HiftStream(hift_networks, SEED + 1), mel)
    assert np.abs(other.astype(np.int64) - whole).max() > 10


def test_a_stream_keeps_a_bounded_past(hift_networks: HiftNetworks, mel: Float) -> None:
    stream = HiftStream(hift_networks, SEED)
    held = []
    for _ in range(6):
        stream.step(mel, final=False)
        held.append(stream.frames_kept)
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
    back, ahead = decoder_reach(hift_networks.config)
    assert hit - ahead <= changed.min() <= hit - ahead + 3
    assert hit + back - 3 <= changed.max() <= hit + back


def test_the_f0_predictor_sees_no_further_than_its_radius(hift_networks: HiftNetworks, mel: Float) -> None:
    spoilt = mel[None].copy()
    spoilt[:, :, 50] = np.nan
    back, ahead = hift_networks.config.f0_reach
    f0, clean = (hift_networks.f0({"mel": m})["f0"][0] for m in (spoilt, mel[None]))
    np.testing.assert_array_equal(np.flatnonzero(f0 != clean), np.arange(50 - ahead, 50 + back + 1))


# --- streams in shared calls ---

CUTS = {120: [50], 150: [60, 100], 220: range(50, 220, 50), 64: [10], 90: [89], 256: [], 70: [40, 41], 10: [5]}
"""Lengths of some streams, and where their frames are cut."""


def run_together(networks: HiftNetworks, mel: Float) -> list[Float]:
    """The samples of all streams of `CUTS`, each with its own frames and seed."""
    rounds = Scheduler(8)
    heard: list[list[Float]] = [[] for _ in CUTS]

    def failed(error: Exception) -> None:
        raise error

    def go_on(index: int, stream: HiftStream, rest: list[Float]) -> None:
        def done(audio: Float) -> None:
            heard[index].append(audio)
            if rest[1:]:
                go_on(index, stream, rest[1:])

        rounds.add(Task(stream.begin_step(rest[0], final=len(rest) == 1), 0, done, failed))

    for index, (length, at) in enumerate(CUTS.items()):
        go_on(index, HiftStream(networks, index), np.split(mel[:, -length:], at, axis=1))
    while turn(rounds):
        pass
    return [np.concatenate(pieces) for pieces in heard]


def test_streams_in_shared_calls_give_the_same_bits_as_alone(hift_networks: HiftNetworks, mel: Float) -> None:
    batches: list[int] = []

    def counted(graph: Graph) -> Graph:
        def call(inputs: Arrays) -> Outputs:
            out = graph(inputs)
            batches.append(len(next(iter(out.values()))))
            return out

        return call

    f0, source, decoder = (counted(graph) for graph in (hift_networks.f0, hift_networks.source, hift_networks.decoder))
    networks = replace(hift_networks, f0=f0, source=source, decoder=decoder)
    together = run_together(networks, mel)
    assert max(batches) >= 3
    for index, (length, at) in enumerate(CUTS.items()):
        stream, pieces = HiftStream(hift_networks, index), np.split(mel[:, -length:], at, axis=1)
        run_alone = [stream.step(piece, final=piece is pieces[-1]) for piece in pieces]
        assert len(together[index]) == 480 * length
        np.testing.assert_array_equal(together[index], np.concatenate(run_alone))


# --- sequences ---


def go_on(sequence: HiftSequence, mel: Float, *, final: bool, seed: int | None = None) -> Pcm:
    inputs: Tensors = {"mel": mel, "mel_final": np.array([final])}
    if seed is not None:
        inputs["seed"] = np.array([seed])
    return run_alone(sequence.begin_step(inputs))["audio"].astype(np.int16)


def test_sequences_speak_pcm_with_the_seed_of_the_opening(hift_networks: HiftNetworks, mel: Float, whole: Pcm) -> None:
    def speak(seed: int | None) -> Pcm:
        sequence = HiftFactory(hift_networks).open({})
        opening = go_on(sequence, mel[:, :0], final=False, seed=seed)
        head = go_on(sequence, mel[:, :150], final=False)
        tail = go_on(sequence, mel[:, 150:], final=True)
        return np.concatenate([opening, head, tail])

    assert_same_sound(speak(SEED), whole)
    np.testing.assert_array_equal(speak(None), speak(0))


def shaped(networks: HiftNetworks, pieces: list[Float], **shape: Any) -> Pcm:
    """One segment of a sequence that is opened with these inputs."""
    opening: Tensors = {name: np.array([value]) for name, value in shape.items()}
    sequence = HiftFactory(networks).open(opening)
    return np.concatenate([go_on(sequence, p, final=p is pieces[-1], seed=SEED) for p in pieces])


SHAPES: list[dict[str, Any]] = [
    {"speed": np.float32(0.5)},
    {"speed": np.float32(1.7), "sample_rate": 8000},
    {"sample_rate": 16_000},
    {"speed": np.float32(2), "sample_rate": 48_000},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_speed_and_rate_sound_the_same_however_frames_arrive(
    hift_networks: HiftNetworks, mel: Float, shape: dict[str, Any]
) -> None:
    once = shaped(hift_networks, [mel], **shape)
    frames = int(FRAMES / float(str(shape.get("speed", 1))))
    assert len(once) == frames * 480 * shape.get("sample_rate", 24_000) // 24_000
    for at in ([10], [1, 60, 61, 200], list(range(25, FRAMES, 25))):
        assert_same_sound(shaped(hift_networks, np.split(mel, at, axis=1), **shape), once)


def test_speed_1_and_the_model_s_rate_change_no_bit(hift_networks: HiftNetworks, mel: Float, whole: Pcm) -> None:
    plain = shaped(hift_networks, [mel], speed=np.float32(1), sample_rate=24_000, stream=True)
    np.testing.assert_array_equal(plain, whole)


def test_a_speed_means_its_decimal(hift_networks: HiftNetworks, mel: Float) -> None:
    """float32 0.8 is a little more, and would make a frame less of 100."""
    assert len(shaped(hift_networks, [mel[:, :100]], speed=np.float32(0.8))) == 480 * 125


def test_whole_segments_are_stretched_as_upstream_does(hift_networks: HiftNetworks, mel: Float) -> None:
    stretched = TimeStretch(80, 1.7, whole=True).step(mel, final=True)
    expected = to_pcm16(HiftStream(hift_networks, SEED).step(stretched, final=True))
    given = shaped(hift_networks, [mel[:, :0], mel], speed=np.float32(1.7), stream=False)
    np.testing.assert_array_equal(given, expected)
    assert np.abs(shaped(hift_networks, [mel], speed=np.float32(1.7)).astype(int) - expected).max() > 10


def test_each_segment_of_a_sequence_begins_anew_with_its_seed(
    hift_networks: HiftNetworks, mel: Float, whole: Pcm
) -> None:
    sequence = HiftFactory(hift_networks).open({})
    go_on(sequence, mel[:, :60], final=True, seed=SEED + 1)
    np.testing.assert_array_equal(go_on(sequence, mel, final=True, seed=SEED), whole)


def test_audio_that_is_not_finite_fails_its_sequence(hift_networks: HiftNetworks, mel: Float) -> None:
    def overflowing(inputs: Arrays) -> Outputs:
        return Outputs({name: array * np.float32(np.nan) for name, array in hift_networks.decoder(inputs).items()})

    factory = HiftFactory(replace(hift_networks, decoder=overflowing))
    inputs: Tensors = {"mel": mel, "mel_final": np.array([True])}
    with pytest.raises(NotFinite, match="^the networks returned audio that is not finite$"):
        run_alone(factory.open(inputs).begin_step(inputs))
