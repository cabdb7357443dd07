"""Batches of many streams: order, who may join, and the effect of a failure."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fakes import turn

from cosyserve.errors import Cancelled, StageFailed
from cosyserve.scheduler import Computation, Job, Scheduler, Task, run_alone


class Doubling:
    """A network that doubles numbers and records its calls; numbers of one parity share a call, 13 makes it fail."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def can_batch(self, batch: Sequence[int], job: int) -> bool:
        return job % 2 == batch[0] % 2

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.calls.append(list(batch))
        if 13 in batch:
            raise StageFailed("an unlucky number")
        return [2 * number for number in batch]


class Stream:
    """Numbers doubled one after another; `results` when done, `error` when not."""

    def __init__(self, network: Doubling, *numbers: int) -> None:
        self._network = network
        self._numbers = numbers
        self.results: list[int] | None = None
        self.error: Exception | None = None
        self.closed = False

    def begin_step(self) -> Computation[list[int]]:
        try:
            results = []
            for number in self._numbers:
                doubled: int = yield Job(self._network, number)
                results.append(doubled)
            return results
        finally:
            self.closed = True

    def task(self, urgency: int = 0) -> Task:
        def done(results: list[int]) -> None:
            self.results = results

        def failed(error: Exception) -> None:
            self.error = error

        return Task(self.begin_step(), urgency, done, failed)


def update(scheduler: Scheduler) -> None:
    while turn(scheduler):
        pass


@pytest.fixture
def network() -> Doubling:
    return Doubling()


def test_alone_carries_steps_out_one_by_one(network: Doubling) -> None:
    assert run_alone(Stream(network, 1, 2, 3).begin_step()) == [2, 4, 6]
    assert network.calls == [[1], [2], [3]]


def test_alone_passes_a_failing_call_on(network: Doubling) -> None:
    stream = Stream(network, 1, 13, 3)
    with pytest.raises(StageFailed, match="unlucky"):
        run_alone(stream.begin_step())
    assert network.calls == [[1], [13]]


def test_each_stream_gets_its_own_results(network: Doubling) -> None:
    scheduler = Scheduler(8)
    streams = [Stream(network, *range(first, first + length)) for first, length in ((20, 3), (40, 1), (60, 2))]
    for stream in streams:
        scheduler.add(stream.task())
    update(scheduler)
    assert [stream.results for stream in streams] == [[40, 42, 44], [80], [120, 122]]
    assert network.calls == [[20, 40, 60], [21, 61], [22]]


def test_the_most_urgent_goes_first_and_brings_those_that_may_join(network: Doubling) -> None:
    scheduler = Scheduler(8)
    for urgency, number in ((5, 2), (1, 7), (9, 9), (3, 4)):
        scheduler.add(Stream(network, number).task(urgency))
    turn(scheduler)
    assert network.calls == [[7, 9]]  # 9 is the least urgent, but joins the call in progress
    turn(scheduler)
    assert network.calls == [[7, 9], [4, 2]]
    assert scheduler.schedule() is None


def test_equally_urgent_steps_go_in_the_order_they_came(network: Doubling) -> None:
    scheduler = Scheduler(1)
    for number in (3, 1, 2):
        scheduler.add(Stream(network, number).task())
    update(scheduler)
    assert network.calls == [[3], [1], [2]]


def test_a_call_holds_no_more_than_the_batch_and_leaves_the_least_urgent(network: Doubling) -> None:
    scheduler = Scheduler(2)
    for urgency in (4, 3, 2, 1, 0):
        scheduler.add(Stream(network, 2 * urgency).task(urgency))
    update(scheduler)
    assert network.calls == [[0, 2], [4, 6], [8]]


def test_networks_do_not_share_calls(network: Doubling) -> None:
    other, scheduler = Doubling(), Scheduler(8)
    for user in (network, other, network):
        scheduler.add(Stream(user, 2).task())
    turn(scheduler)
    assert (network.calls, other.calls) == ([[2, 2]], [])
    turn(scheduler)
    assert (network.calls, other.calls) == ([[2, 2]], [[2]])


def test_a_new_stream_joins_the_next_call_of_a_running_one(network: Doubling) -> None:
    scheduler = Scheduler(8)
    running, newcomer = Stream(network, 2, 4, 6), Stream(network, 8)
    scheduler.add(running.task())
    turn(scheduler)
    scheduler.add(newcomer.task())
    turn(scheduler)
    assert newcomer.results == [16]
    assert network.calls == [[2], [4, 8]]
    update(scheduler)
    assert running.results == [4, 8, 12]


def test_a_step_without_calls_is_done_at_once(network: Doubling) -> None:
    scheduler, stream = Scheduler(8), Stream(network)
    scheduler.add(stream.task())
    assert stream.results == []
    assert scheduler.schedule() is None


def test_a_failing_call_fails_its_members_only(network: Doubling) -> None:
    scheduler = Scheduler(8)
    unlucky, member, other = Stream(network, 13, 1), Stream(network, 5, 7), Stream(network, 2, 4)
    for stream in (unlucky, member, other):
        scheduler.add(stream.task())
    update(scheduler)
    for stream in (unlucky, member):
        assert isinstance(stream.error, StageFailed)
        assert stream.results is None
        assert stream.closed
    assert (other.results, other.error) == ([4, 8], None)


@pytest.mark.parametrize("calls", [0, 1])
def test_steps_that_raise_fail_alone(network: Doubling, calls: int) -> None:
    def raising() -> Computation[None]:
        for _ in range(calls):
            yield Job(network, 2)
        raise ValueError("of its own")

    errors: list[Exception] = []
    scheduler, other = Scheduler(8), Stream(network, 2)
    scheduler.add(other.task())
    scheduler.add(Task(raising(), 0, lambda result: errors.append(AssertionError("done")), errors.append))
    update(scheduler)
    assert [str(error) for error in errors] == ["of its own"]
    assert other.results == [4]


def test_a_dropped_task_ends_where_it_is(network: Doubling) -> None:
    scheduler = Scheduler(8)
    dropped, other = Stream(network, 2, 4), Stream(network, 6)
    task = dropped.task()
    scheduler.add(task)
    scheduler.add(other.task())
    reason = Cancelled("enough")
    scheduler.cancel(task, reason)
    assert dropped.closed
    assert dropped.error is reason
    update(scheduler)
    assert network.calls == [[6]]
    assert dropped.results is None


def test_dropping_what_has_ended_does_nothing(network: Doubling) -> None:
    scheduler, stream = Scheduler(8), Stream(network, 2)
    task = stream.task()
    scheduler.add(task)
    update(scheduler)
    scheduler.cancel(task, Cancelled("too late"))
    assert (stream.results, stream.error) == ([4], None)


class Shared:
    """A number that the first task computes while the others wait."""

    def __init__(self, network: Doubling) -> None:
        self._network = network
        self._busy = False
        self._value: int | None = None

    def begin_step(self) -> Computation[int]:
        while self._busy:
            yield None
        if self._value is None:
            self._busy = True
            try:
                self._value = yield Job(self._network, 10)
            finally:
                self._busy = False
        return self._value


def test_waiters_go_on_when_another_stream_is_ready(network: Doubling) -> None:
    scheduler, shared = Scheduler(8), Shared(network)
    got: list[int] = []
    errors: list[Exception] = []
    for _ in range(3):
        scheduler.add(Task(shared.begin_step(), 0, got.append, errors.append))
    assert got == []
    turn(scheduler)
    assert got == [20, 20, 20]
    assert network.calls == [[10]]
    assert scheduler.schedule() is None
    assert errors == []


def test_a_waiter_takes_over_when_the_stream_it_waits_for_is_dropped(network: Doubling) -> None:
    scheduler, shared = Scheduler(8), Shared(network)
    got: list[int] = []
    errors: list[Exception] = []
    first, *others = [Task(shared.begin_step(), 0, got.append, errors.append) for _ in range(3)]
    for task in (first, *others):
        scheduler.add(task)
    scheduler.cancel(first, Cancelled("enough"))
    update(scheduler)
    assert got == [20, 20]
    assert network.calls == [[10]]
    assert [str(error) for error in errors] == ["enough"]


def test_calls_side_by_side_never_share_a_stream(network: Doubling) -> None:
    scheduler = Scheduler(1)
    streams = [Stream(network, 2, 4), Stream(network, 20, 40)]
    for stream in streams:
        scheduler.add(stream.task())
    calls = [scheduler.schedule(), scheduler.schedule()]
    assert scheduler.schedule() is None
    for call in reversed(calls):  # the second is done first
        assert call is not None
        call.run()
        scheduler.update(call)
    update(scheduler)
    assert [stream.results for stream in streams] == [[4, 8], [40, 80]]


def test_a_stream_dropped_while_its_call_runs_gets_nothing(network: Doubling) -> None:
    """And its companions get theirs."""
    scheduler = Scheduler(8)
    streams = [Stream(network, 2), Stream(network, 4)]
    tasks = [stream.task() for stream in streams]
    for task in tasks:
        scheduler.add(task)
    call = scheduler.schedule()
    assert call is not None
    scheduler.cancel(tasks[0], StageFailed("gone"))
    call.run()
    scheduler.update(call)
    assert [stream.results for stream in streams] == [None, [8]]
    assert str(streams[0].error) == "gone"
