"""Figures of levels with given results, and loads with a fake speaker instead of a server."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest

from cosyserve_client.bench import report
from cosyserve_client.bench.generator import Budget, Closed, Open
from cosyserve_client.bench.playback import Playback
from cosyserve_client.bench.results import INAUDIBLE, OK, REFUSED, LoadResult, Percentiles, Result

RATE = 1000


def utterance(*arrivals: float, outcome: str = OK, late: float = 0.0) -> Result:
    """Chunks of 0.1 s of audio."""
    playback = Playback(RATE)
    for arrival in arrivals:
        playback.add(np.full(100, 1000, np.int16), arrival)
    return Result(0.0, late, arrivals[-1] if arrivals else 0.01, outcome, playback)


def level(*utterances: Result, seconds: float = 2.0, cpu_seconds: float = 0.1) -> LoadResult:
    return LoadResult(("concurrency", 4), seconds, cpu_seconds, list(utterances))


def test_percentiles_interpolate() -> None:
    assert Percentiles.of(range(101)) == Percentiles(50, 95, 99)
    assert Percentiles.of([1, 2]) == Percentiles(pytest.approx(1.5), pytest.approx(1.95), pytest.approx(1.99))
    assert Percentiles.of([]) is None


def test_figures_of_a_level() -> None:
    gapless, broken = utterance(0.2, 0.3), utterance(0.4, 0.75, 0.8)
    figures = level(gapless, broken, utterance(outcome=REFUSED), late := utterance(0.3, late=0.02)).figures()
    assert (figures.utterances, figures.succeeded, figures.refused, figures.errors) == (4, 3, 1, {})
    assert figures.first_audio_ms is not None
    assert figures.first_audio_ms.p50 == pytest.approx(300)
    assert figures.first_audible_ms == figures.first_audio_ms
    assert figures.worst_gap_ms is not None
    assert figures.worst_gap_ms.p99 == pytest.approx(250, rel=0.03)
    assert figures.gapless == pytest.approx(2 / 3)
    assert figures.real_time_factor is not None
    assert figures.real_time_factor.p50 == pytest.approx(0.8 / 0.3)
    assert figures.audio_seconds_per_second == pytest.approx(0.6 / 2)
    assert figures.utterances_per_second == pytest.approx(3 / 2)
    assert figures.client_cpu == pytest.approx(0.05)
    assert figures.sent_late_ms == pytest.approx(1000 * late.late)


def test_what_failed_is_counted_by_cause_and_is_in_no_percentile() -> None:
    failed = utterance(9.0, outcome="INTERNAL"), utterance(9.0, outcome="INTERNAL"), utterance(outcome=INAUDIBLE)
    figures = level(utterance(0.2), *failed).figures()
    assert figures.errors == {"INTERNAL": 2, INAUDIBLE: 1}
    assert figures.first_audio_ms == Percentiles(200, 200, 200)
    assert figures.audio_seconds_per_second == pytest.approx(0.05)


def test_one_error_makes_a_level_a_failure() -> None:
    problem = level(utterance(0.2), utterance(outcome="INTERNAL")).problem()
    assert problem == "concurrency 4: 1 of 2 utterances failed: 1 INTERNAL"


def test_refusals_are_no_failure_unless_there_is_nothing_else() -> None:
    refused = utterance(outcome=REFUSED)
    assert level(utterance(0.2), refused).problem() is None
    assert level(refused, refused).problem() == "concurrency 4: none of 2 utterances succeeded, 2 refused"


def test_a_busy_client_is_reported() -> None:
    calm, busy = level(utterance(0.2)), level(utterance(0.2), cpu_seconds=1.9)
    assert report.warnings([calm]) == []
    (warning,) = report.warnings([busy])
    assert "95%" in warning


class Clock:
    """Stands in for a `Speaker`: each utterance takes `seconds` of the event loop's time."""

    def __init__(self, seconds: float, outcome: str = OK) -> None:
        self.seconds, self.outcome = seconds, outcome
        self.active = self.most = 0
        self.numbers: list[int] = []
        self.began = asyncio.get_running_loop().time()

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self.began

    async def speak(self, number: int, due: float) -> Result:
        late = self.now() - due
        self.numbers.append(number)
        self.active += 1
        self.most = max(self.most, self.active)
        await asyncio.sleep(self.seconds)
        self.active -= 1
        return Result(due, late, self.now() - due, self.outcome, Playback(RATE))


async def test_a_closed_loop_keeps_its_number_of_clients_busy() -> None:
    clock = Clock(0.01)
    done = await Closed(3).run(clock, Budget(10))
    assert clock.most == 3
    assert sorted(clock.numbers) == list(range(10))
    assert len(done) == 10


async def test_a_duration_bounds_the_starts() -> None:
    done = await Closed(2).run(Clock(0.02), Budget(None, 0.1))
    assert len(done) >= 4
    assert all(utterance.due < 0.1 for utterance in done)


async def test_an_open_loop_does_not_wait_for_the_server() -> None:
    clock = Clock(0.3)
    done = await Open(rate=200, seed=1).run(clock, Budget(10))
    assert clock.most == 10
    assert [utterance.due for utterance in done] == list(itertools.islice(Open(200, 1).schedule(), 10))


def test_the_schedule_is_poisson_and_repeats_with_its_seed() -> None:
    times = list(itertools.islice(Open(rate=4, seed=7).schedule(), 4001))
    gaps = np.diff(times)
    assert times[0] == 0
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 4, rel=0.05)  # of an exponential: its mean
    assert times == list(itertools.islice(Open(rate=4, seed=7).schedule(), 4001))
    assert times[1] != next(itertools.islice(Open(rate=4, seed=8).schedule(), 1, None))
