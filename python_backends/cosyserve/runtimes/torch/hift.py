"""The vocoder on the device, in float32: half precision is audible, and pitch adds up in float64 as its modules say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cosyserve.hift.noise import DrawnAhead, noise_of
from cosyserve.hift.stream import HiftNetworks
from cosyserve.networks.hift import Decoder, F0Predictor
from cosyserve.networks.hift_source import source_of
from cosyserve.runtimes.buckets import BATCH, FRAMES, SHORT_FRAMES, batches, bucket
from cosyserve.runtimes.graph import Arrays, Outputs, flat
from cosyserve.runtimes.torch.cuda_graphs import CudaGraphs
from cosyserve.runtimes.torch.modules import fitting, load_module, prepare_device
from cosyserve.runtimes.torch.tensorrt_networks import TensorrtDecoder, load_engine
from cosyserve.settings import Settings
from cosyserve.weights import Weights

NOISE_FRAMES = 50
"""Mel frames of noise that are drawn ahead: those of a chunk."""


class TorchGraph:
    """A module with batched inputs and outputs, its arrays on the host.

    Calls whose first input has one of the `FRAMES` along its last axis are recorded; zeros fill up their batch. Whoever
    cuts windows makes them that long where it can. Of utterances shorter than the first of `FRAMES`, those of
    `SHORT_FRAMES` are recorded for one stream.

    Args:
        module: on `device`; takes and returns tensors whose first axis is the batch.
        device: where it runs.
        outputs: names of what the module returns.
        graphs: whether calls may be recorded.
    """

    def __init__(self, module: nn.Module, device: torch.device, *outputs: str, graphs: bool = True) -> None:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            out = module(*inputs)
            return out if isinstance(out, tuple) else (out,)

        self._run = CudaGraphs(run, device, enabled=graphs)
        self._inputs = list(inspect.signature(module.forward).parameters)
        self._outputs = outputs

    def __call__(self, inputs: Arrays) -> Outputs:
        """Run once; see `Graph`."""
        named = flat(inputs)
        given = [torch.from_numpy(np.ascontiguousarray(named[name])) for name in self._inputs]
        batch = given[0].shape[0]
        if given[0].shape[-1] in FRAMES:
            rows = bucket(BATCH, batch)
            given = [torch.cat([part, part.new_zeros(rows - batch, *part.shape[1:])]) for part in given]
        out = self._run(*given)
        return Outputs(zip(self._outputs, (part[:batch].cpu().numpy() for part in out), strict=True))

    def record(
        self, example: Callable[[int, int], tuple[Tensor, ...]], streams: int, short: Sequence[int] = ()
    ) -> None:
        """Record the ladder, and `short` lengths for one stream.

        Args:
            example: makes inputs for a batch size and a number of frames.
            streams: most in a call.
        """
        for batch in reversed(batches(streams)):
            for frames in reversed(FRAMES):
                self._run.record(*example(batch, frames))
        for frames in reversed(short):
            self._run.record(*example(1, frames))


@fitting()
def load_hift(weights: Weights, settings: Settings) -> HiftNetworks:
    """The vocoder's three networks, recorded for all streams that the settings allow."""
    config, device, streams = weights.config.hift, prepare_device(settings), settings.max_streams
    graphs = settings.records_graphs
    mels, frame, sines = config.mels, config.frame, config.harmonics + 1
    f0 = TorchGraph(load_module(lambda: F0Predictor(config), weights, "hift", device), device, "f0", graphs=graphs)
    module: nn.Module = load_module(lambda: source_of(config), weights, "hift", device)
    source = TorchGraph(module, device, "source", "phases", graphs=graphs)
    module = network = load_module(lambda: Decoder(config), weights, "hift", device)
    if plan := load_engine(weights, "hift_decoder", settings):
        module = TensorrtDecoder(plan, network)
    decoder = TorchGraph(module, device, "audio", graphs=graphs)
    decoder.record(lambda b, n: (torch.zeros(b, mels, n), torch.zeros(b, 1, frame * n)), streams, SHORT_FRAMES)
    source.record(
        lambda b, n: (
            torch.zeros(b, n, dtype=torch.float64),
            torch.zeros(b, sines, dtype=torch.float64),
            torch.zeros(b),
            torch.zeros(b, frame * n, sines),
        ),
        streams,
    )
    f0.record(lambda b, n: (torch.zeros(b, mels, n),), streams, SHORT_FRAMES)
    noise = noise_of(weights)
    ahead = NOISE_FRAMES * frame
    return HiftNetworks(config, f0, source, decoder, FRAMES, lambda seed: DrawnAhead(noise(seed), sines, ahead))
