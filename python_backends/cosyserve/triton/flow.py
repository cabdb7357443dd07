"""The model `flow`."""

from __future__ import annotations

from cosyserve.contracts import FLOW
from cosyserve.load.flow import load_flow_factory
from cosyserve.metrics import FLOW_CACHE, FLOW_FRAMES, FLOW_SEQUENCES
from cosyserve.sequences import SequenceFactory
from cosyserve.settings import Settings
from cosyserve.triton.adapter import TritonMetric
from cosyserve.triton.sequence_model import SequenceModel


class Flow(SequenceModel):
    """Speech tokens to mel."""

    model = FLOW
    live = FLOW_SEQUENCES

    def load(self, settings: Settings) -> SequenceFactory:
        """Flow networks, and the memory that streams and voices share."""
        frames = TritonMetric(FLOW_FRAMES)
        self._cache = TritonMetric(FLOW_CACHE)
        self._flow = load_flow_factory(settings, frames.add)
        return self._flow

    def show(self) -> None:
        """Bytes in use."""
        self._cache.set(self._flow.nbytes)
