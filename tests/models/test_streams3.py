"""CosyVoice3's flow and vocoder: results do not depend on the arrival of tokens and frames or on the batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve.audio.pcm import to_pcm16
from cosyserve.flow.graphs import Solver
from cosyserve.flow.networks import FlowNetworks
from cosyserve.flow.stream import FlowStream, FlowVoice
from cosyserve.hift.stream import HiftNetworks, HiftStream, decoder_reach
from cosyserve.load.flow import load_flow_networks
from cosyserve.load.hift import load_hift_networks
from cosyserve.runtimes.graph import Arrays, Outputs
from cosyserve.runtimes.onnx.graph import OnnxGraph
from cosyserve.scheduler import Scheduler, Task, run_alone
from cosyserve.settings import Settings

Array = NDArray[np.generic]
Float = NDArray[np.float32]


@pytest.fixture(scope="module")
def flow(weights3: Path) -> FlowNetworks:
    return load_flow_networks(Settings(weights=str(weights3)))


@pytest.fixture(scope="module")
def hift(weights3: Path) -> HiftNetworks:
    return load_hift_networks(Settings(weights=str(weights3)))


@pytest.fixture(scope="module")
def recorded(set3: Path) -> dict[str, Float]:
    with np.load(set3 / "vectors" / "flow.npz") as archive:
        return dict(archive.items())


@pytest.fixture(scope="module")
def voice(recorded: dict[str, Float]) -> FlowVoice:
    return FlowVoice(recorded["prompt_token"][0].astype(np.int32), recorded["prompt_feat"][0], recorded["spk_raw"][0])


@pytest.fixture(scope="module")
def tokens(recorded: dict[str, Float]) -> NDArray[np.int32]:
    return recorded["token"][0].astype(np.int32)


@pytest.fixture(scope="module")
def mel(flow: FlowNetworks, voice: FlowVoice, tokens: NDArray[np.int32]) -> Float:
    """The streamed mel of one call."""
    return FlowStream(flow, voice).step(tokens, final=True)


@pytest.fixture(scope="module")
def whole(hift: HiftNetworks, mel: Float) -> NDArray[np.int16]:
    return to_pcm16(HiftStream(hift, 0).step(mel, final=True))


def run(stream: FlowStream | HiftStream, pieces: Sequence[Array]) -> Float:
    heads = [stream.step(piece, final=False) for piece in pieces[:-1]]
    return np.concatenate([*heads, stream.step(pieces[-1], final=True)], axis=-1)


def test_the_graphs_give_the_recorded_mels(
    flow: FlowNetworks, voice: FlowVoice, tokens: NDArray[np.int32], mel: Float, recorded: dict[str, Float]
) -> None:
    np.testing.assert_allclose(mel, recorded["full_stream_mel"][0], rtol=0, atol=1e-4)
    full = FlowStream(flow, voice, full=True).step(tokens, final=True)
    np.testing.assert_allclose(full, recorded["full_offline_mel"][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("at", [[37, 87], [1, 2, 121], [0, 122], list(range(7, 122, 7))], ids=str)
def test_tokens_may_arrive_in_any_pieces(
    flow: FlowNetworks, voice: FlowVoice, tokens: NDArray[np.int32], mel: Float, at: list[int]
) -> None:
    found = run(FlowStream(flow, voice), np.split(tokens, at))
    np.testing.assert_allclose(found, mel, rtol=0, atol=1e-5)


def test_a_primed_voice_speaks_alike(
    flow: FlowNetworks, voice: FlowVoice, tokens: NDArray[np.int32], mel: Float
) -> None:
    primed = run_alone(FlowStream.prime(flow, voice))
    for _ in range(2):
        found = run(FlowStream(flow, voice, state=primed.fork()), np.split(tokens, [53]))
        np.testing.assert_allclose(found, mel, rtol=0, atol=1e-5)


def test_streams_share_calls_wherever_they_are(
    flow: FlowNetworks, voice: FlowVoice, tokens: NDArray[np.int32], mel: Float
) -> None:
    """One is ahead of the other, so that their chunks have different positions."""
    first = FlowStream(flow, voice)
    head = first.step(tokens[:60], final=False)
    second = FlowStream(flow, voice)
    scheduler = Scheduler(2)
    mels: dict[int, Float] = {}
    for index, (stream, rest) in enumerate(((first, tokens[60:]), (second, tokens))):
        scheduler.add(
            Task(stream.begin_step(rest, True), 0, lambda found, index=index: mels.update({index: found}), _failed)
        )
    widest = 0
    while call := scheduler.schedule():
        widest = max(widest, len(call.inputs))
        call.run()
        scheduler.update(call)
    assert widest == 2
    np.testing.assert_allclose(np.concatenate([head, mels[0]], axis=1), mel, rtol=0, atol=1e-5)
    np.testing.assert_allclose(mels[1], mel, rtol=0, atol=1e-5)


def test_positions_go_on_in_a_bounded_window(weights3: Path, voice: FlowVoice, tokens: NDArray[np.int32]) -> None:
    windowed = load_flow_networks(Settings(weights=str(weights3), flow_window=50))
    graph, positions = OnnxGraph(weights3 / "flow_estimator.onnx"), set[int]()

    def recorded_call(inputs: Arrays) -> Outputs:
        positions.update(np.asarray(inputs["position"]).tolist())
        return graph(inputs)

    watched = copy.copy(windowed)
    watched.solve = Solver(recorded_call, windowed.config)
    FlowStream(watched, voice, state=run_alone(FlowStream.prime(watched, voice)).fork()).step(tokens, final=True)
    assert sorted(positions) == list(range(0, 2 * (91 + 122), 50))


@pytest.mark.parametrize(
    "at", [[42, 142], [1, 2, 3, 243], list(range(4, 244, 4)), [0, 244], [8, 9, 100], [50, 150]], ids=str
)
def test_frames_may_arrive_in_any_pieces(
    hift: HiftNetworks, mel: Float, whole: NDArray[np.int16], at: list[int]
) -> None:
    found = to_pcm16(run(HiftStream(hift, 0), np.split(mel, at, axis=1)))
    assert found.shape == whole.shape == (480 * mel.shape[1],)
    assert np.abs(found.astype(np.int64) - whole).max() <= 1


def test_a_running_vocoder_holds_back_8_frames_as_upstream(hift: HiftNetworks, mel: Float) -> None:
    stream = HiftStream(hift, 0)
    assert len(stream.step(mel[:, :100], final=False)) == 480 * (100 - 8)
    assert stream.frames_held == 8


def test_the_noise_is_the_same_for_every_seed_but_not_for_every_sample(hift: HiftNetworks, mel: Float) -> None:
    one, other = (HiftStream(hift, seed).step(mel[:, :40], final=True) for seed in (1, 2))
    silent = HiftStream(hift, 1, noise_gain=0).step(mel[:, :40], final=True)
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - silent).max() > 0


def test_the_networks_see_no_further_than_they_say(hift: HiftNetworks, mel: Float) -> None:
    frames, hit = mel.shape[1], 50
    spoilt = mel[None].copy()
    spoilt[:, :, hit] = np.nan  # spreads to everything that depends on it
    back, ahead = hift.config.f0_reach
    f0, clean = (hift.f0({"mel": m})["f0"][0] for m in (spoilt, mel[None]))
    np.testing.assert_array_equal(np.flatnonzero(f0 != clean), np.arange(hit - ahead, hit + back + 1))

    source = 0.1 * np.random.default_rng(0).standard_normal((1, 1, 480 * frames)).astype(np.float32)
    back, ahead = decoder_reach(hift.config)
    wave, clean = (hift.decoder({"mel": m, "source": source})["audio"][0] for m in (spoilt, mel[None]))
    changed = np.flatnonzero(wave != clean) // 480
    assert hit - ahead <= changed.min() <= hit - ahead + 1
    assert changed.max() <= hit + back
    spoilt_source = source.copy()
    spoilt_source[:, :, 480 * hit : 480 * (hit + 1)] = np.nan
    wave = hift.decoder({"mel": mel[None], "source": spoilt_source})["audio"][0]
    changed = np.flatnonzero(wave != clean) // 480
    assert hit - ahead <= changed.min()
    assert hit + back - 3 <= changed.max() <= hit + back


def _failed(error: Exception) -> None:
    raise error


def test_both_together_sound_as_in_one_piece(
    flow: FlowNetworks, hift: HiftNetworks, voice: FlowVoice, tokens: NDArray[np.int32], whole: NDArray[np.int16]
) -> None:
    speaker, vocoder = FlowStream(flow, voice), HiftStream(hift, 0)
    pieces = np.split(tokens, [28, 53, 103])
    audio = [vocoder.step(speaker.step(p, i == 3), i == 3) for i, p in enumerate(pieces)]
    assert np.abs(to_pcm16(np.concatenate(audio)).astype(np.int64) - whole).max() <= 1
