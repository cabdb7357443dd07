"""Figures of `judge` on the real server."""

from __future__ import annotations

import pytest
from live import Live

from cosyserve.weights import Weights
from cosyserve_build.judge.command import judge
from cosyserve_build.judge.verdict import Verdict

SENTENCES = 4  # random weights speak for ten seconds each


@pytest.fixture(scope="module")
def verdict(server: Live) -> Verdict:
    """Of a few sentences that the demo voice was not taught."""
    return judge(server.url, None, None, SENTENCES, stream=True, seed=0, at_once=2)


def test_it_is_loud_but_not_clipped(verdict: Verdict) -> None:
    figures = verdict.figures()
    assert figures["sentences"] == SENTENCES
    assert figures["clipped"] < 0.001
    assert figures["silent"] < 0.4
    assert all(finding.seconds > 0.5 for finding in verdict.findings)


def test_there_is_no_click_where_chunks_meet(verdict: Verdict) -> None:
    figures = verdict.figures()
    assert figures["joins"] >= SENTENCES
    assert figures["clicks"] == 0


def test_its_words_are_recognised(verdict: Verdict, server: Live) -> None:
    if Weights(server.weights).random:
        pytest.skip("random weights speak no words")
    assert verdict.wer <= 0.3  # 20 % of a hundred sentences, with room for the chance of so few
