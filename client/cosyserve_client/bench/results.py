"""The utterances of one load, and what they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cosyserve_client.bench.playback import Playback

if TYPE_CHECKING:
    from typing import Self

OK = "ok"
REFUSED = "refused"
"""Outcome of an utterance that a full server turned away: UNAVAILABLE before any audio. Any later break is an error."""

INAUDIBLE = "INAUDIBLE"
"""Outcome of a stream that ended well without one audible sample."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one utterance.

    Attributes:
        due: seconds after the start of the load.
        late: seconds from then until the client sent it; only a client at its limits is late.
        seconds: from due to the end of the stream.
        outcome: `OK`, `REFUSED`, or what went wrong: a gRPC status, `INAUDIBLE` or the name of a client error.
        playback: of its audio.
    """

    due: float
    late: float
    seconds: float
    outcome: str
    playback: Playback

    @property
    def real_time_factor(self) -> float:
        """Seconds it took for each second of audio."""
        return self.seconds / self.playback.seconds

    def row(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "due_s": self.due,
            "late_s": self.late,
            "seconds": self.seconds,
            "outcome": self.outcome,
            "first_audio_s": self.playback.first_audio,
            "first_audible_s": self.playback.first_audible,
            "worst_gap_s": self.playback.worst_gap,
            "audio_s": self.playback.seconds,
            "chunks": [{"arrival_s": arrival, "samples": samples} for arrival, samples in self.playback.chunks],
        }


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a sample, interpolated linearly between its values."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """None without values."""
        sample = list(values)
        return cls(*np.percentile(sample, (50, 95, 99)).tolist()) if sample else None


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load comes to; times and rates are those of the utterances that succeeded.

    Attributes:
        utterances: started.
        succeeded: complete and audible.
        refused: turned away by a full server.
        errors: number of the others by outcome.
        first_audio_ms: until the first response that carries audio.
        first_audible_ms: until the first audible sample is played.
        worst_gap_ms: longest silence in the playback of each utterance.
        gapless: share of utterances without any gap.
        real_time_factor: time of each utterance / its audio.
        audio_seconds_per_second: audio / time from the first start to the last end.
        utterances_per_second: over the same time.
        client_cpu: share of one core that this client used; near 1 the client is what was measured.
        sent_late_ms: largest delay of the client's own sending.
    """

    utterances: int
    succeeded: int
    refused: int
    errors: dict[str, int]
    first_audio_ms: Percentiles | None
    first_audible_ms: Percentiles | None
    worst_gap_ms: Percentiles | None
    gapless: float | None
    real_time_factor: Percentiles | None
    audio_seconds_per_second: float
    utterances_per_second: float
    client_cpu: float
    sent_late_ms: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One load and its utterances.

    Attributes:
        load: name and value, such as ``("concurrency", 4)`` or ``("rate", 1.5)``.
        seconds: from its start to the end of its last utterance.
        cpu_seconds: that the client computed meanwhile.
        utterances: all that were started, at least one.
    """

    load: tuple[str, float]
    seconds: float
    cpu_seconds: float
    utterances: list[Result]

    def __str__(self) -> str:
        name, value = self.load
        return f"{name} {value:g}"

    def figures(self) -> Figures:
        """Counts, percentiles and rates."""
        good = [utterance for utterance in self.utterances if utterance.outcome == OK]
        playbacks = [utterance.playback for utterance in good]
        outcomes = Counter(utterance.outcome for utterance in self.utterances)
        return Figures(
            utterances=len(self.utterances),
            succeeded=outcomes.pop(OK, 0),
            refused=outcomes.pop(REFUSED, 0),
            errors=dict(outcomes),
            first_audio_ms=Percentiles.of(1000 * p.first_audio for p in playbacks if p.first_audio is not None),
            first_audible_ms=Percentiles.of(1000 * p.first_audible for p in playbacks if p.first_audible is not None),
            worst_gap_ms=Percentiles.of(1000 * p.worst_gap for p in playbacks),
            gapless=sum(p.worst_gap == 0 for p in playbacks) / len(playbacks) if playbacks else None,
            real_time_factor=Percentiles.of(utterance.real_time_factor for utterance in good),
            audio_seconds_per_second=sum(p.seconds for p in playbacks) / self.seconds,
            utterances_per_second=len(good) / self.seconds,
            client_cpu=self.cpu_seconds / self.seconds,
            sent_late_ms=1000 * max(utterance.late for utterance in self.utterances),
        )

    def problem(self) -> str | None:
        """Why this load is not a measurement, in one line; None when it is one."""
        figures = self.figures()
        if figures.errors:
            causes = ", ".join(f"{count} {outcome}" for outcome, count in figures.errors.items())
            return f"{self}: {sum(figures.errors.values())} of {figures.utterances} utterances failed: {causes}"
        if not figures.succeeded:
            return f"{self}: none of {figures.utterances} utterances succeeded, {figures.refused} refused"
        return None
