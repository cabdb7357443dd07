"""``cosyserve plan``: how many servers a number of streams needs, from what ``cosyserve bench`` measured of one."""

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
    """Goals of the service.

    Attributes:
        first_audio: longest first audio in seconds, 95th percentile.
        gapless: least share of streams without a gap.
    """

    first_audio: float
    gapless: float

    def missed(self, load: dict[str, Any]) -> str | None:
        """What a load of the report misses, in a few words; None when it is good."""
        if load["errors"] or load["refused"] or not load["succeeded"]:
            return f"{load['utterances'] - load['succeeded']} of {load['utterances']} utterances failed"
        first_audio = load["first_audio_ms"]["p95"] / 1000
        if first_audio > self.first_audio:
            return f"first audio after {first_audio:.2f} s"
        if load["gapless"] < self.gapless:
            return f"{load['gapless']:.0%} gapless"
        return None


def plan(
    report: Annotated[Path, typer.Argument(help="Report of `cosyserve bench --concurrency 1,4,16 --json`")],
    streams: Annotated[int, typer.Option(min=1, help="Peak concurrent streams")],
    first_audio: Annotated[float, typer.Option(min=0, help="Maximum time to first audio in seconds, p95")] = 1.0,
    gapless: Annotated[float, typer.Option(min=0, max=1, help="Minimum share of streams without a gap")] = 0.99,
    load: Annotated[float, typer.Option(min=0.01, max=1, help="Share of a server's capacity to plan with")] = 0.65,
) -> None:
    """Compute how many servers, each like the measured one, serve the peak number of streams.

    Exits with 1 when no measured load meets the goals.
    """
    try:
        held, beyond = capacity(_closed_loops(report), Goal(first_audio, gapless))
    except (OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    planned = max(1, math.floor(load * held))
    typer.echo(f"streams a server holds   {held:5}   {beyond}")
    typer.echo(f"streams to plan with     {planned:5}   {load:.0%}; scale up here")
    typer.echo(f"servers                  {math.ceil(streams / planned):5}   for {streams} streams")
    typer.echo(f"set COSYSERVE_MAX_STREAMS={held}, and the threshold of active-streams to {planned}")


def capacity(loads: Sequence[dict[str, Any]], goal: Goal) -> tuple[int, str]:
    """Most streams that are good, and what is known of more.

    Args:
        loads: closed loops of a report.

    Raises:
        ValueError: not even the lowest load is good.
    """
    held = 0
    for load in sorted(loads, key=lambda load: load["concurrency"]):
        if missed := goal.missed(load):
            if not held:
                raise ValueError(f"at {load['concurrency']}: {missed}; no lower load was measured")
            return held, f"at {load['concurrency']}: {missed}"
        held = load["concurrency"]
    return held, "the highest load measured; it may hold more"


def _closed_loops(report: Path) -> list[dict[str, Any]]:
    """The closed loops of a report; `ValueError` when it holds none."""
    try:
        found = [load for load in json.loads(report.read_text("utf-8"))["levels"] if "concurrency" in load]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{report} is not a report of `cosyserve bench --json`") from None
    if not found:
        raise ValueError(f"{report} has no closed loop: measure with --concurrency")
    return found
