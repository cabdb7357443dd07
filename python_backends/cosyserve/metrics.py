"""Every metric of the server: name, meaning, labels and buckets, once. Triton serves them on its metrics port."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cosyserve.contracts import FLOW, HIFT, LLM, TTS, UPSTREAM
from cosyserve.errors import CosyServeError, reasons

OUTCOMES = ("complete", "invalid", "refused", "cancelled", "failed")
"""How an utterance ends: with all its audio, or with an error; see `outcome`."""


def outcome(error: CosyServeError | None) -> str:
    """What an error, or none, is counted as: a request that cannot be served, a full server, a cancelled one, ours."""
    if error is None:
        return "complete"
    return _BY_CODE.get(error.code, "failed")


_BY_CODE = {
    "INVALID_ARGUMENT": "invalid",
    "NOT_FOUND": "invalid",
    "UNIMPLEMENTED": "invalid",
    "UNAVAILABLE": "refused",
    "CANCELLED": "cancelled",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    Attributes:
        kind: ``gauge``, ``counter`` or ``histogram``.
        labels: the values of each; all are there from the start, at zero.
        buckets: upper bounds of a histogram.
    """

    name: str
    kind: str
    description: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which its values are found."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))


_MODEL = {"model": tuple(model.name for model in (TTS, *UPSTREAM))}

ACTIVE_STREAMS = Metric("cosyserve_active_streams", "gauge", "Utterances in progress", _MODEL)
UTTERANCES = Metric(
    "cosyserve_utterances_total", "counter", "Utterances by how they ended", {**_MODEL, "outcome": OUTCOMES}
)
REFUSED = Metric(
    "cosyserve_refused_total",
    "counter",
    "Utterances refused by a server that was full or about to stop, by reason",
    {**_MODEL, "reason": reasons("UNAVAILABLE")},
)
CANCELLED = Metric(
    "cosyserve_cancelled_total",
    "counter",
    "Utterances ended before all was said, by reason",
    {**_MODEL, "reason": reasons("CANCELLED")},
)
FIRST_AUDIO = Metric(
    "cosyserve_first_audio_seconds",
    "histogram",
    "From a request, or the first text of a session, to its first audio",
    _MODEL,
    (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30),
)
CHUNK_GAP = Metric(
    "cosyserve_chunk_gap_seconds",
    "histogram",
    "Between two chunks of an utterance, where the second had not to wait for text",
    _MODEL,
    # A chunk holds one to four seconds of audio.
    (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 10, 30),
)
UNDERRUNS = Metric(
    "cosyserve_underruns_total",
    "counter",
    "Chunks that came after a listener had played all before, and had not to wait for text",
    _MODEL,
)
REAL_TIME_FACTOR = Metric(
    "cosyserve_real_time_factor",
    "histogram",
    "Seconds from a request to its last audio, for each second of audio; without sessions",
    _MODEL,
    (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 3, 5, 10),
)
AUDIO_SAMPLES = Metric("cosyserve_audio_samples_total", "counter", "Audio samples sent to clients", _MODEL)
COMPUTE = Metric(
    "cosyserve_compute_seconds_total",
    "counter",
    "Seconds that calls of the networks took, those side by side counted each",
    {"model": tuple(model.name for model in (LLM, FLOW, HIFT))},
)
LLM_SEQUENCES = Metric("cosyserve_llm_sequences", "gauge", "Segments that generate or wait to generate speech tokens")
LLM_CUT = Metric(
    "cosyserve_llm_cut_total", "counter", "Segments cut because their speech outgrew their text or went in circles"
)
SPEECH_TOKENS = Metric("cosyserve_speech_tokens_total", "counter", "Speech tokens generated")
FLOW_SEQUENCES = Metric("cosyserve_flow_sequences", "gauge", "Utterances whose flow state is held")
FLOW_CACHE = Metric("cosyserve_flow_cache_bytes", "gauge", "Bytes of flow state held by streams and voices")
FLOW_FRAMES = Metric("cosyserve_flow_frames_total", "counter", "Mel frames computed, prompts included")
HIFT_SEQUENCES = Metric("cosyserve_hift_sequences", "gauge", "Utterances whose vocoder state is held")
