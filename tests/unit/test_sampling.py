"""The likeliest ids of many rows, and repetition-aware sampling from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cosyserve.config import LlmConfig
from cosyserve.errors import StageFailed
from cosyserve.llm.sampling import Floats, RasSampler, draw_inverse_cdf, draw_race, nucleus, ras
from cosyserve.llm.scores import LogitScores, softmax, top

CONFIG = LlmConfig(48, 128, 2, 3, 1, 16, 1e6, 1e-6, 440, 6561, (5, 15), 0.8, 25, 10, 0.1)
NOT_HELD = np.zeros(1, np.bool_)


def sorted_walk(logits: np.ndarray, top_p: float, top_k: int) -> list[int]:
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    taken: list[int] = []
    mass = 0.0
    for i in np.argsort(-p, kind="stable"):
        if mass < top_p and len(taken) < top_k:
            taken.append(int(i))
            mass += p[i]
    return taken


def tied(seed: int, rows: int, size: int) -> np.ndarray:
    """Logits with few distinct values in odd seeds: most candidates tie, also across the top_k border."""
    random = np.random.default_rng(seed)
    return np.log(random.integers(1, 4 if seed % 2 else 1000, size=(rows, size))).astype(np.float32) * 3


@pytest.mark.parametrize("size", [3, 25, 26, 200, 6564])
@pytest.mark.parametrize("seed", range(4))
def test_top_is_a_stable_sort(seed: int, size: int) -> None:
    logits = tied(seed, 5, size)
    logits[1, size // 2 :] = -np.inf
    ids, probs = top(logits, 25)
    for row in range(5):
        wanted = np.argsort(-logits[row], kind="stable")[:25]
        assert ids[row].tolist() == wanted.tolist()
        np.testing.assert_allclose(probs[row], softmax(logits[row])[wanted], rtol=1e-15)


def test_top_of_a_row_does_not_depend_on_the_others() -> None:
    logits = tied(0, 33, 6564)
    together = top(logits, 25)
    for row in range(33):
        for found, wanted in zip(top(logits[row : row + 1], 25), together, strict=True):
            np.testing.assert_array_equal(found[0], wanted[row])


def test_ids_that_end_a_sequence_are_forbidden_in_held_rows_only() -> None:
    logits = np.stack([logits_of({6561: 30.0, 6562: 29.0, 6563: 28.0, 5: 10.0})] * 2)
    scores = LogitScores(logits, CONFIG.end)
    ids, probs = scores.top(2, np.array([True, False]))
    assert ids.tolist() == [[5, 0], [6561, 6562]]
    np.testing.assert_allclose(probs[:, 0], [1, 1 / (1 + np.exp(-1) + np.exp(-2))])
    assert scores.row(0)[6561] == 30.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_leave_the_others_alone(bad: float) -> None:
    logits = tied(0, 3, 6564)
    wanted = top(logits, 25)
    logits[1, [7, 6563]] = bad
    ids, probs = top(logits, 25)
    assert np.isnan(probs[1]).all()
    np.testing.assert_array_equal(ids[[0, 2]], wanted[0][[0, 2]])
    np.testing.assert_array_equal(probs[[0, 2]], wanted[1][[0, 2]])


@pytest.mark.parametrize("seed", range(20))
def test_nucleus_is_the_sorted_walk(seed: int) -> None:
    logits = tied(seed, 1, 200)
    for top_p in (0.05, 0.3, 0.8, 1.1):
        (ids,), (probs,) = top(logits, 25)
        assert ids[: nucleus(probs, top_p)].tolist() == sorted_walk(logits[0], top_p, 25)


def test_nucleus_stops_when_the_mass_is_exactly_reached() -> None:
    assert nucleus(np.array([0.5, 0.25, 0.25]), 0.5) == 1
    assert nucleus(np.array([0.5, 0.25, 0.25]), 0.75) == 2


def test_nucleus_takes_at_least_one_and_at_most_all() -> None:
    assert nucleus(np.array([0.9, 0.1]), 0.0) == 1
    assert nucleus(np.array([0.9, 0.1]), 2.0) == 2


def test_inverse_cdf_takes_the_first_index_above_u() -> None:
    probs = np.array([0.0, 0.25, 0.0, 0.25, 0.0])
    assert [draw_inverse_cdf(probs, u) for u in (0.0, 0.49, 0.5, 0.99, np.nextafter(1, 0))] == [1, 1, 3, 3, 3]


def test_race_takes_the_largest_ratio() -> None:
    assert draw_race(np.array([0.5, 0.5, 0.1]), np.array([1.0, 0.5, 0.01])) == 2


def logits_of(peaks: dict[int, float]) -> np.ndarray:
    logits = np.full(6564, -20.0, np.float32)
    for token, value in peaks.items():
        logits[token] = value
    return logits


def likeliest(probs: Floats, again: bool) -> int:
    return int(np.argmax(probs))


def drawn(sampler: RasSampler, logits: np.ndarray, *, hold: bool = False) -> int:
    """The sampler's next token from these logits alone."""
    scores = LogitScores(logits[None], CONFIG.end)
    (ids,), (probs,) = scores.top(CONFIG.top_k, np.array([hold]))
    return sampler(ids, probs, lambda: scores.row(0), suppress_end=hold)


@pytest.mark.parametrize(("distance", "repeated"), [(1, True), (10, True), (11, False)])
def test_a_token_of_the_last_ten_falls_back_to_the_rest(distance: int, repeated: bool) -> None:
    logits = logits_of({7: 9.0, 3: 1.0})
    recent = [100 + i for i in range(20)]
    recent[-distance] = 7
    (ids,), (probs,) = top(logits[None], 25)
    token = ras(ids, probs, lambda: logits, recent[-10:], likeliest, CONFIG)
    assert token == (3 if repeated else 7)


def test_fallback_without_another_choice_keeps_the_token() -> None:
    only = np.full(10, -np.inf, np.float32)
    only[4] = 0.0
    (ids,), (probs,) = top(only[None], 25)
    assert ras(ids, probs, lambda: only, [4], likeliest, CONFIG) == 4


def test_the_fallback_holds_back_what_ends_a_sequence() -> None:
    logits = logits_of({7: 90.0, 6561: 60.0, 5: 30.0})
    for hold, rest in ((True, 5), (False, 6561)):
        sampler = RasSampler(CONFIG, seed=1)
        assert [drawn(sampler, logits, hold=hold) for _ in range(2)] == [7, rest]
    assert logits[6561] == 60.0


def test_same_seed_same_tokens_and_draws_do_not_shift_the_stream() -> None:
    random = np.random.default_rng(0)
    steps = [random.normal(size=6564).astype(np.float32) * 3 for _ in range(30)]
    one, two, other = (RasSampler(CONFIG, seed) for seed in (-5, -5, 6))
    first = [drawn(one, step) for step in steps]
    assert first == [drawn(two, step) for step in steps]
    assert first != [drawn(other, step) for step in steps]
    # A fallback in step 1 consumes no more randomness than none: step 2 is the same.
    plain, forced = RasSampler(CONFIG, 3), RasSampler(CONFIG, 3)
    before = [drawn(plain, logits_of({token: 90.0})) for token in (7, 8)]
    again = [drawn(forced, logits_of({token: 90.0})) for token in (7, 7)]
    assert (before, again[0]) == ([7, 8], 7)
    assert again[1] != 7
    assert drawn(plain, steps[0]) == drawn(forced, steps[0])


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = RasSampler(replace(CONFIG, top_p=1.1, tau_r=2.0), seed=9)
    found = [drawn(sampler, logits) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(found) / 4000, [0.5, 0.3, 0.2], atol=0.03)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_fail(bad: float) -> None:
    with pytest.raises(StageFailed, match="not finite"):
        drawn(RasSampler(CONFIG, seed=0), logits_of({3: bad}))
