"""First audio and throughput over load, as a PNG. Needs matplotlib, of the extra ``loadtest``."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cosyserve_client.bench.results import Figures, LoadResult

UNITS = {"concurrency": "concurrent streams", "rate": "utterances per second"}


def draw(results: Sequence[LoadResult], path: str) -> None:
    """Writes the picture of `results` to `path`: a row for each kind of load.

    Raises:
        OSError: the file cannot be written.
    """
    kinds = [kind for kind in UNITS if any(result.load[0] == kind for result in results)]
    figure = Figure(figsize=(10, 4 * len(kinds)), layout="constrained")
    for (latency, throughput), kind in zip(figure.subplots(len(kinds), 2, squeeze=False), kinds, strict=True):
        chosen = sorted((result for result in results if result.load[0] == kind), key=lambda result: result.load)
        measured = [(result.load[1], result.figures()) for result in chosen]
        _latency(latency, measured)
        _throughput(throughput, measured)
        for axes in (latency, throughput):
            axes.set(xlabel=UNITS[kind], ylim=(0, None))
            axes.grid(alpha=0.3)
    figure.savefig(path, format="png")


def _latency(axes: Axes, measured: list[tuple[float, Figures]]) -> None:
    with_audio = [(load, figures.first_audio_ms) for load, figures in measured if figures.first_audio_ms]
    loads = [load for load, _ in with_audio]
    axes.plot(loads, [percentiles.p50 for _, percentiles in with_audio], "o-", clip_on=False, label="p50")
    axes.plot(loads, [percentiles.p95 for _, percentiles in with_audio], "o--", clip_on=False, label="p95")
    axes.set(ylabel="first audio, ms")
    axes.legend()


def _throughput(axes: Axes, measured: list[tuple[float, Figures]]) -> None:
    rates = [figures.audio_seconds_per_second for _, figures in measured]
    axes.plot([load for load, _ in measured], rates, "o-", clip_on=False)
    axes.set(ylabel="audio seconds per second")
