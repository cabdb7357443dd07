"""State of sequences: opened at the start, released once: at the end, on failure, or when the caller is lost."""

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
from cosyserve.scheduler import Computation, Job
from cosyserve.sequences import SequenceRequest, SequenceTable


class Echo:
    """A network that returns its inputs and records its calls; 13 makes it fail."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def can_batch(self, batch: Sequence[int], job: int) -> bool:
        return True

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.calls.append(list(batch))
        if 13 in batch:
            raise StageFailed("an unlucky number")
        return list(batch)


class Adding:
    """A sequence that returns the sum of its inputs so far, after one call for each."""

    def __init__(self, network: Echo) -> None:
        self._network = network
        self._sum = 0
        self.closed = 0

    def begin_step(self, inputs: Tensors) -> Computation[Tensors]:
        value = int(inputs["value"][0])
        if value < 0:
            raise InvalidInput("value", "must not be negative")
        self._sum += yield Job(self._network, value)
        return {"sum": np.array([self._sum])}

    def release(self) -> None:
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

    def empty_outputs(self, inputs: Tensors) -> Tensors:
        return {"sum": np.zeros(1, np.int64)}


class Answers:
    """Answers of the steps, in order."""

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
def table(opener: Opener) -> SequenceTable:
    return SequenceTable(opener, idle_seconds=60, max_batch=8)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def submit(
    table: SequenceTable, sequence: int, value: int, *, start: bool = False, end: bool = False, urgency: int = 0
) -> Answers:
    answers = Answers()
    inputs: Tensors = {"value": np.array([value])}
    table.submit(SequenceRequest(sequence, inputs, start, end, urgency, answers.done, answers.errors.append))
    return answers


def update(table: SequenceTable) -> None:
    while turn(table):
        pass


def step(table: SequenceTable, sequence: int, value: int, *, start: bool = False, end: bool = False) -> int:
    """Carry out a step, and return its sum or its error."""
    answers = submit(table, sequence, value, start=start, end=end)
    update(table)
    assert answers.count == 1
    for error in answers.errors:
        raise error
    return answers.sums[0]


def closings(opener: Opener) -> list[int]:
    return [sequence.closed for sequence in opener.opened]


def test_sequences_keep_their_own_state_until_they_end(table: SequenceTable, opener: Opener) -> None:
    assert step(table, 7, 1, start=True) == 1
    assert step(table, 8, 10, start=True) == 10
    assert step(table, 7, 2) == 3
    assert len(table) == 2
    assert closings(opener) == [0, 0]
    assert step(table, 7, 3, end=True) == 6
    assert step(table, 8, 10) == 20
    assert len(table) == 1
    assert closings(opener) == [1, 0]


def test_one_step_may_start_and_end(table: SequenceTable, opener: Opener) -> None:
    assert step(table, 7, 5, start=True, end=True) == 5
    assert len(table) == 0
    assert closings(opener) == [1]


def test_a_step_is_answered_when_its_calls_are_done(table: SequenceTable) -> None:
    answers = submit(table, 7, 5, start=True)
    assert answers.count == 0
    turn(table)
    assert answers.sums == [5]
    assert table.schedule() is None


def test_sequences_share_calls_and_the_most_urgent_go_first(opener: Opener) -> None:
    table = SequenceTable(opener, idle_seconds=60, max_batch=2)
    answers = [submit(table, s, 10 * s, start=True, urgency=-s) for s in range(1, 4)]
    turn(table)
    assert [a.sums for a in answers] == [[], [20], [30]]
    turn(table)
    assert [a.sums for a in answers] == [[10], [20], [30]]
    assert opener.network.calls == [[30, 20], [10]]


def test_a_step_of_no_live_sequence_fails(table: SequenceTable, opener: Opener) -> None:
    with pytest.raises(StageFailed, match="no such sequence"):
        step(table, 7, 1)
    step(table, 7, 1, start=True, end=True)
    with pytest.raises(StageFailed, match="no such sequence"):
        step(table, 7, 1)
    assert len(opener.opened) == 1


def test_ending_a_sequence_that_is_gone_does_nothing(table: SequenceTable, opener: Opener) -> None:
    """In an ensemble the following models must still get the end."""
    assert step(table, 7, 1, end=True) == 0
    assert opener.opened == []


def test_an_end_abandons_what_is_in_progress_and_both_are_answered(table: SequenceTable, opener: Opener) -> None:
    abandoned, other = submit(table, 7, 5, start=True), submit(table, 8, 6, start=True)
    end = submit(table, 7, 1, end=True)
    assert [type(error) for error in abandoned.errors] == [Cancelled]
    assert end.sums == [0]
    assert len(table) == 1
    assert closings(opener) == [1, 0]
    update(table)
    assert (abandoned.count, end.count) == (1, 1)
    assert other.sums == [6]
    assert opener.network.calls == [[6]]


def test_a_step_before_its_predecessor_was_answered_fails_and_ends_the_sequence(
    table: SequenceTable, opener: Opener
) -> None:
    first, second = submit(table, 7, 5, start=True), submit(table, 7, 6)
    assert [type(error) for error in first.errors] == [Cancelled]
    with pytest.raises(StageFailed, match="before the one before it was answered"):
        raise second.errors[0]
    assert len(table) == 0
    assert closings(opener) == [1]
    update(table)
    assert (first.count, second.count) == (1, 1)
    assert opener.network.calls == []


@pytest.mark.parametrize("in_progress", [False, True])
def test_a_start_replaces_what_was_left_of_an_earlier_sequence(
    table: SequenceTable, opener: Opener, in_progress: bool
) -> None:
    earlier = submit(table, 7, 5, start=True)
    if not in_progress:
        update(table)
    assert step(table, 7, 1, start=True) == 1
    assert step(table, 7, 1) == 2
    assert len(table) == 1
    assert closings(opener) == [1, 0]
    assert earlier.sums == ([] if in_progress else [5])
    assert [type(error) for error in earlier.errors] == [Cancelled] * in_progress


@pytest.mark.parametrize("ending", ["abandoned", "failed"])
def test_an_ended_sequence_is_gone_without_the_cycle_collector(
    table: SequenceTable, opener: Opener, ending: str
) -> None:
    """It holds its caches, and the garbage collector may not run for hours."""
    answers = submit(table, 7, 5 if ending == "abandoned" else 13, start=True)
    held = weakref.ref(opener.opened.pop())
    gc.disable()
    try:
        if ending == "abandoned":
            submit(table, 7, 0, end=True)
        update(table)
        answers.errors.clear()  # an exception holds the frames that it went through
        assert held() is None
    finally:
        gc.enable()


def test_a_failing_step_ends_its_sequence_only(table: SequenceTable, opener: Opener) -> None:
    step(table, 7, 5, start=True)
    step(table, 8, 5, start=True)
    with pytest.raises(InvalidInput, match="negative"):
        step(table, 7, -1)
    assert len(table) == 1
    assert closings(opener) == [1, 0]
    with pytest.raises(StageFailed, match="no such sequence"):
        step(table, 7, 1)
    assert step(table, 8, 1) == 6


def test_a_last_step_that_fails_closes_once(table: SequenceTable, opener: Opener) -> None:
    step(table, 7, 5, start=True)
    with pytest.raises(StageFailed, match="unlucky"):
        step(table, 7, 13, end=True)
    assert len(table) == 0
    assert closings(opener) == [1]
    assert step(table, 7, 0, end=True) == 0
    assert closings(opener) == [1]


def test_a_failing_call_ends_the_sequences_in_it(table: SequenceTable, opener: Opener) -> None:
    step(table, 9, 1, start=True)
    members = [submit(table, sequence, value, start=True) for sequence, value in ((7, 13), (8, 2))]
    update(table)
    assert [[str(error) for error in m.errors] for m in members] == [["an unlucky number"]] * 2
    assert len(table) == 1
    assert closings(opener) == [0, 1, 1]
    assert step(table, 9, 1) == 2


@pytest.mark.parametrize(("value", "opened"), [(-1, 1), (1001, 0), (13, 1)])
def test_a_failing_start_leaves_nothing(table: SequenceTable, opener: Opener, value: int, opened: int) -> None:
    with pytest.raises((InvalidInput, StageFailed)):
        step(table, 7, value, start=True)
    assert len(table) == 0
    assert table.schedule() is None
    assert closings(opener) == [1] * opened


def test_an_idle_sequence_is_released(table: SequenceTable, opener: Opener, clock: list[float]) -> None:
    step(table, 7, 1, start=True)
    clock[0] = 40
    step(table, 8, 1, start=True)
    clock[0] = 61
    step(table, 9, 1, start=True)
    assert len(table) == 2
    assert closings(opener) == [1, 0, 0]
    with pytest.raises(StageFailed, match="idle for too long"):
        step(table, 7, 1)
    assert step(table, 8, 1) == 2


def test_every_step_is_a_sign_of_life(table: SequenceTable, clock: list[float]) -> None:
    step(table, 7, 1, start=True)
    for clock[0] in (50, 100, 150):
        step(table, 7, 1)
    assert step(table, 7, 1) == 5


def test_a_step_that_takes_long_is_not_silence(table: SequenceTable, clock: list[float]) -> None:
    long = submit(table, 7, 1, start=True)
    clock[0] = 1000
    assert step(table, 8, 1, start=True) == 1
    assert long.sums == [1]
    clock[0] = 1059
    assert step(table, 7, 1) == 2
