"""Modules on a device behind the `Graph` protocol."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from cosyserve.runtimes.graph import Arrays, Outputs, flat
from cosyserve.runtimes.ladder import BATCH, FRAMES
from cosyserve.runtimes.torch_capture import Captured, batches, rung


class TorchGraph:
    """A module with batched inputs and outputs, its arrays on the host.

    Calls whose first input has one of the `FRAMES` along its last axis are recorded; zeros fill up their batch. Whoever
    cuts windows makes them that long where frames may follow. Nothing may be added behind the end of an utterance, so
    its last window runs as it is.

    Args:
        module: on `device`; takes and returns tensors whose first axis is the batch.
        device: where it runs.
        outputs: names of what the module returns.
    """

    def __init__(self, module: nn.Module, device: torch.device, *outputs: str) -> None:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            out = module(*inputs)
            return out if isinstance(out, tuple) else (out,)

        self._run = Captured(run, device)
        self._inputs = list(inspect.signature(module.forward).parameters)
        self._outputs = outputs

    def __call__(self, inputs: Arrays) -> Outputs:
        """Run once; see `Graph`."""
        named = flat(inputs)
        given = [torch.from_numpy(np.ascontiguousarray(named[name])) for name in self._inputs]
        batch = given[0].shape[0]
        if given[0].shape[-1] in FRAMES:
            rows = rung(BATCH, batch)
            given = [torch.cat([part, part.new_zeros(rows - batch, *part.shape[1:])]) for part in given]
        out = self._run(*given)
        return Outputs(zip(self._outputs, (part[:batch].cpu().numpy() for part in out), strict=True))

    def record(self, example: Callable[[int, int], tuple[Tensor, ...]], streams: int) -> None:
        """Record the ladder; `example` makes inputs for a batch size and a number of frames."""
        for batch in reversed(batches(streams)):
            for frames in reversed(FRAMES):
                self._run.record(*example(batch, frames))
