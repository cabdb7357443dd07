"""The model `hift`."""

from __future__ import annotations

from cosyserve.contracts import HIFT
from cosyserve.hift.sequences import HiftFactory
from cosyserve.load.hift import load_hift_networks
from cosyserve.metrics import HIFT_SEQUENCES
from cosyserve.sequences import SequenceFactory
from cosyserve.settings import Settings
from cosyserve.triton.sequence_model import SequenceModel


class Hift(SequenceModel):
    """Mel to PCM."""

    model = HIFT
    live = HIFT_SEQUENCES

    def load(self, settings: Settings) -> SequenceFactory:
        """Vocoder networks."""
        return HiftFactory(load_hift_networks(settings))
