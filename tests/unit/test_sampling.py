"""Repetition-aware sampling."""

from __future__ import annotations

import numpy as np
import pytest

from cosyserve.config import LlmConfig
from cosyserve.errors import StageFailed
from cosyserve.llm.sampling import RasSampler, draw_inverse_cdf, draw_race, nucleus, ras, stop_ids

RULE = {"top_p": 0.8, "top_k": 25, "win_size": 10, "tau_r": 0.1}
CONFIG = LlmConfig(48, 128, 2, 3, 1, 16, 1e6, 1e-6, 440, 6561, (5, 15), 0.8, 25, 10, 0.1)


def naive_nucleus(p: np.ndarray, top_p: float, top_k: int) -> list[int]:
    taken: list[int] = []
    mass = 0.0
    for i in np.argsort(-p, kind="stable"):
        if mass < top_p and len(taken) < top_k:
            taken.append(int(i))
            mass += p[i]
    return taken


@pytest.mark.parametrize("seed", range(20))
def test_nucleus_is_the_sorted_walk(seed: int) -> None:
    random = np.random.default_rng(seed)
    # Few distinct values: most candidates tie, also across the top_k border.
    p = random.integers(1, 4 if seed % 2 else 1000, size=200).astype(np.float64) ** 3
    p /= p.sum()
    for top_p in (0.05, 0.3, 0.8, 1.1):
        ids, probs = nucleus(p, top_p, 25)
        assert ids.tolist() == naive_nucleus(p, top_p, 25)
        np.testing.assert_array_equal(probs, p[ids])


def test_nucleus_stops_when_the_mass_is_exactly_reached() -> None:
    assert nucleus(np.array([0.25, 0.5, 0.25]), 0.5, 25)[0].tolist() == [1]
    assert nucleus(np.array([0.25, 0.5, 0.25]), 0.75, 25)[0].tolist() == [1, 0]


def test_nucleus_takes_at_least_one_and_at_most_all() -> None:
    assert nucleus(np.array([0.1, 0.9]), 0.0, 25)[0].tolist() == [1]
    assert nucleus(np.array([0.1, 0.9]), 2.0, 25)[0].tolist() == [1, 0]


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


@pytest.mark.parametrize(("distance", "repeated"), [(1, True), (10, True), (11, False)])
def test_a_token_of_the_last_ten_falls_back_to_the_rest(distance: int, repeated: bool) -> None:
    history = [100 + i for i in range(20)]
    history[-distance] = 7
    token = ras(logits_of({7: 9.0, 3: 1.0}), history, lambda p, again: int(np.argmax(p)), **RULE)
    assert token == (3 if repeated else 7)


def test_fallback_without_another_choice_keeps_the_token() -> None:
    only = np.full(10, -np.inf, np.float32)
    only[4] = 0.0
    assert ras(only, [4], lambda p, again: int(np.argmax(p)), **RULE) == 4


def test_stop_ids_are_held_until_released() -> None:
    logits = logits_of({6561: 30.0, 6562: 29.0, 6563: 28.0, 5: 10.0})
    assert stop_ids(CONFIG) == (6561, 6562, 6563)
    assert RasSampler.of(CONFIG, seed=1)(logits, hold=True) == 5
    assert RasSampler.of(CONFIG, seed=1)(logits, hold=False) == 6561
    as_upstream = RasSampler(0.8, 25, 10, 0.1, seed=1, held=(6561,))
    assert as_upstream(logits, hold=True) in (6562, 6563)
    assert logits[6561] == 30.0


def test_same_seed_same_tokens_and_draws_do_not_shift_the_stream() -> None:
    random = np.random.default_rng(0)
    steps = [random.normal(size=6564).astype(np.float32) * 3 for _ in range(30)]
    one, two, other = (RasSampler.of(CONFIG, seed=s) for s in (-5, -5, 6))
    first = [one(step, hold=True) for step in steps]
    assert first == [two(step, hold=True) for step in steps]
    assert first != [other(step, hold=True) for step in steps]
    # A fallback in step 0 consumes no more randomness than none: step 1 is the same.
    plain, forced = RasSampler.of(CONFIG, seed=3), RasSampler.of(CONFIG, seed=3)
    plain.draw(logits_of({7: 30.0}), [], hold=False)
    forced.draw(logits_of({7: 30.0}), [7], hold=False)
    assert plain.draw(steps[0], [], hold=False) == forced.draw(steps[0], [], hold=False)


def test_history_is_kept_between_calls() -> None:
    sampler = RasSampler.of(CONFIG, seed=0)
    logits = logits_of({7: 30.0})
    assert sampler(logits, hold=False) == 7
    assert sampler(logits, hold=False) != 7


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = RasSampler(1.1, 25, 10, 0.1, seed=9, held=())
    drawn = [sampler.draw(logits, [], hold=False) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.5, 0.3, 0.2], atol=0.03)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_fail(bad: float) -> None:
    with pytest.raises(StageFailed, match="not finite"):
        RasSampler.of(CONFIG, seed=0)(logits_of({3: bad}), hold=False)
