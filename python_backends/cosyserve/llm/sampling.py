"""Repetition-aware sampling of speech tokens (upstream utils/common.py :: ras_sampling)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import AnyLlm
from cosyserve.errors import StageFailed
from cosyserve.llm.scores import softmax

Floats = NDArray[Any]
Draw = Callable[[Floats, bool], int]
"""Index of the drawn item from unnormalised probabilities; the flag tells the fallback draw from the first one."""


def nucleus(probs: Floats, top_p: float) -> int:
    """How many of the likeliest items are kept: taken while their sum is below `top_p`, and at least one.

    Args:
        probs: [k] in descending order; no more than these are taken.
        top_p: mass wanted; the item that crosses it is in.
    """
    return 1 + int(probs.cumsum()[:-1].searchsorted(top_p, side="left"))


def draw_inverse_cdf(probs: Floats, u: float) -> int:
    """First index whose cumulative probability exceeds `u` in [0, 1). `probs` [n] need not be normalised."""
    cumulative = probs.cumsum(dtype=np.float64)
    total = cumulative[-1]
    # Rounding may lift u * total to the total itself: the last index with mass is the limit.
    last = cumulative.searchsorted(total, side="left")
    return int(min(cumulative.searchsorted(u * total, side="right"), last))


def draw_race(probs: Floats, q: Floats) -> int:
    """Index of the largest ``probs / q`` for exponential(1) variates `q` [n]: how torch draws on a CPU."""
    return int(np.argmax(probs / q))


def ras(
    ids: NDArray[np.int64],
    probs: Floats,
    logits: Callable[[], Floats],
    recent: Sequence[int],
    draw: Draw,
    config: AnyLlm,
) -> int:
    """One token: drawn from the nucleus, or, if the draw is too frequent in the recent history, from all the rest.

    Args:
        ids: [k] the likeliest ids, descending.
        probs: [k] their probabilities.
        logits: gives all logits [V], forbidden ids as -inf; asked for the fallback alone, which is rare.
        recent: the last tokens, at most `config.win_size` of them.
        draw: source of randomness, called once or twice.
        config: the rule: `top_p` is the mass of the nucleus, a token that makes up `tau_r` of the window is repeated.
    """
    token = int(ids[draw(probs[: nucleus(probs, config.top_p)], False)])
    if recent.count(token) < config.win_size * config.tau_r:
        return token
    rest = logits().copy()
    rest[token] = -np.inf
    if rest.max() == -np.inf:  # nothing else is allowed
        return token
    return draw(softmax(rest), True)


class RasSampler:
    """The sampler of one utterance, with its own random stream and history.

    Each call takes exactly two uniforms from the stream, used or not, so a token depends on seed, step and scores
    only, never on how requests were batched.

    Args:
        config: its `top_p`, `win_size` and `tau_r` are the rule; ids from `end` on end a sequence.
        seed: seed of the stream, any 64-bit integer.
    """

    def __init__(self, config: AnyLlm, seed: int) -> None:
        self._config = config
        self._random = np.random.Generator(np.random.Philox(seed & (2**64 - 1)))
        self._recent: deque[int] = deque(maxlen=config.win_size)

    def __call__(
        self, ids: NDArray[np.int64], probs: Floats, logits: Callable[[], Floats], *, suppress_end: bool
    ) -> int:
        """The next token; it joins the history.

        Args:
            ids: [k] the likeliest ids, descending.
            probs: [k] their probabilities.
            logits: gives all logits [V], which are left as they are.
            hold: ids that end the sequence are forbidden, as they are among `ids`.

        Raises:
            StageFailed: no score is finite.
        """
        if not np.isfinite(probs[0]):
            raise StageFailed("the language model returned logits that are not finite")

        def allowed() -> Floats:
            row = logits().copy()
            if suppress_end:
                row[self._config.end :] = -np.inf
            return row

        uniforms = self._random.random(2)
        token = ras(
            ids,
            probs,
            allowed,
            self._recent,
            lambda items, again: draw_inverse_cdf(items, float(uniforms[int(again)])),
            self._config,
        )
        self.note(token)
        return token

    def note(self, token: int) -> None:
        """Let a token that was not drawn join the history."""
        self._recent.append(token)
