"""State of sequences: opened at the start, dropped at the end, on failure and when the sender is gone."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cosyserve.contracts import Tensors
from cosyserve.errors import InvalidInput, StageFailed
from cosyserve.sessions import Sessions


class Adding:
    """A session that returns the sum of its inputs so far."""

    def __init__(self) -> None:
        self.sum = 0

    def step(self, inputs: Tensors) -> Tensors:
        value = int(inputs["value"][0])
        if value < 0:
            raise InvalidInput("value", "must not be negative")
        self.sum += value
        return {"sum": np.array([self.sum])}


class Opener:
    def __init__(self) -> None:
        self.opened = 0

    def open(self, inputs: Tensors) -> Adding:
        if int(inputs["value"][0]) > 1000:
            raise InvalidInput("value", "is too large to open")
        self.opened += 1
        return Adding()

    def nothing(self, inputs: Tensors) -> Tensors:
        return {"sum": np.zeros(1, np.int64)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def step(sessions: Sessions, sequence: int, value: int, *, start: bool = False, end: bool = False) -> int:
    return int(sessions.step(sequence, {"value": np.array([value])}, start=start, end=end)["sum"][0])


def test_sequences_keep_their_own_state_until_they_end() -> None:
    sessions = Sessions(Opener(), 60)
    assert step(sessions, 7, 1, start=True) == 1
    assert step(sessions, 8, 10, start=True) == 10
    assert step(sessions, 7, 2) == 3
    assert len(sessions) == 2
    assert step(sessions, 7, 3, end=True) == 6
    assert step(sessions, 8, 10) == 20
    assert len(sessions) == 1


def test_one_step_may_start_and_end() -> None:
    sessions = Sessions(Opener(), 60)
    assert step(sessions, 7, 5, start=True, end=True) == 5
    assert len(sessions) == 0


def test_a_step_of_no_live_sequence_fails() -> None:
    opener = Opener()
    sessions = Sessions(opener, 60)
    with pytest.raises(StageFailed, match="no such sequence"):
        step(sessions, 7, 1)
    step(sessions, 7, 1, start=True, end=True)
    with pytest.raises(StageFailed, match="no such sequence"):
        step(sessions, 7, 1)
    assert opener.opened == 1


def test_ending_a_sequence_that_is_gone_does_nothing() -> None:
    """In an ensemble the models behind this one must still see the end."""
    opener = Opener()
    assert step(Sessions(opener, 60), 7, 1, end=True) == 0
    assert opener.opened == 0


def test_a_start_replaces_what_was_left_of_an_earlier_sequence() -> None:
    sessions = Sessions(Opener(), 60)
    step(sessions, 7, 5, start=True)
    assert step(sessions, 7, 1, start=True) == 1
    assert step(sessions, 7, 1) == 2
    assert len(sessions) == 1


def test_a_failing_step_ends_its_sequence_only() -> None:
    sessions = Sessions(Opener(), 60)
    step(sessions, 7, 5, start=True)
    step(sessions, 8, 5, start=True)
    with pytest.raises(InvalidInput, match="negative"):
        step(sessions, 7, -1)
    assert len(sessions) == 1
    with pytest.raises(StageFailed, match="no such sequence"):
        step(sessions, 7, 1)
    assert step(sessions, 8, 1) == 6


@pytest.mark.parametrize("value", [-1, 1001])
def test_a_failing_start_leaves_nothing(value: int) -> None:
    sessions = Sessions(Opener(), 60)
    with pytest.raises(InvalidInput):
        step(sessions, 7, value, start=True)
    assert len(sessions) == 0


def test_a_silent_sequence_is_dropped(clock: list[float]) -> None:
    sessions = Sessions(Opener(), 60)
    step(sessions, 7, 1, start=True)
    clock[0] = 40
    step(sessions, 8, 1, start=True)
    clock[0] = 61
    step(sessions, 9, 1, start=True)
    assert len(sessions) == 2
    with pytest.raises(StageFailed, match="fell silent"):
        step(sessions, 7, 1)
    assert step(sessions, 8, 1) == 2


def test_every_step_is_a_sign_of_life(clock: list[float]) -> None:
    sessions = Sessions(Opener(), 60)
    step(sessions, 7, 1, start=True)
    for clock[0] in (50, 100, 150):
        step(sessions, 7, 1)
    assert step(sessions, 7, 1) == 5
