"""The vocoder over ONNX graphs."""

from __future__ import annotations

from cosyserve.hift.noise import noise_of
from cosyserve.hift.stream import HiftNetworks
from cosyserve.runtimes.onnx.graph import load_graph
from cosyserve.settings import Settings
from cosyserve.weights import Weights


def load_hift(weights: Weights, settings: Settings) -> HiftNetworks:
    """The vocoder's three graphs."""
    names = ("hift_f0", "hift_source", "hift_decoder")
    f0, source, decoder = (load_graph(weights, name, settings) for name in names)
    return HiftNetworks(weights.config.hift, f0, source, decoder, noise=noise_of(weights))
