"""Speech tokens to mel frames, incrementally: each frame is computed once.

In streaming mode the model is causal per chunk, so a stream is a sequence of mask-less chunks, each given the keys,
values and convolution tails of the past. Full attention is the same with one chunk as long as the utterance. Chunks
are counted from the first prompt token, as upstream's masks are; how tokens arrive does not matter.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import FlowConfig
from cosyserve.errors import InvalidInput
from cosyserve.flow.past import Past
from cosyserve.flow.solver import solve
from cosyserve.runtimes.graph import Graph

Float = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class FlowNetworks:
    """The networks of the flow and what they share.

    Attributes:
        encoder: graph ``flow_encoder``.
        estimator: graph ``flow_estimator``, guidance included.
        noise: fixed starting noise ``[mels, frames]``, indexed by position from the start of the prompt.
        tail_channels: input channels of each causal convolution of the estimator.
    """

    config: FlowConfig
    encoder: Graph
    estimator: Graph
    noise: Float
    tail_channels: tuple[int, ...]


@dataclass(frozen=True)
class FlowVoice:
    """What the flow knows of a voice: prompt tokens ``[P]``, prompt mel ``[2P, mels]``, speaker vector ``[192]``."""

    tokens: Ints
    mel: Float
    embedding: Float


@dataclass
class _EncoderState:
    conv_tail: Float
    up_tail: Float
    keys: list[Float]
    values: list[Float]


@dataclass
class _EstimatorState:
    tails: list[Float]
    past: Past

    def copy(self) -> _EstimatorState:
        return _EstimatorState(list(self.tails), self.past.copy())


@dataclass
class FlowState:
    """Everything a stream carries from one step to the next."""

    encoder: _EncoderState
    estimator: list[_EstimatorState]  # one for each Euler step
    tokens: list[int] = field(default_factory=list)  # not yet encoded
    mu: Float | None = None  # encoded, not yet solved
    frames: int = 0  # mel frames computed, prompt included

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, which is nearly all of it."""
        encoder = sum(a.nbytes for a in (*self.encoder.keys, *self.encoder.values))
        return encoder + sum(e.past.nbytes for e in self.estimator)

    def copy(self) -> FlowState:
        """An independent copy; arrays that are only ever replaced are shared."""
        twin = copy.copy(self)
        twin.encoder = copy.copy(self.encoder)
        twin.estimator = [e.copy() for e in self.estimator]
        twin.tokens = list(self.tokens)
        return twin


class FlowStream:
    """One utterance's flow.

    Args:
        networks: graphs and constants, shared by all streams.
        voice: prompt and speaker.
        full: full attention: nothing is computed before the last token.
        state: a state from `snapshot` to go on from instead of starting with the prompt.
    """

    def __init__(
        self, networks: FlowNetworks, voice: FlowVoice, *, full: bool = False, state: FlowState | None = None
    ) -> None:
        self._net = networks
        self._voice = voice
        self._full = full
        self._prompt_frames = networks.config.ratio * len(voice.tokens)
        self._embedding = voice.embedding[None].astype(np.float32)
        if state is None:
            self._state = self._fresh()
            self.step(voice.tokens, final=False)
        else:
            self.restore(state)

    @property
    def frames(self) -> int:
        """Mel frames computed so far, prompt included."""
        return self._state.frames

    def snapshot(self) -> FlowState:
        """A copy of the state that this stream no longer touches."""
        return self._state.copy()

    def restore(self, state: FlowState) -> None:
        """Go on from a snapshot, leaving the snapshot as it is."""
        self._state = state.copy()

    def step(self, tokens: Ints, final: bool) -> Float:
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
        while size := self._token_chunk(final):
            self._encode(size)
        mels = [np.zeros((self._net.config.mels, 0), np.float32)]
        while size := self._frame_chunk(final):
            mels.append(self._solve(size))
        return np.concatenate(mels, axis=1)

    def _fresh(self) -> FlowState:
        config = self._net.config
        dim = config.width // config.heads
        layers = config.blocks + config.up_blocks
        none = [np.zeros((1, config.heads, 0, dim), np.float32) for _ in range(layers)]
        encoder = _EncoderState(
            conv_tail=np.zeros((1, config.width, 2), np.float32),
            up_tail=np.zeros((1, config.width, 2 * config.ratio), np.float32),
            keys=none,
            values=list(none),
        )
        estimator = [
            _EstimatorState(
                tails=[np.zeros((2, channels, 2), np.float32) for channels in self._net.tail_channels],
                past=Past(config.attentions, 2, config.unet_heads, config.unet_head_dim),
            )
            for _ in range(config.steps)
        ]
        return FlowState(encoder, estimator)

    def _pending(self) -> int:
        return 0 if self._state.mu is None else self._state.mu.shape[2]

    def _token_chunk(self, final: bool) -> int:
        waiting = len(self._state.tokens)
        if self._full:
            return waiting if final else 0
        chunk = self._net.config.chunk
        if waiting >= chunk + self._net.config.lookahead or (final and waiting > chunk):
            return chunk
        return waiting if final else 0

    def _frame_chunk(self, final: bool) -> int:
        waiting = self._pending()
        if self._full:
            return waiting if final else 0
        chunk = self._net.config.unet_chunk
        return chunk if waiting >= chunk else (waiting if final else 0)

    def _encode(self, size: int) -> None:
        config, state = self._net.config, self._state
        tokens, state.tokens = state.tokens[:size], state.tokens[size:]
        ahead = state.tokens[: config.lookahead]
        context = np.zeros((1, config.lookahead), np.int64)
        context[0, : len(ahead)] = ahead
        valid = (np.arange(config.lookahead) < len(ahead)).astype(np.float32)[None]
        past = state.encoder
        out = self._net.encoder(
            {
                "tokens": np.asarray([tokens], np.int64),
                "context": context,
                "context_valid": valid,
                "conv_tail": past.conv_tail,
                "up_tail": past.up_tail,
                "past_k": past.keys,
                "past_v": past.values,
            }
        )
        state.encoder = _EncoderState(
            conv_tail=out["conv_tail_out"],
            up_tail=out["up_tail_out"],
            keys=[np.concatenate(pair, axis=2) for pair in zip(past.keys, out.many("new_k"), strict=True)],
            values=[np.concatenate(pair, axis=2) for pair in zip(past.values, out.many("new_v"), strict=True)],
        )
        state.mu = out["mu"] if state.mu is None else np.concatenate([state.mu, out["mu"]], axis=2)

    def _solve(self, size: int) -> Float:
        state = self._state
        assert state.mu is not None
        start, stop = state.frames, state.frames + size
        mu, state.mu = state.mu[:, :, :size], state.mu[:, :, size:]
        cond = np.zeros_like(mu)
        known = self._voice.mel[start : min(stop, self._prompt_frames)].T
        cond[0, :, : known.shape[1]] = known

        def velocity(step: int, x: Float, t: np.float32) -> Float:
            kept = state.estimator[step]
            out = self._net.estimator(
                {
                    "x": x,
                    "mu": mu,
                    "cond": cond,
                    "embedding": self._embedding,
                    "t": np.asarray([t], np.float32),
                    "length": np.asarray([start], np.int64),
                    "tails": kept.tails,
                    "past_k": kept.past.keys(),
                    "past_v": kept.past.values(),
                }
            )
            kept.tails = out.many("new_tails")
            kept.past.append(out.many("new_k"), out.many("new_v"))
            return out["velocity"]

        mel = solve(velocity, self._net.noise[None, :, start:stop], self._net.config.steps)
        state.frames = stop
        return mel[0, :, max(0, self._prompt_frames - start) :]
