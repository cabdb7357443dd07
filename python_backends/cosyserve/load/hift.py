"""The vocoder."""

from __future__ import annotations

from cosyserve.hift.stream import HiftNetworks
from cosyserve.load.stage import load_stage
from cosyserve.settings import Settings
from cosyserve.weights import Weights


def load_hift_networks(settings: Settings) -> HiftNetworks:
    """The vocoder's three networks."""
    networks: HiftNetworks = load_stage("hift", Weights(settings.folder), settings)
    return networks
