"""The vocoder on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cosyserve.hift.stream import HiftNetworks, HiftStream
from cosyserve.load.hift import load_hift_networks
from cosyserve.runtimes.buckets import FRAMES
from cosyserve.runtimes.graph import Arrays, Graph, Outputs
from cosyserve.runtimes.torch.cuda_graphs import CudaGraphs
from cosyserve.settings import Settings
from cosyserve.weights import Weights

Float = NDArray[np.float32]
LSB = 1 / 32768


@pytest.fixture(scope="module")
def networks(any_torch_weights: Weights) -> HiftNetworks:
    return load_hift_networks(Settings(weights=str(any_torch_weights.folder), runtime="torch"))


@pytest.fixture(scope="module")
def graphs(any_weights: Path) -> HiftNetworks:
    """The same vocoder in onnxruntime."""
    return load_hift_networks(Settings(weights=str(any_weights)))


@pytest.fixture(scope="module")
def mel(any_flow_vectors: dict[str, Float]) -> Float:
    found: Float = any_flow_vectors["full_stream_mel"][0]
    return found


def run(networks: HiftNetworks, mel: Float, cuts: list[int]) -> Float:
    stream = HiftStream(networks, seed=0, noise_gain=0.0)
    *pieces, last = np.split(mel, cuts, axis=1)
    return np.concatenate([*(stream.step(piece, final=False) for piece in pieces), stream.step(last, final=True)])


def test_the_recorded_audio_comes_out(torch_weights: Weights, e2e_vectors: dict[str, Float]) -> None:
    networks = load_hift_networks(Settings(weights=str(torch_weights.folder), runtime="torch"))
    # The recorded run added up its phases in float32.
    found = run(networks, e2e_vectors["offline_mel"][0], [])
    np.testing.assert_allclose(found, e2e_vectors["offline_pcm"][0], rtol=0, atol=5e-3)


@pytest.mark.parametrize("cuts", [[], [100], [7, 130, 131]], ids=str)
def test_any_pieces_give_what_the_graphs_give(
    networks: HiftNetworks, graphs: HiftNetworks, mel: Float, cuts: list[int]
) -> None:
    np.testing.assert_allclose(run(networks, mel, cuts), run(graphs, mel, []), rtol=0, atol=LSB)


@pytest.mark.parametrize("frames", [70, 137, 206])
def test_last_windows_have_a_recorded_length(networks: HiftNetworks, mel: Float, frames: int) -> None:
    lengths: list[int] = []

    def noting(graph: Graph) -> Callable[[Arrays], Outputs]:
        def call(inputs: Arrays) -> Outputs:
            first = next(iter(inputs.values()))
            lengths.append(first.shape[-1])  # type: ignore[union-attr]
            return graph(inputs)

        return call

    watched = replace(
        networks, f0=noting(networks.f0), source=noting(networks.source), decoder=noting(networks.decoder)
    )
    run(watched, mel[:, :frames], list(range(50, frames, 50)))
    assert lengths
    assert set(lengths) <= set(FRAMES)


@pytest.mark.parametrize("tokens", [8, 13, 31])
def test_a_short_utterance_runs_in_a_recorded_shape(
    any_torch_weights: Weights, mel: Float, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, called = set(), set()

    def shapes(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Size, ...]:
        return tuple(each.shape for each in inputs)

    run = CudaGraphs.__call__

    def call(graphs: CudaGraphs, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        called.add(shapes(inputs))
        return run(graphs, *inputs)

    monkeypatch.setattr(CudaGraphs, "record", lambda graphs, *inputs: recorded.add(shapes(inputs)))
    monkeypatch.setattr(CudaGraphs, "__call__", call)
    networks = load_hift_networks(Settings(weights=str(any_torch_weights.folder), runtime="torch", max_streams=4))
    HiftStream(networks, seed=0).step(mel[:, : 2 * tokens], final=True)
    assert len(called) == 3
    assert called <= recorded


def test_noise_drawn_ahead_is_the_same_noise(networks: HiftNetworks, graphs: HiftNetworks) -> None:
    sines = networks.config.harmonics + 1
    ahead, plain = networks.noise(7), graphs.noise(7)
    for samples in (0, 1, 480, 24_001, 100_000):
        np.testing.assert_array_equal(ahead(samples, sines), plain(samples, sines))


def test_audio_with_its_noise_is_that_of_the_graphs(networks: HiftNetworks, graphs: HiftNetworks, mel: Float) -> None:
    found, expected = (HiftStream(each, seed=3).step(mel, final=True) for each in (networks, graphs))
    np.testing.assert_allclose(found, expected, rtol=0, atol=LSB)


@pytest.mark.parametrize("frames", [64, 65])
def test_windows_in_one_call_get_what_they_get_alone(networks: HiftNetworks, frames: int) -> None:
    random = np.random.default_rng(0)
    mel = random.standard_normal((3, networks.config.mels, frames), dtype=np.float32)
    source = 0.1 * random.standard_normal((3, 1, frames * networks.config.frame), dtype=np.float32)
    together = networks.decoder({"mel": mel, "source": source})["audio"]
    assert together.shape == (3, frames * networks.config.frame)
    for row in range(3):
        one = slice(row, row + 1)
        alone = networks.decoder({"mel": mel[one], "source": source[one]})["audio"]
        np.testing.assert_allclose(together[one], alone, rtol=0, atol=1e-5)


def test_pitch_and_phase_keep_their_double_precision(networks: HiftNetworks) -> None:
    f0 = networks.f0({"mel": np.zeros((1, networks.config.mels, 20), np.float32)})["f0"]
    assert f0.dtype == np.float64
    sines = networks.config.harmonics + 1
    out = networks.source(
        {
            "f0": np.full((1, 20), 123.456),
            "phase": np.zeros((1, sines)),
            "start": np.ones(1, np.float32),
            "noise": np.zeros((1, 20 * networks.config.frame, sines), np.float32),
        }
    )
    assert out["phases"].dtype == np.float64
