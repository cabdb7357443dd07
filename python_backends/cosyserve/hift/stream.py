"""Mel frames to samples, incrementally and exactly: no cross-fade.

The vocoder looks ahead, so a sample is final once every mel frame in its receptive field is known. The stream keeps
that much context on both sides, the phase of the harmonics and the noise of the source, and sends each sample once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import HiftConfig
from cosyserve.hift.noise import GaussianNoise, Noise, first_phases
from cosyserve.hift.windows import Window, Windowed
from cosyserve.runtimes.graph import Graph
from cosyserve.scheduler import Computation, Job, run_alone

Float = NDArray[np.float32]

WINDOW_FRAMES = 256
"""Most new frames in one decoder call: bounds memory for long chunks."""


def decoder_reach(config: HiftConfig) -> tuple[int, int]:
    """Mel frames before and after a sample that can influence it through the decoder, mel or source path.

    The sum of the widths to that side of every layer between input and output, in frames, rounded up.
    """
    back, ahead = config.first_padding
    if config.causal:
        # Behind the first convolution only the STFT, its inverse and the strided convolutions look ahead, all of them
        # together less than one frame.
        return _reach(config, sides=2, first=back), ahead + 1
    radius = _reach(config, sides=1, first=back)
    return radius, radius


def _reach(config: HiftConfig, sides: int, first: int) -> int:
    """Reach back, where a convolution looks `sides` times its half-width back, and the first one `first` frames."""
    tops = math.prod(config.up_rates)
    spectrum = config.n_fft / 2 / config.hop  # STFT frames to each side of a sample
    after = (3 * sides + spectrum + 1) / tops  # last convolution, inverse STFT, reflection pad
    source_path = 0.0
    for stage in reversed(range(len(config.up_rates))):
        rate = math.prod(config.up_rates[: stage + 1])
        after += sides * max(map(_block_radius, config.res_kernels, config.res_dilations)) / rate
        down = 1 / rate + spectrum / tops  # strided convolution and STFT
        source = sides * _block_radius(config.source_kernels[stage], config.source_dilations[stage]) / rate + down
        source_path = max(source_path, after + source)
        after += config.up_kernels[stage] / rate
    return math.ceil(max(after + first, source_path)) + 1


def _block_radius(kernel: int, dilations: tuple[int, ...]) -> int:
    return sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)


@dataclass(frozen=True)
class HiftNetworks:
    """Graphs ``hift_f0``, ``hift_source`` and ``hift_decoder``, shared by all streams; `lengths`: see `Windowed`.

    `noise` makes that of a segment's source from its seed.
    """

    config: HiftConfig
    f0: Graph
    source: Graph
    decoder: Graph
    lengths: tuple[int, ...] = ()
    noise: Callable[[int], Noise] = GaussianNoise

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
    drawn: Float  # [n * frame, harmonics], noise for `f0`
    phase: NDArray[np.float64]  # [harmonics], cycles at the last frame of `source`
    noise: Noise
    base: int = 0  # frame index of the oldest context kept
    sent: int = 0  # frames sent


class HiftStream:
    """One utterance's vocoder.

    Args:
        networks: graphs, shared by all streams.
        seed: seed of the source noise, where it is not the same for all.
        noise_gain: 0 leaves the source noise and random phases out, as the recorded reference runs do.
    """

    def __init__(self, networks: HiftNetworks, seed: int, noise_gain: float = 1.0) -> None:
        self._net = networks
        self._gain = np.float32(noise_gain)
        self._left, self._right = decoder_reach(networks.config)
        config = networks.config
        self._state = HiftState(
            mel=np.zeros((config.mels, 0), np.float32),
            source=np.zeros(0, np.float32),
            f0=np.zeros(0, np.float64),
            drawn=np.zeros((0, config.harmonics + 1), np.float32),
            phase=first_phases(config, seed) * noise_gain,
            noise=networks.noise(seed),
        )

    @property
    def frames_held(self) -> int:
        """Frames between the last mel frame taken and the last one sent, in a running stream."""
        config = self._net.config
        return config.f0_reach[1] + config.phase_ahead + self._right

    @property
    def frames_kept(self) -> int:
        """Mel frames kept for what is still to come."""
        frames: int = self._state.mel.shape[1]
        return frames

    def step(self, mel: Float, final: bool) -> Float:
        """Run one step; see `begin_step`."""
        return run_alone(self.begin_step(mel, final))

    def begin_step(self, mel: Float, final: bool) -> Computation[Float]:
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
        settled = end if final else ready - self._right
        pieces = [np.zeros(0, np.float32)]
        while state.sent < settled:
            stop = min(state.sent + WINDOW_FRAMES, settled)
            pieces.append((yield from self._decode(stop, ready, final)))
        self._trim()
        return np.concatenate(pieces)

    def _predict_f0(self, end: int, final: bool) -> Computation[None]:
        state = self._state
        known = self._source_end() + len(state.f0)
        left, right = self._net.config.f0_reach
        target = end if final else end - right
        if target <= known:
            return
        start = self._start(max(state.base, known - left), end, final)
        window = Window({"mel": state.mel[:, start - state.base :]}, end - start, final)
        out = yield Job(self._net.predict, window)
        fresh = out["f0"][known - start : target - start]
        state.f0 = np.concatenate([state.f0, fresh])
        frame, harmonics = self._net.config.frame, self._net.config.harmonics + 1
        state.drawn = np.concatenate([state.drawn, state.noise(len(fresh) * frame, harmonics) * self._gain])

    def _make_source(self, final: bool) -> Computation[None]:
        # Where a frame's second half is interpolated towards the next frame's phase, the newest f0 waits.
        state, frame = self._state, self._net.config.frame
        done = len(state.f0) if final else len(state.f0) - self._net.config.phase_ahead
        if done <= 0:
            return
        inputs: dict[str, NDArray[Any]] = {
            "f0": state.f0,
            "phase": state.phase,
            "start": np.asarray(self._source_end() == 0, np.float32),
            "noise": state.drawn,
        }
        # What the source is given behind its end, frames without pitch, holds the last phase, as the end does.
        out = yield Job(self._net.excite, Window(inputs, len(state.f0), end=False))
        state.source = np.concatenate([state.source, out["source"][0, : done * frame]])
        state.phase = out["phases"][done - 1].astype(np.float64)
        state.f0, state.drawn = state.f0[done:], state.drawn[done * frame :]

    def _decode(self, stop: int, ready: int, final: bool) -> Computation[Float]:
        state, frame = self._state, self._net.config.frame
        right = min(stop + self._right, ready) - state.base
        ends = final and right + state.base == ready
        left = self._start(max(state.base, state.sent - self._left), right + state.base, ends) - state.base
        inputs = {
            "mel": state.mel[:, left:right],
            "source": state.source[None, left * frame : right * frame],
        }
        first = state.sent - state.base - left
        last = stop - state.base - left
        state.sent = stop
        window = Window(inputs, right - left, ends)
        out = yield Job(self._net.decode, window)
        audio: Float = out["audio"][first * frame : last * frame]
        return audio

    def _start(self, start: int, stop: int, ends: bool) -> int:
        """Where a window that needs frames `start` to `stop` begins.

        Nothing may be added behind the end of an utterance, so the last windows are made as long as prepared ones with
        frames before them, where there are enough.
        """
        length = next((length for length in self._net.lengths if length >= stop - start), None)
        if not ends or length is None or stop - length < self._state.base:
            return start
        return stop - length

    def _source_end(self) -> int:
        return self._state.base + len(self._state.source) // self._net.config.frame

    def _trim(self) -> None:
        state = self._state
        base = max(state.base, state.sent - max(self._left, *self._net.lengths, 0))
        drop = base - state.base
        state.mel = state.mel[:, drop:]
        state.source = state.source[drop * self._net.config.frame :]
        state.base = base
