"""The Euler solver of conditional flow matching (upstream flow/flow_matching.py :: ConditionalCFM.solve_euler)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


def time_grid(steps: int) -> list[tuple[np.float32, np.float32]]:
    """``(t, dt)`` of each step on the cosine grid ``1 - cos(pi/2 * k/steps)``, float32.

    ``t`` is the running sum of the ``dt``, not the grid value, as upstream accumulates it.
    """
    grid = (1 - np.cos(np.linspace(0, 1, steps + 1, dtype=np.float32) * np.float32(0.5 * np.pi))).astype(np.float32)
    pairs = []
    t = grid[0]
    dt = grid[1] - grid[0]
    for step in range(1, steps + 1):
        pairs.append((t, dt))
        t = t + dt
        if step < steps:
            dt = grid[step + 1] - t
    return pairs


def solve(velocity: Callable[[int, Float, np.float32], Float], noise: Float, steps: int) -> Float:
    """Integrate from noise to mel.

    Args:
        velocity: guided velocity ``[B, mels, frames]`` at (step index, state, t).
        noise: starting state ``[B, mels, frames]``.
        steps: Euler steps.

    Returns:
        Mel ``[B, mels, frames]``, float32.
    """
    x = noise
    for step, (t, dt) in enumerate(time_grid(steps)):
        x = x + dt * velocity(step, x, t)
    return x
