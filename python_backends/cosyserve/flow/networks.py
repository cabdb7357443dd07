"""What a flow stream needs of its networks, whichever runtime they run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import FlowConfig
from cosyserve.scheduler import Network

Float = NDArray[np.float32]
Ints = NDArray[np.int64]


class FlowCache(Protocol):
    """Keys, values and convolution tails of one stream, kept where its networks compute."""

    @property
    def nbytes(self) -> int:
        """Bytes that this stream holds; a shared prompt is not among them."""
        ...

    def fork(self) -> FlowCache:
        """A stream of its own that goes on from here. What this cache holds is shared, and must not change any more."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class EncodeJob:
    """One chunk for the encoder; the result is mu, float32 ``[mels, ratio * n]``.

    Attributes:
        cache: extended by the chunk's keys and values.
        tokens: ``[n]``.
        context: the look-ahead tokens behind them, ``[lookahead]``.
        context_valid: 1 where such a token exists, ``[lookahead]``.
        chunks: whole chunks that the tokens are, of which each sees itself and those before it. One chunk may have any
            length.
    """

    cache: Any
    tokens: Ints
    context: Ints
    context_valid: Float
    chunks: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class SolveJob:
    """One chunk for the Euler solver; the result is mel, float32 ``[mels, n]``.

    Attributes:
        cache: extended by the chunk's keys and values of every Euler step.
        mu: encoder output ``[mels, n]``.
        cond: prompt mel where there is one, else zero ``[mels, n]``.
        embedding: speaker vector ``[speaker]``.
        noise: starting state ``[mels, n]``.
        chunks: see `EncodeJob`.
    """

    cache: Any
    mu: Float
    cond: Float
    embedding: Float
    noise: Float
    chunks: int = 1


class FlowNetworks(Protocol):
    """The networks of the flow and what all streams share."""

    @property
    def config(self) -> FlowConfig:
        """Sizes."""
        ...

    @property
    def noise(self) -> Float:
        """Fixed starting noise ``[mels, frames]``, indexed by position from the start of the prompt."""
        ...

    @property
    def encode(self) -> Network[EncodeJob, Float]:
        """Speech tokens to mu."""
        ...

    @property
    def solve(self) -> Network[SolveJob, Float]:
        """Noise to mel."""
        ...

    @property
    def frame_bytes(self) -> int:
        """Bytes of cache for each mel frame of a stream."""
        ...

    @property
    def chunks(self) -> tuple[int, ...]:
        """How many chunks of a prompt may be computed in one call, descending; the last is 1."""
        ...

    def open(self) -> FlowCache:
        """The cache of a stream before its first chunk."""
        ...
