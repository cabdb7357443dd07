"""Flow sessions for the server: one for each utterance, all within one bound on cache memory."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import Tensors
from cosyserve.errors import InvalidInput, MemoryTaken
from cosyserve.flow.stream import FlowState, FlowStream, FlowVoice
from cosyserve.jobs import Steps
from cosyserve.limits import CACHED_VOICES, RESERVED_FRAMES


class Stream(Protocol):
    """The flow of one segment."""

    @property
    def frames(self) -> int:
        """Mel frames computed so far, those of a prompt included."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes kept for the next step, besides what streams of a voice share."""
        ...

    def steps(self, tokens: NDArray[np.int32], final: bool) -> Steps[NDArray[np.float32]]:
        """Mel frames ``[mels, frames]`` that the next speech tokens settle."""
        ...


@dataclass(eq=False)
class VoiceEntry:
    """A voice and the flow state after its prompt, which all its sessions start from."""

    voice: FlowVoice
    state: FlowState | None = None
    priming: bool = False
    sessions: list[FlowSession] = field(default_factory=list)

    def primed(self, owner: FlowSessions) -> Steps[FlowState]:
        """The state after the prompt, computed by whoever asks first."""
        while self.priming:
            yield None
        if self.state is None:
            self.priming = True
            try:
                self.state = yield from FlowStream.prime(owner.networks, self.voice)
            finally:
                self.priming = False
            owner.computed(self.state.frames)
        return self.state


class FlowSession:
    """One utterance: contract `FLOW` around a `FlowStream` for each of its segments."""

    def __init__(self, owner: FlowSessions, voice: VoiceEntry, full: bool) -> None:
        self._owner = owner
        self.voice = voice
        self._full = full
        self._stream: Stream | None = None
        self._counted = 0

    @property
    def nbytes(self) -> int:
        """Bytes of cache held besides the voice's."""
        return self._stream.nbytes if self._stream else 0

    def steps(self, inputs: Tensors) -> Steps[Tensors]:
        """Mel frames that these speech tokens settle; the last of a segment frees its state."""
        tokens, final = self._owner.tokens("speech_tokens", inputs), bool(inputs["final"][0])
        stream = self._stream = self._stream or (yield from self._begin(inputs))
        mel = yield from stream.steps(tokens, final)
        self._owner.computed(stream.frames - self._counted)
        self._counted = stream.frames
        self._owner.check(self)
        if final:
            self._stream = None
        return {"mel": mel, "mel_final": inputs["final"]}

    def close(self) -> None:
        """See `Session.close`."""
        self._stream = None
        self._owner.left(self)

    def _begin(self, inputs: Tensors) -> Steps[Stream]:
        """The stream of the next segment, whose first step has these inputs."""
        networks, voice = self._owner.networks, self.voice
        self._counted = 0
        if self._full:
            return FlowStream(networks, voice.voice, full=True)
        state = yield from voice.primed(self._owner)
        self._counted = state.frames
        return FlowStream(networks, voice.voice, state=state.fork())


class FlowSessions:
    """Opens sessions. A voice that was heard recently starts from its stored state, without touching its prompt.

    Args:
        networks: shared by all sessions.
        cache_bytes: bound on the state of streams and voices together. A new stream needs room for `RESERVED_FRAMES`
            and for its prompt, if no other stream has the voice; voices that nobody uses make way for it.
        count_frames: called with the mel frames computed in each step, prompt included.
    """

    session: ClassVar[type[FlowSession]] = FlowSession

    def __init__(self, networks: Any, cache_bytes: int, count_frames: Callable[[int], None]) -> None:
        self.networks = networks
        self.computed = count_frames
        self._limit = cache_bytes
        self._voices: OrderedDict[bytes, VoiceEntry] = OrderedDict()
        self._open: list[FlowSession] = []

    @property
    def nbytes(self) -> int:
        """Bytes of state held by streams and voices."""
        return sum(s.nbytes for s in self._open) + sum(map(self._prompt, self._voices.values()))

    def open(self, inputs: Tensors) -> FlowSession:
        """A session for the voice and mode in the first step's inputs.

        Raises:
            MemoryTaken: the cache memory is in use.
        """
        voice = self._voice(inputs)
        full = "stream" in inputs and not inputs["stream"][0]
        key = _digest(voice)
        known = self._voices.get(key) or VoiceEntry(voice)
        session = self.session(self, known, full)
        self._make_room([*self._open, session], known)
        self._voices[key] = known
        self._voices.move_to_end(key)
        known.sessions.append(session)
        self._open.append(session)
        return session

    def check(self, session: FlowSession) -> None:
        """A session has grown.

        Raises:
            MemoryTaken: beyond what was reserved for it, and the cache memory is in use.
        """
        if session.nbytes > self._reserved:
            self._make_room(self._open, session.voice)

    def left(self, session: FlowSession) -> None:
        """A session has ended."""
        self._open.remove(session)
        session.voice.sessions.remove(session)

    def tokens(self, name: str, inputs: Tensors) -> NDArray[np.int32]:
        """Speech tokens among the inputs, none if they are left out.

        Raises:
            InvalidInput: one of them is not the flow's.
        """
        tokens = inputs.get(name, np.zeros(0, np.int32)).astype(np.int32)
        if np.any((tokens < 0) | (tokens >= self.networks.config.tokens)):
            raise InvalidInput(name, f"holds an id outside 0..{self.networks.config.tokens - 1}")
        return tokens

    def nothing(self, inputs: Tensors) -> Tensors:
        """No mel frame."""
        return {"mel": np.zeros((self.networks.config.mels, 0), np.float32), "mel_final": inputs["final"]}

    def _voice(self, inputs: Tensors) -> FlowVoice:
        if "speaker_embedding" not in inputs:
            raise InvalidInput("speaker_embedding", "is required at sequence start")
        tokens = self.tokens("flow_prompt_tokens", inputs)
        mel = inputs.get("prompt_mel", np.zeros((0, self.networks.config.mels), np.float32)).astype(np.float32)
        return FlowVoice(tokens, mel, inputs["speaker_embedding"].astype(np.float32))

    def _make_room(self, sessions: list[FlowSession], voice: VoiceEntry) -> None:
        streams = sum(max(self._reserved, session.nbytes) for session in sessions)
        idle = [(key, other) for key, other in self._voices.items() if not other.sessions and other is not voice]
        used = {id(v): v for v in (*self._voices.values(), voice)}
        held = streams + sum(map(self._prompt, used.values()))
        if held - sum(self._prompt(other) for _, other in idle) > self._limit:
            raise MemoryTaken("the flow's cache memory is in use; try again shortly")
        for count, (key, other) in enumerate(idle):
            if held <= self._limit and len(used) - count <= CACHED_VOICES:
                return
            held -= self._prompt(other)
            del self._voices[key]

    @property
    def _reserved(self) -> int:
        return RESERVED_FRAMES * int(self.networks.frame_bytes)

    def _prompt(self, voice: VoiceEntry) -> int:
        frames: int = len(voice.voice.tokens) * self.networks.config.ratio
        return frames * int(self.networks.frame_bytes)


def _digest(voice: FlowVoice) -> bytes:
    """Content hash of a voice: two voices with one transcript never meet, nor two whose bytes join to the same."""
    content = hashlib.sha256()
    for part in (voice.tokens, voice.mel, voice.embedding):
        content.update(f"{part.shape}".encode())
        content.update(np.ascontiguousarray(part).tobytes())
    return content.digest()
