"""Thresholds of a load test."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass

from locust.stats import RequestStats
from voice_users import FIRST_AUDIO, GAP, UTTERANCE


def add_threshold_options(parser: ArgumentParser) -> None:
    """Add the thresholds to Locust's options."""
    group = parser.add_argument_group("thresholds", "for each user class; the exit code is 1 if one is missed")
    group.add_argument("--max-p95-first-audio", type=float, default=float("inf"), help="milliseconds")
    group.add_argument("--min-gapless", type=float, default=0.0, help="minimum share of streams without a gap, 0 to 1")
    group.add_argument("--max-errors", type=float, default=0.0, help="maximum share of utterances that fail, 0 to 1")


@dataclass(frozen=True)
class Thresholds:
    """Thresholds that apply to each user class separately.

    Attributes:
        max_p95_first_audio: maximum 95th percentile of first audio, in milliseconds.
        min_gapless: minimum share of the completed streams that have no gap.
        max_errors: maximum share of the utterances that fail; refused ones are not counted.
    """

    max_p95_first_audio: float
    min_gapless: float
    max_errors: float

    def misses(self, stats: RequestStats, kind: str) -> Iterator[str]:
        """Yield a line for each threshold that class `kind` missed, and one if it got no audio."""
        heard, gaps, utterances = (stats.get(name, kind) for name in (FIRST_AUDIO, GAP, UTTERANCE))
        if utterances.fail_ratio > self.max_errors:
            yield f"{kind}: {utterances.fail_ratio:.1%} of the utterances failed, at most {self.max_errors:.1%}"
        if not heard.num_requests:
            yield f"{kind}: no audio at all"
            return
        first_audio = heard.get_response_time_percentile(0.95)
        if first_audio > self.max_p95_first_audio:
            yield f"{kind}: first audio p95 {first_audio} ms, at most {self.max_p95_first_audio:g} ms"
        ended = utterances.num_requests
        gapless = 1 - gaps.num_requests / ended if ended else 0.0
        if gapless < self.min_gapless:
            yield f"{kind}: {gapless:.1%} of the streams gapless, at least {self.min_gapless:.1%}"
