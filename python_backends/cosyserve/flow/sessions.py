"""Flow sessions for the server, and the flow states of recent voices."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from cosyserve.contracts import Tensors
from cosyserve.errors import InvalidInput
from cosyserve.flow.stream import FlowNetworks, FlowState, FlowStream, FlowVoice
from cosyserve.limits import CACHED_VOICES


class FlowSession:
    """One sequence: contract `FLOW` around a `FlowStream`."""

    def __init__(self, stream: FlowStream, count_frames: Callable[[int], None], counted: int = 0) -> None:
        self._stream = stream
        self._count_frames = count_frames
        self._counted = counted

    def step(self, inputs: Tensors) -> Tensors:
        """Mel frames that these speech tokens settle."""
        mel = self._stream.step(inputs["speech_tokens"].astype(np.int32), bool(inputs["final"][0]))
        self._count_frames(self._stream.frames - self._counted)
        self._counted = self._stream.frames
        return {"mel": mel, "mel_final": inputs["final"]}


class FlowSessions:
    """Opens sessions. A voice that was heard recently starts from its stored state, without touching its prompt.

    Args:
        networks: shared by all sessions.
        cache_bytes: bound on stored voice states; the least recently used go first.
        count_frames: called with the mel frames computed in each step, prompt included.
    """

    def __init__(self, networks: FlowNetworks, cache_bytes: int, count_frames: Callable[[int], None]) -> None:
        self._networks = networks
        self._count_frames = count_frames
        self._cache_bytes = cache_bytes
        self._voices: OrderedDict[bytes, FlowState] = OrderedDict()

    def open(self, inputs: Tensors) -> FlowSession:
        """A session for the voice and mode in the first step's inputs."""
        voice = self._voice(inputs)
        full = "stream" in inputs and not inputs["stream"][0]
        if full:
            return FlowSession(FlowStream(self._networks, voice, full=True), self._count_frames)
        key = _digest(voice)
        known = self._voices.get(key)
        stream = FlowStream(self._networks, voice, state=known)
        self._remember(key, stream)
        return FlowSession(stream, self._count_frames, counted=known.frames if known else 0)

    def nothing(self, inputs: Tensors) -> Tensors:
        """No mel frame."""
        return {"mel": np.zeros((self._networks.config.mels, 0), np.float32), "mel_final": inputs["final"]}

    def _voice(self, inputs: Tensors) -> FlowVoice:
        if "speaker_embedding" not in inputs:
            raise InvalidInput("speaker_embedding", "is required at sequence start")
        tokens = inputs.get("flow_prompt_tokens", np.zeros(0, np.int32)).astype(np.int32)
        mel = inputs.get("prompt_mel", np.zeros((0, self._networks.config.mels), np.float32)).astype(np.float32)
        return FlowVoice(tokens, mel, inputs["speaker_embedding"].astype(np.float32))

    def _remember(self, key: bytes, stream: FlowStream) -> None:
        if key not in self._voices:
            self._voices[key] = stream.snapshot()
        self._voices.move_to_end(key)
        while len(self._voices) > CACHED_VOICES or sum(s.nbytes for s in self._voices.values()) > self._cache_bytes:
            self._voices.popitem(last=False)


def _digest(voice: FlowVoice) -> bytes:
    """Content hash of a voice: two voices with one transcript never meet."""
    parts = (voice.tokens, voice.mel, voice.embedding)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).digest()
