"""``cosyserve plan``: how many servers so many streams take, after what ``cosyserve bench`` measured of one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer


@dataclass(frozen=True, slots=True)
class Goal:
    """What listeners shall hear.

    Attributes:
        first_audio: longest first audio in seconds, 95th percentile.
        gapless: least share of streams without a gap.
    """

    first_audio: float
    gapless: float

    def missed(self, level: dict[str, Any]) -> str | None:
        """What a level of the report misses, in a few words; None when it is good."""
        if level["errors"] or level["refused"] or not level["succeeded"]:
            return f"{level['utterances'] - level['succeeded']} of {level['utterances']} utterances failed"
        first_audio = level["first_audio_ms"]["p95"] / 1000
        if first_audio > self.first_audio:
            return f"first audio after {first_audio:.2f} s"
        if level["gapless"] < self.gapless:
            return f"{level['gapless']:.0%} gapless"
        return None


def plan(
    report: Annotated[Path, typer.Argument(help="What `cosyserve bench --concurrency 1,4,16 --json` wrote.")],
    streams: Annotated[int, typer.Option(min=1, help="Streams at once when most is asked for.")],
    first_audio: Annotated[float, typer.Option(min=0, help="Longest first audio in seconds, p95.")] = 1.0,
    gapless: Annotated[float, typer.Option(min=0, max=1, help="Least share of streams without a gap.")] = 0.99,
    load: Annotated[float, typer.Option(min=0.01, max=1, help="Share of a server's streams to plan with.")] = 0.65,
) -> None:
    """Tell how many servers, each like the one that was measured, speak so many streams at once.

    Exits with 1 when no load that was measured was good enough.
    """
    try:
        held, beyond = capacity(_levels(report), Goal(first_audio, gapless))
    except (OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    planned = max(1, math.floor(load * held))
    typer.echo(f"streams a server holds   {held:5}   {beyond}")
    typer.echo(f"streams to plan with     {planned:5}   {load:.0%}; scale up here")
    typer.echo(f"servers                  {math.ceil(streams / planned):5}   for {streams} streams")
    typer.echo(f"set COSYSERVE_MAX_STREAMS={held}, and the threshold of active-streams to {planned}")


def capacity(levels: Sequence[dict[str, Any]], goal: Goal) -> tuple[int, str]:
    """Most streams that are good, and what is known of more.

    Args:
        levels: closed loops of a report.

    Raises:
        ValueError: not even the lowest load is good.
    """
    held = 0
    for level in sorted(levels, key=lambda level: level["concurrency"]):
        if missed := goal.missed(level):
            if not held:
                raise ValueError(f"at {level['concurrency']}: {missed}; no lower load was measured")
            return held, f"at {level['concurrency']}: {missed}"
        held = level["concurrency"]
    return held, "the most that was measured; it may hold more"


def _levels(report: Path) -> list[dict[str, Any]]:
    """The closed loops of a report; `ValueError` when it holds none."""
    try:
        found = [level for level in json.loads(report.read_text("utf-8"))["levels"] if "concurrency" in level]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{report} is no report of `cosyserve bench --json`") from None
    if not found:
        raise ValueError(f"{report} holds no closed loop: measure with --concurrency")
    return found
