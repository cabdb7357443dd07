"""Repetition-aware sampling of speech tokens (upstream utils/common.py :: ras_sampling)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import LlmConfig
from cosyserve.errors import StageFailed

Floats = NDArray[Any]
Draw = Callable[[Floats, bool], int]
"""Index of the drawn item from unnormalised probabilities; the flag tells the fallback draw from the first one."""


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Probabilities [V] in float64; ``StageFailed`` when no finite maximum exists."""
    top = logits.max()
    if not np.isfinite(top):
        raise StageFailed("the language model returned logits that are not finite")
    p: NDArray[np.float64] = np.exp(logits.astype(np.float64) - float(top))
    p /= p.sum()
    return p


def nucleus(p: Floats, top_p: float, top_k: int) -> tuple[NDArray[np.int64], Floats]:
    """The likeliest ids, in descending order, ties by lower id.

    Ids are taken while their sum is below `top_p` (so the one that crosses it is in) and fewer than `top_k` are
    taken; at least one is.

    Args:
        p: [V] probabilities.
        top_p: mass wanted.
        top_k: most ids.

    Returns:
        ids [n] and their probabilities [n], not normalised.
    """
    k = min(top_k, len(p))
    # Everything that ties with the k-th value stays in, in id order, so that the stable sort can decide.
    floor = np.partition(p, len(p) - k)[len(p) - k]
    ids = np.flatnonzero(p >= floor)
    ids = ids[np.argsort(-p[ids], kind="stable")][:k]
    before = np.cumsum(p[ids])[:-1]
    ids = ids[: 1 + int(np.searchsorted(before, top_p, side="left"))]
    return ids, p[ids]


def draw_inverse_cdf(probs: Floats, u: float) -> int:
    """First index whose cumulative probability exceeds `u` in [0, 1). `probs` [n] need not be normalised."""
    cumulative = np.cumsum(probs, dtype=np.float64)
    total = cumulative[-1]
    # Rounding may lift u * total to the total itself: the last index with mass is the limit.
    last = np.searchsorted(cumulative, total, side="left")
    return int(min(np.searchsorted(cumulative, u * total, side="right"), last))


def draw_race(probs: Floats, q: Floats) -> int:
    """Index of the largest ``probs / q`` for exponential(1) variates `q` [n]: how torch draws on a CPU."""
    return int(np.argmax(probs / q))


def ras(
    logits: Floats, history: Sequence[int], draw: Draw, *, top_p: float, top_k: int, win_size: int, tau_r: float
) -> int:
    """One token: drawn from the nucleus, or, if the draw is too frequent in the recent history, from all the rest.

    Args:
        logits: [V] logits or log-probabilities; forbidden ids are -inf.
        history: previous tokens, oldest first.
        draw: source of randomness, called once or twice.
        top_p: mass of the nucleus.
        top_k: most ids in the nucleus.
        win_size: recent tokens looked at.
        tau_r: part of the window from which a token counts as repeated.
    """
    ids, probs = nucleus(softmax(logits), top_p, top_k)
    token = int(ids[draw(probs, False)])
    recent = history[max(0, len(history) - win_size) :]
    if recent.count(token) < win_size * tau_r:
        return token
    rest = logits.copy()
    rest[token] = -np.inf
    if rest.max() == -np.inf:  # nothing else is allowed
        return token
    return draw(softmax(rest), True)


def stop_ids(config: LlmConfig) -> tuple[int, ...]:
    """Ids that end a sequence: all that are no ordinary speech token."""
    return tuple(range(config.speech_tokens, config.speech_vocab))


class RasSampler:
    """The sampler of one utterance, with its own random stream and history.

    Each call takes exactly two uniforms from the stream, used or not, so a token depends on seed, step and logits
    only, never on how requests were batched.

    Args:
        top_p: mass of the nucleus.
        top_k: most ids in the nucleus.
        win_size: recent tokens looked at for repetition.
        tau_r: part of the window from which a token counts as repeated.
        seed: seed of the stream, any 64-bit integer.
        held: ids forbidden while a call says ``hold`` (the minimum length is not reached). The server holds every
            stop id; upstream holds the end id alone, so parity runs pass ``(end,)``.
    """

    def __init__(
        self, top_p: float, top_k: int, win_size: int, tau_r: float, *, seed: int, held: Sequence[int]
    ) -> None:
        self._rule: dict[str, Any] = {"top_p": top_p, "top_k": top_k, "win_size": win_size, "tau_r": tau_r}
        self._held = list(held)
        self._random = np.random.Generator(np.random.Philox(seed & (2**64 - 1)))
        self._history: deque[int] = deque(maxlen=win_size)

    @classmethod
    def of(cls, config: LlmConfig, seed: int) -> RasSampler:
        """A sampler with the model's own settings that holds every stop id."""
        return cls(config.top_p, config.top_k, config.win_size, config.tau_r, seed=seed, held=stop_ids(config))

    def __call__(self, logits: Floats, *, hold: bool) -> int:
        """The next token; it joins the history.

        Args:
            logits: [V], left as they are.
            hold: forbid the held ids.

        Raises:
            StageFailed: no logit is finite, or one is NaN.
        """
        token = self.draw(logits, self._history, hold=hold)
        self._history.append(token)
        return token

    def draw(self, logits: Floats, history: Sequence[int], *, hold: bool) -> int:
        """The next token after a history that the caller keeps (see `Interleaver`)."""
        if hold:
            logits = logits.copy()
            logits[self._held] = -np.inf
        uniforms = self._random.random(2)
        window = list(islice(reversed(history), self._rule["win_size"]))
        return ras(
            logits, window, lambda probs, again: draw_inverse_cdf(probs, float(uniforms[int(again)])), **self._rule
        )
