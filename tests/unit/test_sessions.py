"""State of sequences: opened at the start, closed once at the end, on failure and when the sender is gone."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from fakes import turn

from cosyserve.contracts import Tensors
from cosyserve.errors import Cancelled, InvalidInput, StageFailed
from cosyserve.jobs import Job, Steps
from cosyserve.sessions import Sessions, Step


class Echo:
    """A network that returns what it gets, and keeps its calls; 13 breaks it."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def joins(self, batch: Sequence[int], job: int) -> bool:
        return True

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.calls.append(list(batch))
        if 13 in batch:
            raise StageFailed("an unlucky number")
        return list(batch)


class Adding:
    """A session that returns the sum of its inputs so far, after one call for each."""

    def __init__(self, network: Echo) -> None:
        self._network = network
        self._sum = 0
        self.closed = 0

    def steps(self, inputs: Tensors) -> Steps[Tensors]:
        value = int(inputs["value"][0])
        if value < 0:
            raise InvalidInput("value", "must not be negative")
        self._sum += yield Job(self._network, value)
        return {"sum": np.array([self._sum])}

    def close(self) -> None:
        self.closed += 1


class Opener:
    def __init__(self) -> None:
        self.network = Echo()
        self.opened: list[Adding] = []

    def open(self, inputs: Tensors) -> Adding:
        if int(inputs["value"][0]) > 1000:
            raise InvalidInput("value", "is too large to open")
        self.opened.append(Adding(self.network))
        return self.opened[-1]

    def nothing(self, inputs: Tensors) -> Tensors:
        return {"sum": np.zeros(1, np.int64)}


class Answers:
    """What each step was answered, in order."""

    def __init__(self) -> None:
        self.sums: list[int] = []
        self.errors: list[Exception] = []

    def done(self, outputs: Tensors) -> None:
        self.sums.append(int(outputs["sum"][0]))

    @property
    def count(self) -> int:
        return len(self.sums) + len(self.errors)


@pytest.fixture
def opener() -> Opener:
    return Opener()


@pytest.fixture
def sessions(opener: Opener) -> Sessions:
    return Sessions(opener, idle_seconds=60, batch=8)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def submit(
    sessions: Sessions, sequence: int, value: int, *, start: bool = False, end: bool = False, urgency: int = 0
) -> Answers:
    answers = Answers()
    inputs: Tensors = {"value": np.array([value])}
    sessions.submit(Step(sequence, inputs, start, end, urgency, answers.done, answers.errors.append))
    return answers


def finish(sessions: Sessions) -> None:
    while turn(sessions):
        pass


def step(sessions: Sessions, sequence: int, value: int, *, start: bool = False, end: bool = False) -> int:
    """A step carried out: its sum, or the error it was answered with."""
    answers = submit(sessions, sequence, value, start=start, end=end)
    finish(sessions)
    assert answers.count == 1
    for error in answers.errors:
        raise error
    return answers.sums[0]


def closings(opener: Opener) -> list[int]:
    return [session.closed for session in opener.opened]


def test_sequences_keep_their_own_state_until_they_end(sessions: Sessions, opener: Opener) -> None:
    assert step(sessions, 7, 1, start=True) == 1
    assert step(sessions, 8, 10, start=True) == 10
    assert step(sessions, 7, 2) == 3
    assert len(sessions) == 2
    assert closings(opener) == [0, 0]
    assert step(sessions, 7, 3, end=True) == 6
    assert step(sessions, 8, 10) == 20
    assert len(sessions) == 1
    assert closings(opener) == [1, 0]


def test_one_step_may_start_and_end(sessions: Sessions, opener: Opener) -> None:
    assert step(sessions, 7, 5, start=True, end=True) == 5
    assert len(sessions) == 0
    assert closings(opener) == [1]


def test_a_step_is_answered_when_its_calls_are_done(sessions: Sessions) -> None:
    answers = submit(sessions, 7, 5, start=True)
    assert answers.count == 0
    turn(sessions)
    assert answers.sums == [5]
    assert sessions.call() is None


def test_sequences_share_calls_and_the_most_urgent_go_first(opener: Opener) -> None:
    sessions = Sessions(opener, idle_seconds=60, batch=2)
    answers = [submit(sessions, s, 10 * s, start=True, urgency=-s) for s in range(1, 4)]
    turn(sessions)
    assert [a.sums for a in answers] == [[], [20], [30]]
    turn(sessions)
    assert [a.sums for a in answers] == [[10], [20], [30]]
    assert opener.network.calls == [[30, 20], [10]]


def test_a_step_of_no_live_sequence_fails(sessions: Sessions, opener: Opener) -> None:
    with pytest.raises(StageFailed, match="no such sequence"):
        step(sessions, 7, 1)
    step(sessions, 7, 1, start=True, end=True)
    with pytest.raises(StageFailed, match="no such sequence"):
        step(sessions, 7, 1)
    assert len(opener.opened) == 1


def test_ending_a_sequence_that_is_gone_does_nothing(sessions: Sessions, opener: Opener) -> None:
    """In an ensemble the models behind this one must still see the end."""
    assert step(sessions, 7, 1, end=True) == 0
    assert opener.opened == []


def test_an_end_abandons_what_is_in_progress_and_both_are_answered(sessions: Sessions, opener: Opener) -> None:
    abandoned, other = submit(sessions, 7, 5, start=True), submit(sessions, 8, 6, start=True)
    end = submit(sessions, 7, 1, end=True)
    assert [type(error) for error in abandoned.errors] == [Cancelled]
    assert end.sums == [0]
    assert len(sessions) == 1
    assert closings(opener) == [1, 0]
    finish(sessions)
    assert (abandoned.count, end.count) == (1, 1)
    assert other.sums == [6]
    assert opener.network.calls == [[6]]


def test_a_step_before_its_predecessor_was_answered_fails_and_ends_the_sequence(
    sessions: Sessions, opener: Opener
) -> None:
    first, second = submit(sessions, 7, 5, start=True), submit(sessions, 7, 6)
    assert [type(error) for error in first.errors] == [Cancelled]
    with pytest.raises(StageFailed, match="before the one before it was answered"):
        raise second.errors[0]
    assert len(sessions) == 0
    assert closings(opener) == [1]
    finish(sessions)
    assert (first.count, second.count) == (1, 1)
    assert opener.network.calls == []


@pytest.mark.parametrize("in_progress", [False, True])
def test_a_start_replaces_what_was_left_of_an_earlier_sequence(
    sessions: Sessions, opener: Opener, in_progress: bool
) -> None:
    earlier = submit(sessions, 7, 5, start=True)
    if not in_progress:
        finish(sessions)
    assert step(sessions, 7, 1, start=True) == 1
    assert step(sessions, 7, 1) == 2
    assert len(sessions) == 1
    assert closings(opener) == [1, 0]
    assert earlier.sums == ([] if in_progress else [5])
    assert [type(error) for error in earlier.errors] == [Cancelled] * in_progress


@pytest.mark.parametrize("ending", ["abandoned", "failed"])
def test_an_ended_sequence_is_gone_without_the_cycle_collector(sessions: Sessions, opener: Opener, ending: str) -> None:
    """It holds its caches, and the collector may not run for hours."""
    answers = submit(sessions, 7, 5 if ending == "abandoned" else 13, start=True)
    held = weakref.ref(opener.opened.pop())
    gc.disable()
    try:
        if ending == "abandoned":
            submit(sessions, 7, 0, end=True)
        finish(sessions)
        answers.errors.clear()  # an exception holds the frames that it went through
        assert held() is None
    finally:
        gc.enable()


def test_a_failing_step_ends_its_sequence_only(sessions: Sessions, opener: Opener) -> None:
    step(sessions, 7, 5, start=True)
    step(sessions, 8, 5, start=True)
    with pytest.raises(InvalidInput, match="negative"):
        step(sessions, 7, -1)
    assert len(sessions) == 1
    assert closings(opener) == [1, 0]
    with pytest.raises(StageFailed, match="no such sequence"):
        step(sessions, 7, 1)
    assert step(sessions, 8, 1) == 6


def test_a_last_step_that_fails_closes_once(sessions: Sessions, opener: Opener) -> None:
    step(sessions, 7, 5, start=True)
    with pytest.raises(StageFailed, match="unlucky"):
        step(sessions, 7, 13, end=True)
    assert len(sessions) == 0
    assert closings(opener) == [1]
    assert step(sessions, 7, 0, end=True) == 0
    assert closings(opener) == [1]


def test_a_failing_call_ends_the_sequences_in_it(sessions: Sessions, opener: Opener) -> None:
    step(sessions, 9, 1, start=True)
    members = [submit(sessions, sequence, value, start=True) for sequence, value in ((7, 13), (8, 2))]
    finish(sessions)
    assert [[str(error) for error in m.errors] for m in members] == [["an unlucky number"]] * 2
    assert len(sessions) == 1
    assert closings(opener) == [0, 1, 1]
    assert step(sessions, 9, 1) == 2


@pytest.mark.parametrize(("value", "opened"), [(-1, 1), (1001, 0), (13, 1)])
def test_a_failing_start_leaves_nothing(sessions: Sessions, opener: Opener, value: int, opened: int) -> None:
    with pytest.raises((InvalidInput, StageFailed)):
        step(sessions, 7, value, start=True)
    assert len(sessions) == 0
    assert sessions.call() is None
    assert closings(opener) == [1] * opened


def test_a_silent_sequence_is_dropped(sessions: Sessions, opener: Opener, clock: list[float]) -> None:
    step(sessions, 7, 1, start=True)
    clock[0] = 40
    step(sessions, 8, 1, start=True)
    clock[0] = 61
    step(sessions, 9, 1, start=True)
    assert len(sessions) == 2
    assert closings(opener) == [1, 0, 0]
    with pytest.raises(StageFailed, match="fell silent"):
        step(sessions, 7, 1)
    assert step(sessions, 8, 1) == 2


def test_every_step_is_a_sign_of_life(sessions: Sessions, clock: list[float]) -> None:
    step(sessions, 7, 1, start=True)
    for clock[0] in (50, 100, 150):
        step(sessions, 7, 1)
    assert step(sessions, 7, 1) == 5


def test_a_step_that_takes_long_is_not_silence(sessions: Sessions, clock: list[float]) -> None:
    long = submit(sessions, 7, 1, start=True)
    clock[0] = 1000
    assert step(sessions, 8, 1, start=True) == 1
    assert long.sums == [1]
    clock[0] = 1059
    assert step(sessions, 7, 1) == 2
