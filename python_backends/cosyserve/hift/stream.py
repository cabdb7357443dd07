"""Mel frames to samples, incrementally and exactly: no cross-fade.

The vocoder is not causal, so a sample is final once every mel frame in its receptive field is known. The stream keeps
that much context on both sides, the phase of the harmonics and the noise of the source, and sends each sample once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import HiftConfig
from cosyserve.hift.windows import Window, Windowed
from cosyserve.jobs import Job, Steps, alone
from cosyserve.runtimes.graph import Graph

Float = NDArray[np.float32]

F0_RADIUS = 5
"""Frames that the f0 predictor sees to each side: five convolutions of kernel 3."""

WINDOW_FRAMES = 256
"""Most new frames in one decoder call: bounds memory for long chunks."""


def decoder_radius(config: HiftConfig) -> int:
    """Mel frames to each side of a sample that can influence it through the decoder, mel or source path.

    The sum of the half-widths of every layer between input and output, in frames, rounded up.
    """
    tops = math.prod(config.up_rates)
    spectrum = config.n_fft / 2 / config.hop  # STFT frames to each side of a sample
    after = (3 + spectrum + 1) / tops  # last convolution, inverse STFT, reflection pad
    source_path = 0.0
    for stage in reversed(range(len(config.up_rates))):
        rate = math.prod(config.up_rates[: stage + 1])
        after += max(map(_block_radius, config.res_kernels, config.res_dilations)) / rate
        down = 1 / rate + spectrum / tops  # strided convolution and STFT
        source = _block_radius(config.source_kernels[stage], config.source_dilations[stage]) / rate + down
        source_path = max(source_path, after + source)
        after += config.up_kernels[stage] / rate
    mel_path = after + 3  # first convolution
    return math.ceil(max(mel_path, source_path)) + 1


def _block_radius(kernel: int, dilations: tuple[int, ...]) -> int:
    return sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)


@dataclass(frozen=True)
class HiftNetworks:
    """Graphs ``hift_f0``, ``hift_source`` and ``hift_decoder``, shared by all streams; `lengths`: see `Windowed`."""

    config: HiftConfig
    f0: Graph
    source: Graph
    decoder: Graph
    lengths: tuple[int, ...] = ()

    @cached_property
    def predict(self) -> Windowed:
        """The f0 predictor."""
        return Windowed(self.f0, {"mel": (1, 1)}, self.lengths)

    @cached_property
    def excite(self) -> Windowed:
        """The source."""
        return Windowed(self.source, {"f0": (0, 1), "noise": (0, self.config.frame)}, self.lengths)

    @cached_property
    def decode(self) -> Windowed:
        """The decoder."""
        return Windowed(self.decoder, {"mel": (1, 1), "source": (1, self.config.frame)}, self.lengths)


@dataclass
class HiftState:
    """Everything a stream carries from one step to the next; arrays are replaced, never changed in place."""

    mel: Float  # [mels, n], from frame `base`
    source: Float  # [n * frame], from frame `base`
    f0: NDArray[np.float64]  # [n], predicted but not yet turned into source
    noise: Float  # [n * frame, harmonics], drawn for `f0`
    phase: NDArray[np.float64]  # [harmonics], cycles at the last frame of `source`
    generator: np.random.Generator
    base: int = 0  # frame index of the oldest context kept
    sent: int = 0  # frames sent


class HiftStream:
    """One utterance's vocoder.

    Args:
        networks: graphs, shared by all streams.
        seed: seed of the source noise.
        noise_gain: 0 leaves the source noise out, as the recorded reference runs do.
    """

    def __init__(self, networks: HiftNetworks, seed: int, noise_gain: float = 1.0) -> None:
        self._net = networks
        self._gain = np.float32(noise_gain)
        self._radius = decoder_radius(networks.config)
        config = networks.config
        self._state = HiftState(
            mel=np.zeros((config.mels, 0), np.float32),
            source=np.zeros(0, np.float32),
            f0=np.zeros(0, np.float64),
            noise=np.zeros((0, config.harmonics + 1), np.float32),
            phase=np.zeros(config.harmonics + 1, np.float64),
            generator=np.random.Generator(np.random.Philox(seed)),
        )

    @property
    def frames_held(self) -> int:
        """Frames between the last mel frame taken and the last one sent, in a running stream."""
        return F0_RADIUS + 1 + self._radius

    @property
    def frames_kept(self) -> int:
        """Mel frames kept for what is still to come."""
        return self._state.mel.shape[1]

    def step(self, mel: Float, final: bool) -> Float:
        """As `steps`, alone."""
        return alone(self.steps(mel, final))

    def steps(self, mel: Float, final: bool) -> Steps[Float]:
        """Take the next mel frames and return the samples that they settle.

        Args:
            mel: ``[mels, n]``, any number of frames.
            final: no frame follows.

        Returns:
            Samples ``[frame * n]``, float32 within the output limit; may be empty.
        """
        state = self._state
        state.mel = np.concatenate([state.mel, mel], axis=1)
        end = state.base + state.mel.shape[1]
        yield from self._predict_f0(end, final)
        yield from self._make_source(final)
        ready = self._source_end()
        settled = end if final else ready - self._radius
        pieces = [np.zeros(0, np.float32)]
        while state.sent < settled:
            stop = min(state.sent + WINDOW_FRAMES, settled)
            pieces.append((yield from self._decode(stop, ready, final)))
        self._forget()
        return np.concatenate(pieces)

    def _predict_f0(self, end: int, final: bool) -> Steps[None]:
        state = self._state
        known = self._source_end() + len(state.f0)
        target = end if final else end - F0_RADIUS
        if target <= known:
            return
        start = max(state.base, known - F0_RADIUS)
        window = Window({"mel": state.mel[:, start - state.base :]}, end - start, final)
        out = yield Job(self._net.predict, window)
        fresh = out["f0"][known - start : target - start]
        state.f0 = np.concatenate([state.f0, fresh])
        frame, harmonics = self._net.config.frame, self._net.config.harmonics + 1
        drawn = state.generator.standard_normal((len(fresh) * frame, harmonics), dtype=np.float32)
        state.noise = np.concatenate([state.noise, drawn * self._gain])

    def _make_source(self, final: bool) -> Steps[None]:
        # A frame's second half is interpolated towards the next frame's phase, so the newest f0 waits.
        state, frame = self._state, self._net.config.frame
        done = len(state.f0) if final else len(state.f0) - 1
        if done <= 0:
            return
        inputs: dict[str, NDArray[Any]] = {
            "f0": state.f0,
            "phase": state.phase,
            "start": np.asarray(self._source_end() == 0, np.float32),
            "noise": state.noise,
        }
        out = yield Job(self._net.excite, Window(inputs, len(state.f0), final))
        state.source = np.concatenate([state.source, out["source"][0, : done * frame]])
        state.phase = out["phases"][done - 1].astype(np.float64)
        state.f0, state.noise = state.f0[done:], state.noise[done * frame :]

    def _decode(self, stop: int, ready: int, final: bool) -> Steps[Float]:
        state, frame = self._state, self._net.config.frame
        left = max(state.base, state.sent - self._radius) - state.base
        right = min(stop + self._radius, ready) - state.base
        inputs = {
            "mel": state.mel[:, left:right],
            "source": state.source[None, left * frame : right * frame],
        }
        first = state.sent - state.base - left
        last = stop - state.base - left
        state.sent = stop
        window = Window(inputs, right - left, final and right + state.base == ready)
        out = yield Job(self._net.decode, window)
        audio: Float = out["audio"][first * frame : last * frame]
        return audio

    def _source_end(self) -> int:
        return self._state.base + len(self._state.source) // self._net.config.frame

    def _forget(self) -> None:
        state = self._state
        base = max(state.base, state.sent - self._radius)
        drop = base - state.base
        state.mel = state.mel[:, drop:]
        state.source = state.source[drop * self._net.config.frame :]
        state.base = base
