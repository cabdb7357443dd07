"""The vocoder over ONNX graphs."""

from __future__ import annotations

from dataclasses import replace

from safetensors.numpy import load_file

from cosyserve.hift.noise import FixedNoise
from cosyserve.hift.stream import HiftNetworks
from cosyserve.runtimes.onnx.graph import load_graph
from cosyserve.settings import Settings
from cosyserve.weights import Weights


def load_hift(weights: Weights, settings: Settings) -> HiftNetworks:
    """The vocoder's three graphs."""
    names = ("hift_f0", "hift_source", "hift_decoder")
    f0, source, decoder = (load_graph(weights, name, settings) for name in names)
    networks = HiftNetworks(weights.config.hift, f0, source, decoder)
    if not weights.config.hift.fixed_noise:
        return networks
    twister = load_file(weights.file("hift_noise.safetensors"))["twister"]
    return replace(networks, noise=lambda seed: FixedNoise(twister))
