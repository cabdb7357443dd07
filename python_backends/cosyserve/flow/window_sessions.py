"""Flow sessions of CosyVoice 1, whose streams share nothing and keep little."""

from __future__ import annotations

from cosyserve.contracts import Tensors
from cosyserve.flow.sessions import FlowSession, FlowSessions, Stream, VoiceEntry
from cosyserve.flow.window_stream import WindowStream, seeded_noise
from cosyserve.jobs import Steps
from cosyserve.sessions import seed_of


class WindowSession(FlowSession):
    """One utterance: contract `FLOW` around a `WindowStream` for each of its segments."""

    def _begin(self, inputs: Tensors) -> Steps[Stream]:
        yield from ()
        networks = self._owner.networks
        noise = seeded_noise(networks.config.mels, seed_of(inputs))
        self._counted = 0
        return WindowStream(networks, self.voice.voice, noise, full=self._full)


class WindowSessions(FlowSessions):
    """Opens sessions; nothing is kept of a voice."""

    session = WindowSession

    def _prompt(self, voice: VoiceEntry) -> int:
        return 0
