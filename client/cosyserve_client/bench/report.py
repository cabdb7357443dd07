"""A run as a table for people and as JSON for everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from typing import Any

from rich.table import Table

from cosyserve_client.bench.results import Figures, Level, Percentiles

BUSY = 0.8
"""Share of a core from which on the client itself may have been the bottleneck."""


def table(levels: Sequence[Level]) -> Table:
    """A column for each level, a row for each figure."""
    table = Table(title="p50/p95/p99, times in ms", title_justify="left")
    table.add_column("")
    for level in levels:
        table.add_column(str(level), justify="right")
    columns = [level.figures() for level in levels]
    for name, cell in _ROWS.items():
        table.add_row(name, *map(cell, columns))
    return table


def warnings(levels: Sequence[Level]) -> list[str]:
    """What to know before trusting the figures."""
    return [
        f"{level}: this client used {figures.client_cpu:.0%} of a core, so it may be what was measured"
        for level in levels
        if (figures := level.figures()).client_cpu > BUSY
    ]


def problems(levels: Sequence[Level]) -> list[str]:
    """Why this run is not a measurement, a line for each level that is none."""
    return [problem for level in levels if (problem := level.problem())]


def document(levels: Sequence[Level], facts: dict[str, Any]) -> dict[str, Any]:
    """Facts, figures of each level, and every utterance, as JSON."""
    return {**facts, "problems": problems(levels), "levels": [_level(level) for level in levels]}


def _level(level: Level) -> dict[str, Any]:
    name, value = level.load
    rows = [utterance.row() for utterance in level.utterances]
    return {name: value, "seconds": level.seconds, **asdict(level.figures()), "rows": rows}


def _spread(percentiles: Percentiles | None, digits: int = 0) -> str:
    return "/".join(f"{value:.{digits}f}" for value in astuple(percentiles)) if percentiles else "-"


def _errors(figures: Figures) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in figures.errors.items()) or "0"


_ROWS: dict[str, Callable[[Figures], str]] = {
    "utterances": lambda f: str(f.utterances),
    "first audio": lambda f: _spread(f.first_audio_ms),
    "first audible": lambda f: _spread(f.first_audible_ms),
    "worst gap": lambda f: _spread(f.worst_gap_ms),
    "gapless": lambda f: "-" if f.gapless is None else f"{f.gapless:.0%}",
    "real-time factor": lambda f: _spread(f.real_time_factor, 2),
    "audio s / s": lambda f: f"{f.audio_seconds_per_second:.2f}",
    "utterances / s": lambda f: f"{f.utterances_per_second:.2f}",
    "refused": lambda f: str(f.refused),
    "errors": _errors,
    "client: CPU": lambda f: f"{f.client_cpu:.0%}",
    "client: sent late": lambda f: f"{f.sent_late_ms:.0f}",
}
