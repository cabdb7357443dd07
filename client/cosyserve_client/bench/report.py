"""A run as a table for people and as JSON for everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from typing import Any

from rich.table import Table

from cosyserve_client.bench.results import Figures, LoadResult, Percentiles

BUSY = 0.8
"""Share of a core from which on the client itself may have been the bottleneck."""


def table(results: Sequence[LoadResult]) -> Table:
    """A column for each load, a row for each figure."""
    table = Table(title="p50/p95/p99, times in ms", title_justify="left")
    table.add_column("")
    for result in results:
        table.add_column(str(result), justify="right")
    columns = [result.figures() for result in results]
    for name, cell in _ROWS.items():
        table.add_row(name, *map(cell, columns))
    return table


def warnings(results: Sequence[LoadResult]) -> list[str]:
    """What to know before trusting the figures."""
    return [
        f"{result}: this client used {figures.client_cpu:.0%} of a core, so the client may be the bottleneck"
        for result in results
        if (figures := result.figures()).client_cpu > BUSY
    ]


def problems(results: Sequence[LoadResult]) -> list[str]:
    """Why this run is not a measurement, a line for each load that is none."""
    return [problem for result in results if (problem := result.problem())]


def document(results: Sequence[LoadResult], facts: dict[str, Any]) -> dict[str, Any]:
    """Facts, figures of each load, and every utterance, as JSON."""
    return {**facts, "problems": problems(results), "levels": [_load(result) for result in results]}


def _load(result: LoadResult) -> dict[str, Any]:
    name, value = result.load
    rows = [utterance.row() for utterance in result.utterances]
    return {name: value, "seconds": result.seconds, **asdict(result.figures()), "rows": rows}


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
