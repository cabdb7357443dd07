"""Flow sequences of CosyVoice 1, whose streams share nothing and keep little."""

from __future__ import annotations

from cosyserve.contracts import Tensors
from cosyserve.flow.sequences import FlowFactory, FlowSequence, PrimedVoice, SegmentStream
from cosyserve.flow.window_stream import WindowStream, seeded_noise
from cosyserve.scheduler import Computation
from cosyserve.sequences import seed_of


class WindowFlowSequence(FlowSequence):
    """One utterance: contract `FLOW` around a `WindowStream` for each of its segments."""

    def _begin(self, inputs: Tensors) -> Computation[SegmentStream]:
        yield from ()
        networks = self._owner.networks
        noise = seeded_noise(networks.config.mels, seed_of(inputs))
        self._counted = 0
        return WindowStream(networks, self.voice.voice, noise, full=self._full)


class WindowFlowFactory(FlowFactory):
    """Opens sequences; nothing is kept of a voice."""

    sequence = WindowFlowSequence

    def _prompt_bytes(self, voice: PrimedVoice) -> int:
        return 0
