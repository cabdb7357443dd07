"""Speech tokens of CosyVoice 1 to mel frames, window by window.

Nothing in this flow is causal, so a stream cannot go on from kept state. As upstream does (cli/model.py ::
CosyVoiceModel.token2wav), each window of `hop` + `overlap` tokens is computed behind the prompt, and what two windows
share is made alike: it starts from the noise and the mu that the window before used, and its mel frames are
cross-faded. Two things differ from upstream. The weights of the cross-fade sum to one; upstream's Hamming halves sum to
1.08. And each window's new noise comes from the request's seed.

The first audio waits for a whole window, 2.4 s of speech: a shorter first one would have less to attend to than any
that the model was tried with, and be heard first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import WindowFlowConfig
from cosyserve.errors import InvalidInput
from cosyserve.flow.solver import solve
from cosyserve.flow.stream import FlowVoice
from cosyserve.limits import MAX_NOISE_FRAMES
from cosyserve.runtimes.graph import Graph
from cosyserve.scheduler import Computation, Job, Network, run_alone

Float = NDArray[np.float32]
Ints = NDArray[np.int32]
Noise = Callable[[int], Float]
"""Frames of a window, prompt included -> its starting noise ``[mels, frames]``."""


@dataclass(frozen=True, slots=True, eq=False)
class WindowEncodeJob:
    """Prompt and one window for the encoder; the result is mu, float32 ``[mels, frames]``.

    Attributes:
        tokens: ``[n]``.
        stretch: see `stretching` ``[frames, n]``.
    """

    tokens: NDArray[np.int64]
    stretch: Float


@dataclass(frozen=True, slots=True, eq=False)
class WindowSolveJob:
    """Prompt and one window for the Euler solver; the result is mel, float32 ``[mels, frames]``.

    Attributes:
        mu, cond, noise: ``[mels, frames]``.
        embedding: speaker vector ``[speaker]``.
    """

    mu: Float
    cond: Float
    embedding: Float
    noise: Float


class _Encoder:
    """Network of `WindowEncodeJob` over graph ``flow_encoder``."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def can_batch(self, batch: Sequence[WindowEncodeJob], job: WindowEncodeJob) -> bool:
        """Equal lengths only: there is nothing that padding would leave alone."""
        return job.stretch.shape == batch[0].stretch.shape

    def __call__(self, batch: Sequence[WindowEncodeJob]) -> list[Float]:
        """Mu of each stream."""
        tokens, stretch = np.stack([job.tokens for job in batch]), np.stack([job.stretch for job in batch])
        return list(self._graph({"tokens": tokens, "stretch": stretch})["mu"])


class _Solver:
    """Network of `WindowSolveJob` over graph ``flow_estimator``."""

    def __init__(self, graph: Graph, steps: int) -> None:
        self._graph = graph
        self._steps = steps

    def can_batch(self, batch: Sequence[WindowSolveJob], job: WindowSolveJob) -> bool:
        """Equal lengths only, as above."""
        return job.mu.shape == batch[0].mu.shape

    def __call__(self, batch: Sequence[WindowSolveJob]) -> list[Float]:
        """Mel of each stream, all Euler steps."""
        fixed = {name: np.stack([getattr(job, name) for job in batch]) for name in ("mu", "cond", "embedding")}

        def velocity(_: int, x: Float, t: np.float32) -> Float:
            return self._graph({**fixed, "x": x, "t": np.full(len(batch), t, np.float32)})["velocity"]

        return list(solve(velocity, np.stack([job.noise for job in batch]), self._steps))


class WindowNetworks:
    """The networks of the flow, shared by all streams.

    Args:
        encoder: graph ``flow_encoder``.
        estimator: graph ``flow_estimator``, guidance included.
    """

    def __init__(self, config: WindowFlowConfig, encoder: Graph, estimator: Graph) -> None:
        self.config = config
        self.encode: Network[WindowEncodeJob, Float] = _Encoder(encoder)
        self.solve: Network[WindowSolveJob, Float] = _Solver(estimator, config.steps)

    @property
    def frame_bytes(self) -> int:
        """Bytes kept between windows for each frame of prompt and overlap: noise and mu."""
        return 2 * 4 * self.config.mels


@dataclass(frozen=True, slots=True, eq=False)
class _WindowState:
    """What the next window takes over: noise and mu of prompt and shared frames, and the mel of the latter."""

    noise: Float
    mu: Float
    mel: Float


class WindowStream:
    """One segment's flow.

    Args:
        networks: shared by all streams.
        voice: prompt and speaker.
        noise: draws the starting noise of each window.
        full: one window for the whole segment, computed with the last token.
    """

    def __init__(self, networks: WindowNetworks, voice: FlowVoice, noise: Noise, *, full: bool = False) -> None:
        self._net = networks
        self._voice = voice
        self._noise = noise
        self._full = full
        self._tokens: list[int] = []
        self._kept: _WindowState | None = None
        self.frames = 0  # mel frames computed, prompt included each time

    @property
    def nbytes(self) -> int:
        """Bytes kept between windows."""
        kept = self._kept
        return kept.noise.nbytes + kept.mu.nbytes + kept.mel.nbytes if kept else 0

    def step(self, tokens: Ints, final: bool) -> Float:
        """Run one step; see `begin_step`."""
        return run_alone(self.begin_step(tokens, final))

    def begin_step(self, tokens: Ints, final: bool) -> Computation[Float]:
        """Take the next speech tokens and return the mel frames that they settle.

        Args:
            tokens: ``[n]``, any number.
            final: no token follows.

        Returns:
            ``[mels, frames]``, prompt frames left out; frames may be 0.

        Raises:
            InvalidInput: prompt and speech are longer than one window may be.
        """
        config = self._net.config
        self._tokens.extend(int(token) for token in tokens)
        mels = [np.zeros((config.mels, 0), np.float32)]
        while not self._full and len(self._tokens) >= config.hop + config.overlap:
            mels.append((yield from self._window(config.hop + config.overlap, last=False)))
            del self._tokens[: config.hop]
        if final and self._tokens:
            mels.append((yield from self._window(len(self._tokens), last=True)))
        return np.concatenate(mels, axis=1)

    def _window(self, count: int, *, last: bool) -> Computation[Float]:
        """The mel of the first `count` tokens, joined to the window before; what the next one shares is held back."""
        config, voice, before = self._net.config, self._voice, self._kept
        prompt = len(voice.mel)
        length = prompt + config.frames(count)
        if length > MAX_NOISE_FRAMES:
            raise InvalidInput("text", f"a segment and its prompt exceed {MAX_NOISE_FRAMES} mel frames")
        tokens = np.concatenate([voice.tokens, self._tokens[:count]]).astype(np.int64)
        stretch = stretching(config, len(voice.tokens), prompt, count)
        mu: Float = yield Job(self._net.encode, WindowEncodeJob(tokens, stretch))
        noise = self._noise(length)
        if before:
            noise, mu = _under(before.noise, noise), _under(before.mu, mu)
        cond = np.zeros_like(mu)
        cond[:, :prompt] = voice.mel.T
        mel: Float = yield Job(self._net.solve, WindowSolveJob(mu, cond, voice.embedding, noise))
        self.frames += length
        mel = mel[:, prompt:]
        if before:
            mel = faded(before.mel, mel)
        if last:
            return mel
        shared = config.frames(config.overlap)
        self._kept = _WindowState(
            noise=np.concatenate([noise[:, :prompt], noise[:, -shared:]], axis=1),
            mu=np.concatenate([mu[:, :prompt], mu[:, -shared:]], axis=1),
            mel=mel[:, -shared:].copy(),
        )
        return mel[:, :-shared]


def seeded_noise(mels: int, seed: int) -> Noise:
    """The noise of one segment: standard normal, the next of the stream of `seed` for each window."""
    # Not the stream that the vocoder draws from.
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, 1])))
    return lambda frames: generator.standard_normal((mels, frames), dtype=np.float32)


def stretching(config: WindowFlowConfig, prompt_tokens: int, prompt_frames: int, tokens: int) -> Float:
    """Weights ``[frames, tokens]``, prompt included, that interpolate values at tokens to values at frames.

    The prompt is stretched to its mel by itself. A window of more than twice `overlap` tokens is stretched in three
    parts, so that what it shares with its neighbours has the same length there.
    """
    overlap = config.overlap
    parts = [(prompt_tokens, prompt_frames)]
    if tokens > 2 * overlap:
        shared, middle = config.frames(overlap), config.frames(tokens)
        parts += [(overlap, shared), (tokens - 2 * overlap, middle - 2 * shared), (overlap, shared)]
    else:
        parts.append((tokens, config.frames(tokens)))
    weights = np.zeros((sum(frames for _, frames in parts), sum(count for count, _ in parts)), np.float32)
    row = column = 0
    for count, frames in parts:
        weights[row : row + frames, column : column + count] = _interpolation(count, frames)
        row, column = row + frames, column + count
    return weights


def _interpolation(count: int, frames: int) -> Float:
    """Linear interpolation of `count` values to `frames`, ends aligned by half a step (align_corners False)."""
    weights = np.zeros((frames, count), np.float32)
    at = np.maximum((np.arange(frames) + 0.5) * count / max(frames, 1) - 0.5, 0)
    left = at.astype(np.int64)
    right = np.minimum(left + 1, count - 1)
    share = (at - left).astype(np.float32)
    np.add.at(weights, (np.arange(frames), left), 1 - share)
    np.add.at(weights, (np.arange(frames), right), share)
    return weights


def _under(head: Float, array: Float) -> Float:
    """`array` with its first frames replaced by those of `head`."""
    return np.concatenate([head, array[:, head.shape[1] :]], axis=1)


def faded(old: Float, new: Float) -> Float:
    """`new` with its first frames faded in over `old`, as many as that has; the weights sum to one."""
    shared = old.shape[1]
    weight = np.sin(0.5 * np.pi * (np.arange(shared, dtype=np.float32) + 0.5) / shared) ** 2
    return np.concatenate([old * (1 - weight) + new[:, :shared] * weight, new[:, shared:]], axis=1)
