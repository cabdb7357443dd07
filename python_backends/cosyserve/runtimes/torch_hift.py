"""The vocoder on the device, in float32: half precision is audible, and pitch adds up in float64 as its modules say."""

from __future__ import annotations

import torch

from cosyserve.hift.generator import Decoder, F0Predictor
from cosyserve.hift.source import HarmonicSource
from cosyserve.hift.stream import HiftNetworks
from cosyserve.runtimes.torch_graph import TorchGraph
from cosyserve.runtimes.torch_modules import fitting, load_module, prepare_device
from cosyserve.settings import Settings
from cosyserve.weights import Weights


@fitting()
def load_hift(weights: Weights, settings: Settings) -> HiftNetworks:
    """The vocoder's three networks, recorded for all streams that the settings allow."""
    config, device, streams = weights.config.hift, prepare_device(settings), settings.max_streams
    mels, frame, sines = config.mels, config.frame, config.harmonics + 1
    f0 = TorchGraph(load_module(lambda: F0Predictor(config), weights, "hift", device), device, "f0")
    source = TorchGraph(
        load_module(lambda: HarmonicSource(config), weights, "hift", device), device, "source", "phases"
    )
    decoder = TorchGraph(load_module(lambda: Decoder(config), weights, "hift", device), device, "audio")
    decoder.record(lambda b, n: (torch.zeros(b, mels, n), torch.zeros(b, 1, frame * n)), streams)
    source.record(
        lambda b, n: (
            torch.zeros(b, n, dtype=torch.float64),
            torch.zeros(b, sines, dtype=torch.float64),
            torch.zeros(b),
            torch.zeros(b, frame * n, sines),
        ),
        streams,
    )
    f0.record(lambda b, n: (torch.zeros(b, mels, n),), streams)
    return HiftNetworks(config, f0, source, decoder)
