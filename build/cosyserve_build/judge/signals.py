"""Signal defects that need no transcript: clipping, silence, and discontinuities where chunks join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cosyserve_build.judge.pitch import Float, pitch

CLIPPED = 0.99
"""Share of full scale at which a sample counts as clipped: the vocoder's limit."""

SILENT = 10 ** (-50 / 20)
"""Root mean square, as a share of full scale, below which a frame of 20 ms is silent: -50 dB."""

CLICK = 1.5
"""A join clicks when its jolt is more than this many times the one that 0.1 % of the places inside chunks exceed."""

NOTICED = 1.0
"""Semitones between consecutive 30 ms that are not noticeable in running speech."""

_FRAME = 0.02  # seconds of a frame that may be silent
_AROUND = 0.01  # seconds on either side to which a jolt is compared; two periods of a low voice
_FLOOR = 8 / 32768  # share of full scale: jolts in near silence do not count as clicks
_USUAL_JOLT = 99.9  # percentile
_WINDOW, _HOP = 0.03, 0.01  # seconds of a pitch window, and between windows
_USUAL_STEP = 95  # percentile


@dataclass(frozen=True, eq=False)
class Signal:
    """Signal defects of one or several utterances.

    Attributes:
        samples: total number.
        clipped: samples whose absolute value is at least `CLIPPED`.
        frames: total number of frames of 20 ms.
        silent: frames below `SILENT`.
        jolts: of each join, as a multiple of the jolt that 0.1 % of the places inside this utterance's chunks exceed;
            see `_jolts`.
        steps: semitones between the pitches of the 30 ms before and the 30 ms after each join that is voiced on both
            sides.
        inner_steps: the same at each 10 ms inside chunks, away from joins.
    """

    samples: int
    clipped: int
    frames: int
    silent: int
    jolts: Float
    steps: Float
    inner_steps: Float

    @property
    def clicks(self) -> int:
        """Joins that click."""
        return int(np.sum(self.jolts > CLICK))

    @property
    def usual_step(self) -> float:
        """Semitones that 5 % of the steps inside chunks exceed, at least `NOTICED`."""
        return max(NOTICED, float(np.percentile(self.inner_steps, _USUAL_STEP))) if len(self.inner_steps) else NOTICED

    @property
    def breaks(self) -> int:
        """Joins with a larger pitch step than `usual_step`; up to 5 % are so by chance."""
        return int(np.sum(self.steps > self.usual_step))

    @classmethod
    def of(cls, pcm: NDArray[np.int16] | NDArray[np.floating[Any]], joins: Sequence[int], rate: int) -> Signal:
        """Measure one utterance.

        Args:
            pcm: mono [n], int16 or float in -1..1.
            joins: offset of the first sample of each chunk except the first.
            rate: Hz.
        """
        wave = pcm.astype(np.float64) / (32768 if pcm.dtype == np.int16 else 1)
        at = np.asarray([join for join in joins if 0 < join < len(wave)], dtype=np.int64)
        size = round(_FRAME * rate)
        framed = wave[: len(wave) // size * size].reshape(-1, size)
        steps, inner_steps = _steps(wave, at, rate)
        return cls(
            samples=len(wave),
            clipped=int(np.sum(np.abs(wave) >= CLIPPED)),
            frames=len(framed),
            silent=int(np.sum(np.sqrt(np.mean(framed**2, axis=1)) < SILENT)),
            jolts=_jolts(wave, at, rate),
            steps=steps,
            inner_steps=inner_steps,
        )

    @classmethod
    def all(cls, signals: Sequence[Signal]) -> Signal:
        """Combine several utterances, at least one."""
        counts = (sum(getattr(one, name) for one in signals) for name in ("samples", "clipped", "frames", "silent"))
        lists = (np.concatenate([getattr(one, name) for one in signals]) for name in ("jolts", "steps", "inner_steps"))
        return cls(*counts, *lists)


def _jolts(wave: Float, joins: NDArray[np.int64], rate: int) -> Float:
    """Compute the jolt of the wave at each join, relative to the jolts inside chunks.

    The bend between two samples is the larger of the second differences (x[i-1] - 2 x[i] + x[i+1]) at both. A jolt is
    the bend divided by the root mean square of the second differences within 10 ms on either side, so that a small
    discontinuity in a quiet sound counts as much as a larger one in a loud sound.
    """
    bend = np.diff(wave, 2, prepend=[0.0], append=[0.0])  # bend[i] is centred on sample i
    bend[:1] = bend[-1:] = 0.0
    size = np.abs(bend)
    here = np.maximum(size[:-1], size[1:])  # here[i] lies between samples i and i + 1
    power = np.concatenate([[0.0], np.cumsum(bend**2)])
    reach = round(_AROUND * rate)
    places = np.arange(len(here))
    start, stop = np.maximum(places + 1 - reach, 0), np.minimum(places + 1 + reach, len(wave))
    around = power[stop] - power[start] - size[:-1] ** 2 - size[1:] ** 2
    jolts = here / (np.sqrt(np.maximum(around, 0.0) / (stop - start)) + _FLOOR)
    inner = jolts[_away(places + 1, joins, reach)]
    if not len(inner):
        return np.zeros(len(joins))
    found: Float = jolts[joins - 1] / max(float(np.percentile(inner, _USUAL_JOLT)), 1.0)
    return found


def _steps(wave: Float, joins: NDArray[np.int64], rate: int) -> tuple[Float, Float]:
    """Compute semitones across each join, and at each 10 ms away from joins, where both sides are voiced."""
    window, hop = round(_WINDOW * rate), round(_HOP * rate)
    places = np.arange(window, len(wave) - window + 1, hop)
    inner = places[_away(places, joins, window)]
    inside = joins[(joins >= window) & (joins <= len(wave) - window)]
    return _semitones(wave, inside, window, rate), _semitones(wave, inner, window, rate)


def _semitones(wave: Float, places: NDArray[np.int64], window: int, rate: int) -> Float:
    if not len(places):
        return np.zeros(0)
    windows = sliding_window_view(wave, window)
    before, after = (_pitch(windows[starts], rate) for starts in (places - window, places))
    voiced = (before > 0) & (after > 0)
    steps: Float = np.abs(12 * np.log2(after[voiced] / before[voiced]))
    return steps


def _pitch(windows: Float, rate: int) -> Float:
    """Compute Hz of each window, 0 where it is unvoiced or silent."""
    return np.where(np.sqrt(np.mean(windows**2, axis=1)) < SILENT, 0.0, pitch(windows, rate))


def _away(places: NDArray[np.int64], joins: NDArray[np.int64], reach: int) -> NDArray[np.bool_]:
    """Mark the places that are further than `reach` samples from every join."""
    if not len(joins):
        return np.ones(len(places), dtype=np.bool_)
    right = np.searchsorted(joins, places)
    before, after = joins[np.maximum(right - 1, 0)], joins[np.minimum(right, len(joins) - 1)]
    nearest: NDArray[np.int64] = np.minimum(np.abs(places - before), np.abs(places - after))
    return nearest > reach
