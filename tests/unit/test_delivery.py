"""Playback in real time: first audio, underruns, and waits for text."""

from __future__ import annotations

import pytest

from cosyserve.pipeline.delivery import Delivery


def test_first_audio_counts_from_the_beginning() -> None:
    delivery = Delivery(began=100.0)
    assert delivery.first_audio is None
    assert delivery.real_time_factor is None
    delivery.chunk_sent(1.0, 100.25)
    delivery.chunk_sent(1.0, 101.0)
    assert delivery.first_audio == 0.25
    assert (delivery.chunks, delivery.seconds) == (2, 2.0)
    assert delivery.real_time_factor == 0.5


def test_gaps_lie_between_chunks() -> None:
    delivery = Delivery(began=0.0)
    gaps = []
    for now in (1.0, 1.5, 3.5):
        delivery.chunk_sent(1.0, now)
        gaps.append(delivery.gap)
    assert gaps == [None, 0.5, 2.0]


def test_a_chunk_is_late_when_all_before_it_has_been_played() -> None:
    delivery = Delivery(began=0.0)
    arrivals = [
        (10.0, False),  # however late the first
        (10.5, False),  # two seconds are there to play
        (11.9, False),
        (13.0, False),  # just in time
        (14.1, True),
        (15.0, False),  # and what came late lasts from then on
        (16.2, True),
    ]
    assert [delivery.chunk_sent(1.0, now) for now, _ in arrivals] == [late for _, late in arrivals]
    assert delivery.underruns == 2


@pytest.mark.parametrize(("written", "late"), [(None, True), (0.9, True), (5.0, False)])
def test_a_chunk_that_waited_for_text_is_not_late(written: float | None, late: bool) -> None:
    """A chunk whose text had arrived when the previous chunk was sent may be late."""
    delivery = Delivery(began=0.0)
    delivery.chunk_sent(1.0, 1.0, written=0.5)
    assert delivery.chunk_sent(1.0, 6.0, written=written) == late
    assert delivery.gap == (5.0 if late else None)
    assert delivery.chunk_sent(1.0, 8.0, written=written), "what came late lasts only as long as it is"
