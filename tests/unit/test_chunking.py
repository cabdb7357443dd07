"""Division of tokens into chunks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosyserve.pipeline.chunking import ChunkPlan, TokenSpan

CHUNK, LOOKAHEAD = 25, 3


def plan(prompt: int = 0, first_hop: int = 25, max_hop: int = 100) -> ChunkPlan:
    return ChunkPlan(prompt, CHUNK, LOOKAHEAD, first_hop, max_hop)


def pieces(made: ChunkPlan, arrivals: list[int]) -> list[TokenSpan]:
    """The pieces when tokens arrive in these groups; the end is known after the last one."""
    found: list[TokenSpan] = []
    available = 0
    for count in arrivals:
        available += count
        while piece := made.next(available, ended=False):
            found.append(piece)
    while not found or not found[-1].final:
        piece = made.next(available, ended=True)
        assert piece is not None
        found.append(piece)
    return found


def test_chunks_grow_from_25_to_100() -> None:
    found = pieces(plan(), [400])
    assert [p.stop for p in found] == [28, 53, 103, 203, 303, 400]
    assert [p.final for p in found] == [False] * 5 + [True]


@pytest.mark.parametrize(("first_hop", "stops"), [(1, [28, 53, 103]), (40, [53, 103, 203]), (75, [78, 153, 253])])
def test_the_second_hop_is_no_longer_than_it_must_be(first_hop: int, stops: list[int]) -> None:
    assert [p.stop for p in pieces(plan(first_hop=first_hop), [400])][:3] == stops


def test_boundaries_count_from_the_first_prompt_token() -> None:
    # 93 prompt tokens and 25 new ones end at 118, so the first boundary is 125: 32 new tokens, and 3 ahead.
    assert [p.stop for p in pieces(plan(prompt=93), [200])] == [35, 60, 110, 200]


def test_nothing_before_boundary_and_look_ahead() -> None:
    made = plan()
    assert made.next(27, ended=False) is None
    assert made.next(28, ended=False) == TokenSpan(0, 28, False)
    assert made.next(28, ended=False) is None


@pytest.mark.parametrize("available", [0, 1, 27])
def test_a_short_segment_is_one_final_piece(available: int) -> None:
    assert plan().next(available, ended=True) == TokenSpan(0, available, True)


def test_an_end_at_the_boundary_still_sends_a_final_piece() -> None:
    assert pieces(plan(), [28]) == [TokenSpan(0, 28, False), TokenSpan(28, 28, True)]


def test_an_end_does_not_merge_chunks_that_are_ready() -> None:
    made = plan()
    assert made.next(90, ended=True) == TokenSpan(0, 28, False)
    assert made.next(90, ended=True) == TokenSpan(28, 53, False)
    assert made.next(90, ended=True) == TokenSpan(53, 90, True)


def test_plans_share_nothing() -> None:
    """Upstream keeps the hop in a shared object and begins the second request with large chunks."""
    pieces(plan(), [400])
    assert plan().next(400, ended=False) == TokenSpan(0, 28, False)


def test_a_hop_that_is_never_reached_gives_one_piece() -> None:
    made = plan(first_hop=2**31)
    assert made.next(10_000, ended=False) is None
    assert made.next(10_000, ended=True) == TokenSpan(0, 10_000, True)


arrivals = st.lists(st.integers(0, 60), max_size=12)


@given(prompt=st.integers(0, 120), first_hop=st.integers(1, 60), max_hop=st.integers(1, 120), groups=arrivals)
def test_no_token_is_lost_or_repeated(prompt: int, first_hop: int, max_hop: int, groups: list[int]) -> None:
    found = pieces(plan(prompt, first_hop, max_hop), groups)
    assert [p.final for p in found] == [False] * (len(found) - 1) + [True]
    assert found[0].start == 0
    assert found[-1].stop == sum(groups)
    assert all(one.stop == next.start for one, next in pairwise(found))


@given(prompt=st.integers(0, 120), first_hop=st.integers(1, 60), factor=st.integers(1, 5), groups=arrivals)
def test_boundaries_lie_on_the_grid_and_hops_grow(prompt: int, first_hop: int, factor: int, groups: list[int]) -> None:
    max_hop = first_hop * factor
    boundaries = [p.stop - LOOKAHEAD for p in pieces(plan(prompt, first_hop, max_hop), groups) if not p.final]
    assert all((prompt + boundary) % CHUNK == 0 for boundary in boundaries)
    for index, (last, boundary) in enumerate(pairwise([0, *boundaries])):
        grown = max(first_hop, CHUNK) * 2 ** (index - 1)
        least = min(grown, max_hop) if index else first_hop
        assert least <= boundary - last < least + CHUNK


@given(prompt=st.integers(0, 120), groups=arrivals)
def test_how_tokens_arrive_does_not_matter(prompt: int, groups: list[int]) -> None:
    assert pieces(plan(prompt), groups) == pieces(plan(prompt), [sum(groups)])
