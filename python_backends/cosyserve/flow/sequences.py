"""The flow sequences of the server, one for each utterance, within one bound on KV cache memory."""

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
from cosyserve.finite import check_finite
from cosyserve.flow.stream import FlowState, FlowStream, FlowVoice
from cosyserve.limits import CACHED_VOICES, RESERVED_FRAMES
from cosyserve.scheduler import Computation


class SegmentStream(Protocol):
    """The flow of one segment."""

    @property
    def frames(self) -> int:
        """Mel frames computed so far, those of a prompt included."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes kept for the next step, besides what streams of a voice share."""
        ...

    def begin_step(self, tokens: NDArray[np.int32], final: bool) -> Computation[NDArray[np.float32]]:
        """Mel frames ``[mels, frames]`` that the next speech tokens settle."""
        ...


@dataclass(eq=False)
class PrimedVoice:
    """A voice and the flow state after its prompt, which all its sequences start from."""

    voice: FlowVoice
    state: FlowState | None = None
    priming: bool = False
    sequences: list[FlowSequence] = field(default_factory=list)

    def primed(self, owner: FlowFactory) -> Computation[FlowState]:
        """The state after the prompt; the first caller computes it, the others wait."""
        while self.priming:
            yield None
        if self.state is None:
            self.priming = True
            try:
                self.state = yield from FlowStream.prime(owner.networks, self.voice)
            finally:
                self.priming = False
            owner.count_frames(self.state.frames)
        return self.state


class FlowSequence:
    """One utterance: contract `FLOW` around a `FlowStream` for each of its segments."""

    def __init__(self, owner: FlowFactory, voice: PrimedVoice, full: bool, reserved: int) -> None:
        self._owner = owner
        self.reserved = reserved  # bytes that it may take in any case
        self.voice = voice
        self._full = full
        self._stream: SegmentStream | None = None
        self._counted = 0

    @property
    def nbytes(self) -> int:
        """Bytes of cache held besides the voice's."""
        return self._stream.nbytes if self._stream else 0

    def begin_step(self, inputs: Tensors) -> Computation[Tensors]:
        """Mel frames that these speech tokens settle; the last of a segment frees its state."""
        tokens, final = self._owner.tokens("speech_tokens", inputs), bool(inputs["final"][0])
        stream = self._stream = self._stream or (yield from self._begin(inputs))
        mel = yield from stream.begin_step(tokens, final)
        check_finite("mel", mel)
        self._owner.count_frames(stream.frames - self._counted)
        self._counted = stream.frames
        self._owner.check(self)
        if final:
            self._stream = None
        return {"mel": mel, "mel_final": inputs["final"]}

    def release(self) -> None:
        """See `TritonSequence.release`."""
        self._stream = None
        self._owner.release(self)

    def _begin(self, inputs: Tensors) -> Computation[SegmentStream]:
        """The stream of the next segment, whose first step has these inputs."""
        networks, voice = self._owner.networks, self.voice
        self._counted = 0
        if self._full:
            return FlowStream(networks, voice.voice, full=True)
        state = yield from voice.primed(self._owner)
        self._counted = state.frames
        return FlowStream(networks, voice.voice, state=state.fork())


class FlowFactory:
    """Opens sequences. A voice used recently starts from its stored state, without touching its prompt.

    Args:
        networks: shared by all sequences.
        cache_bytes: bound on the KV cache of streams and voices together. A new stream needs room for its longest
            segment, `RESERVED_FRAMES` at most, and for its prompt, if no other stream has the voice; for it, voices
            that nobody uses are evicted, the least recently used first.
        count_frames: called with the mel frames computed in each step, prompt included.
    """

    sequence: ClassVar[type[FlowSequence]] = FlowSequence

    def __init__(self, networks: Any, cache_bytes: int, count_frames: Callable[[int], None]) -> None:
        self.networks = networks
        self.count_frames = count_frames
        self._limit = cache_bytes
        self._voices: OrderedDict[bytes, PrimedVoice] = OrderedDict()
        self._open: list[FlowSequence] = []

    @property
    def nbytes(self) -> int:
        """Bytes of state held by streams and voices."""
        return sum(s.nbytes for s in self._open) + sum(map(self._prompt_bytes, self._voices.values()))

    def open(self, inputs: Tensors) -> FlowSequence:
        """A sequence for the voice and mode in the first step's inputs.

        Raises:
            MemoryTaken: the cache memory is in use.
        """
        voice = self._voice(inputs)
        full = "stream" in inputs and not inputs["stream"][0]
        key = _digest(voice)
        known = self._voices.get(key) or PrimedVoice(voice)
        sequence = self.sequence(self, known, full, self._reserved_frames(inputs) * int(self.networks.frame_bytes))
        self._evict([*self._open, sequence], known)
        self._voices[key] = known
        self._voices.move_to_end(key)
        known.sequences.append(sequence)
        self._open.append(sequence)
        return sequence

    def check(self, sequence: FlowSequence) -> None:
        """Check a sequence that has grown.

        Raises:
            MemoryTaken: beyond what was reserved for it, and the cache memory is in use.
        """
        if sequence.nbytes > sequence.reserved:
            self._evict(self._open, sequence.voice)

    def release(self, sequence: FlowSequence) -> None:
        """A sequence has ended; what it held can be evicted."""
        self._open.remove(sequence)
        sequence.voice.sequences.remove(sequence)

    def tokens(self, name: str, inputs: Tensors) -> NDArray[np.int32]:
        """Speech tokens among the inputs, none if they are left out.

        Raises:
            InvalidInput: one of them is not the flow's.
        """
        tokens = inputs.get(name, np.zeros(0, np.int32)).astype(np.int32)
        if np.any((tokens < 0) | (tokens >= self.networks.config.tokens)):
            raise InvalidInput(name, f"holds an id outside 0..{self.networks.config.tokens - 1}")
        return tokens

    def empty_outputs(self, inputs: Tensors) -> Tensors:
        """No mel frame."""
        return {"mel": np.zeros((self.networks.config.mels, 0), np.float32), "mel_final": inputs["final"]}

    def _voice(self, inputs: Tensors) -> FlowVoice:
        if "speaker_embedding" not in inputs:
            raise InvalidInput("speaker_embedding", "is required at sequence start")
        tokens = self.tokens("flow_prompt_tokens", inputs)
        mel = inputs.get("prompt_mel", np.zeros((0, self.networks.config.mels), np.float32)).astype(np.float32)
        return FlowVoice(tokens, mel, inputs["speaker_embedding"].astype(np.float32))

    def _evict(self, sequences: list[FlowSequence], voice: PrimedVoice) -> None:
        """Evict voices that nobody uses until these sequences and `voice` fit, and at most `CACHED_VOICES` are kept.

        Raises:
            MemoryTaken: they do not fit.
        """
        streams = sum(max(sequence.reserved, sequence.nbytes) for sequence in sequences)
        idle = [(key, other) for key, other in self._voices.items() if not other.sequences and other is not voice]
        used = {id(v): v for v in (*self._voices.values(), voice)}
        held = streams + sum(map(self._prompt_bytes, used.values()))
        if held - sum(self._prompt_bytes(other) for _, other in idle) > self._limit:
            raise MemoryTaken("the flow's cache memory is in use; try again shortly")
        for count, (key, other) in enumerate(idle):
            if held <= self._limit and len(used) - count <= CACHED_VOICES:
                return
            held -= self._prompt_bytes(other)
            del self._voices[key]

    def _reserved_frames(self, inputs: Tensors) -> int:
        """Mel frames that a sequence with these inputs may take in any case."""
        ratio: int | None = self.networks.config.ratio
        if "expected_tokens" not in inputs or ratio is None:
            return RESERVED_FRAMES
        return min(RESERVED_FRAMES, ratio * max(1, int(inputs["expected_tokens"][0])))

    def _prompt_bytes(self, voice: PrimedVoice) -> int:
        frames: int = len(voice.voice.tokens) * self.networks.config.ratio
        return frames * int(self.networks.frame_bytes)


def _digest(voice: FlowVoice) -> bytes:
    """Content hash of a voice: two voices with one transcript never meet, nor two whose bytes join to the same."""
    content = hashlib.sha256()
    for part in (voice.tokens, voice.mel, voice.embedding):
        content.update(f"{part.shape}".encode())
        content.update(np.ascontiguousarray(part).tobytes())
    return content.digest()
