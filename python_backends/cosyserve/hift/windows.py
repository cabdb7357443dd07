"""Windows of different streams as one call of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.runtimes.graph import Graph

ALIGNMENT = 16
"""Windows share a call if they differ by less than this many frames, so that little is computed in vain."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A stretch of one stream for a graph.

    Attributes:
        inputs: arrays without batch axis.
        frames: mel frames of the window.
        end: the utterance ends here. Otherwise frames may follow, and what the graph says of the last ones is not
            used, so that it may be given more of them.
    """

    inputs: Mapping[str, NDArray[Any]]
    frames: int
    end: bool


class Windowed:
    """Network of `Window` over a graph; a result holds the outputs without batch axis, for all frames of the call.

    Args:
        graph: its inputs and outputs have the batch axis first.
        time: for each input that runs along time, that axis (without batch axis) and its positions for each frame.
        lengths: frames, ascending, that the graph is prepared for; windows are made that long where they can be.
    """

    def __init__(self, graph: Graph, time: Mapping[str, tuple[int, int]], lengths: Sequence[int] = ()) -> None:
        self._graph = graph
        self._time = time
        self._lengths = lengths

    def can_batch(self, batch: Sequence[Window], window: Window) -> bool:
        """Windows of about one length; only those with more to come can be made longer."""
        windows = [*batch, window]
        frames = [w.frames for w in windows]
        ends = [w.frames for w in windows if w.end]
        return max(frames) - min(frames) < ALIGNMENT and all(end == max(frames) for end in ends)

    def __call__(self, batch: Sequence[Window]) -> list[dict[str, NDArray[Any]]]:
        """Run the windows together."""
        frames = max(window.frames for window in batch)
        if not any(window.end for window in batch):
            frames = next((length for length in self._lengths if length >= frames), frames)
        inputs = {name: np.stack([self._padded(name, w, frames) for w in batch]) for name in batch[0].inputs}
        outputs = self._graph(inputs)
        return [{name: array[row] for name, array in outputs.items()} for row in range(len(batch))]

    def _padded(self, name: str, window: Window, frames: int) -> NDArray[Any]:
        array = window.inputs[name]
        if name not in self._time or window.frames == frames:
            return array
        axis, positions = self._time[name]
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, (frames - window.frames) * positions)
        return np.pad(array, padding)
