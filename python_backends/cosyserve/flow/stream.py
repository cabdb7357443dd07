"""Speech tokens to mel frames, incrementally: each frame is computed once.

In streaming mode the model is causal per chunk, so a stream is a sequence of mask-less chunks, each given the keys,
values and convolution tails of the past. Full attention is the same with one chunk as long as the utterance. Chunks
are counted from the first prompt token, as upstream's masks are; how tokens arrive does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cosyserve.errors import InvalidInput
from cosyserve.flow.networks import EncodeJob, FlowCache, FlowNetworks, SolveJob
from cosyserve.scheduler import Computation, Job, run_alone

Float = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class FlowVoice:
    """What the flow knows of a voice: prompt tokens ``[P]``, prompt mel ``[2P, mels]``, speaker vector ``[192]``."""

    tokens: Ints
    mel: Float
    embedding: Float


@dataclass
class FlowState:
    """Everything a stream carries from one step to the next."""

    cache: FlowCache
    tokens: list[int] = field(default_factory=list)  # not yet encoded
    mu: Float | None = None  # [mels, n], encoded, not yet solved
    frames: int = 0  # mel frames computed, prompt included

    def fork(self) -> FlowState:
        """The state of another stream that goes on from here; this one must not be stepped any more."""
        return FlowState(self.cache.fork(), list(self.tokens), self.mu, self.frames)


class FlowStream:
    """One utterance's flow.

    Args:
        networks: shared by all streams.
        voice: prompt and speaker.
        full: full attention: nothing is computed before the last token.
        state: a fork of what `prime` made of this voice; without it the prompt is computed with the first step.
        chunks: how many chunks may be computed in one call, descending; the last is 1.
    """

    def __init__(
        self,
        networks: FlowNetworks,
        voice: FlowVoice,
        *,
        full: bool = False,
        state: FlowState | None = None,
        chunks: tuple[int, ...] = (1,),
    ) -> None:
        self._net = networks
        self._voice = voice
        self._full = full
        self._chunks = chunks
        self._prompt_frames = networks.config.ratio * len(voice.tokens)
        self._state = state or FlowState(networks.open().fork(), voice.tokens.tolist())

    @classmethod
    def prime(cls, networks: FlowNetworks, voice: FlowVoice) -> Computation[FlowState]:
        """The state after the prompt; the streams of a voice start from its forks."""
        stream = cls(networks, voice, state=FlowState(networks.open(), voice.tokens.tolist()), chunks=networks.chunks)
        yield from stream.begin_step(np.zeros(0, np.int32), final=False)
        return stream._state

    @property
    def frames(self) -> int:
        """Mel frames computed so far, prompt included."""
        return self._state.frames

    @property
    def nbytes(self) -> int:
        """Bytes of cache that this stream holds besides a shared prompt."""
        return self._state.cache.nbytes

    def step(self, tokens: Ints, final: bool) -> Float:
        """Run one step; see `begin_step`."""
        return run_alone(self.begin_step(tokens, final))

    def begin_step(self, tokens: Ints, final: bool) -> Computation[Float]:
        """Take the next speech tokens and return the mel frames that they settle.

        Args:
            tokens: ``[n]``, any number.
            final: no token follows; the look-ahead of the last ones is zero.

        Returns:
            ``[mels, frames]``, prompt frames left out; frames may be 0.

        Raises:
            InvalidInput: prompt and speech are longer than the noise buffer.
        """
        state = self._state
        state.tokens.extend(int(t) for t in tokens)
        total = state.frames + self._pending() + self._net.config.ratio * len(state.tokens)
        if total > self._net.noise.shape[1]:
            raise InvalidInput("text", f"a segment and its prompt exceed {self._net.noise.shape[1]} mel frames")
        mels = [np.zeros((self._net.config.mels, 0), np.float32)]
        while (tokens_ready := self._token_chunk(final)) or (frames_ready := self._frame_chunk(final)):
            if tokens_ready:
                yield from self._encode(tokens_ready)
            else:
                mels.append((yield from self._solve(frames_ready)))
        return np.concatenate(mels, axis=1)

    def _pending(self) -> int:
        return 0 if self._state.mu is None else self._state.mu.shape[1]

    def _token_chunk(self, final: bool) -> int:
        waiting = len(self._state.tokens)
        if self._full:
            return waiting if final else 0
        chunk = self._net.config.chunk
        if settled := max(0, waiting - self._net.config.lookahead) // chunk:
            return chunk * self._together(settled)
        if final and waiting > chunk:
            return chunk
        return waiting if final else 0

    def _frame_chunk(self, final: bool) -> int:
        waiting = self._pending()
        if self._full:
            return waiting if final else 0
        chunk = self._net.config.frame_chunk
        if settled := waiting // chunk:
            return chunk * self._together(settled)
        return waiting if final else 0

    def _together(self, settled: int) -> int:
        """How many of these chunks the next call takes."""
        return next(count for count in self._chunks if count <= settled)

    def _whole_chunks(self, size: int, chunk: int) -> int:
        """Chunks in a call of this size: full attention is one, and so is a last chunk, however long they are."""
        return 1 if self._full else max(1, size // chunk)

    def _encode(self, size: int) -> Computation[None]:
        state, lookahead = self._state, self._net.config.lookahead
        tokens, state.tokens = state.tokens[:size], state.tokens[size:]
        ahead = state.tokens[:lookahead]
        context = np.zeros(lookahead, np.int64)
        context[: len(ahead)] = ahead
        valid = (np.arange(lookahead) < len(ahead)).astype(np.float32)
        chunks = self._whole_chunks(size, self._net.config.chunk)
        job = EncodeJob(state.cache, np.asarray(tokens, np.int64), context, valid, chunks)
        mu = yield Job(self._net.encode, job)
        state.mu = mu if state.mu is None else np.concatenate([state.mu, mu], axis=1)

    def _solve(self, size: int) -> Computation[Float]:
        state = self._state
        assert state.mu is not None
        start, stop = state.frames, state.frames + size
        mu, state.mu = state.mu[:, :size], state.mu[:, size:]
        cond = np.zeros_like(mu)
        known = self._voice.mel[start : min(stop, self._prompt_frames)].T
        cond[:, : known.shape[1]] = known
        noise = self._net.noise[:, start:stop]
        chunks = self._whole_chunks(size, self._net.config.frame_chunk)
        job = SolveJob(state.cache, mu, cond, self._voice.embedding, noise, chunks)
        mel: Float = yield Job(self._net.solve, job)
        state.frames = stop
        return mel[:, max(0, self._prompt_frames - start) :]
