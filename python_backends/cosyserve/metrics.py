"""Every metric of the server: name, meaning, labels and buckets, once. Triton serves them on its metrics port.

The table of docs/operations.md is made from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cosyserve.codes import reasons
from cosyserve.contracts import FLOW, HIFT, LLM, TTS, UPSTREAM
from cosyserve.errors import CosyServeError

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
        description: what it counts or measures, for Prometheus and for docs/operations.md.
        labels: the values of each; all are there from the start, at zero.
        buckets: upper bounds of a histogram.
        advice: what an operator does about it, for docs/operations.md; empty where nothing is to be done.
    """

    name: str
    kind: str
    description: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    advice: str = ""

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which its values are found."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))


_MODEL = {"model": tuple(model.name for model in (TTS, *UPSTREAM))}

ACTIVE_STREAMS = Metric(
    "cosyserve_active_streams",
    "gauge",
    "Utterances in progress, from admission on",
    _MODEL,
    advice="scale by it; zero when nobody speaks",
)
UTTERANCES = Metric(
    "cosyserve_utterances_total",
    "counter",
    "Utterances by outcome; invalid: the request was wrong",
    {**_MODEL, "outcome": OUTCOMES},
    advice="failed: see the log",
)
REFUSED = Metric(
    "cosyserve_refused_total",
    "counter",
    "Utterances refused because the server was full or about to stop, by reason",
    {**_MODEL, "reason": reasons("UNAVAILABLE")},
    advice="more servers; or `max_streams` (streams) or `flow_cache_mib` (memory) are too low for the machine",
)
CANCELLED = Metric(
    "cosyserve_cancelled_total",
    "counter",
    "Utterances ended early, by reason: the client left, a session was idle, the lifetime was over",
    {**_MODEL, "reason": reasons("CANCELLED")},
    advice="client: normal for barge-in; if it rises with first audio, listeners give up. "
    "idle: clients forget to end their sessions",
)
FIRST_AUDIO = Metric(
    "cosyserve_first_audio_seconds",
    "histogram",
    "Time from a request, or the first text of a session, to its first audio",
    _MODEL,
    (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30),
    advice="p95 above 1 s: more servers, or a lower `max_streams`",
)
CHUNK_GAP = Metric(
    "cosyserve_chunk_gap_seconds",
    "histogram",
    "Time between consecutive chunks, excluding chunks that waited for input text",
    _MODEL,
    (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 10, 30),
    advice="a chunk holds one to four seconds of audio; gaps must stay below",
)
UNDERRUNS = Metric(
    "cosyserve_underruns_total",
    "counter",
    "Chunks sent after a listener had played all audio before them, excluding chunks that waited for input text: each "
    "is a pause in speech",
    _MODEL,
    advice="too many streams for the machine",
)
REAL_TIME_FACTOR = Metric(
    "cosyserve_real_time_factor",
    "histogram",
    "Seconds from a request to its last audio, per second of audio; sessions excluded",
    _MODEL,
    (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 3, 5, 10),
    advice="above 1 the server is slower than real time",
)
AUDIO_SAMPLES = Metric(
    "cosyserve_audio_samples_total",
    "counter",
    "Audio samples sent to clients",
    _MODEL,
    advice="zero while streams are active: a stage hangs, restart",
)
COMPUTE = Metric(
    "cosyserve_compute_seconds_total",
    "counter",
    "Cumulative network compute time in seconds; concurrent calls are summed",
    {"model": tuple(model.name for model in (LLM, FLOW, HIFT))},
    advice="a rate near `concurrency` on CPUs, or near 1 of llm: that model limits the server",
)
NOT_FINITE = Metric(
    "cosyserve_not_finite_total",
    "counter",
    "Steps whose mel or audio was infinite or NaN; their utterances failed",
    {"model": tuple(model.name for model in (FLOW, HIFT))},
    advice="the weights overflow in this `precision`: choose another",
)
LLM_SEQUENCES = Metric(
    "cosyserve_llm_sequences",
    "gauge",
    "Segments that generate or wait to generate speech tokens",
    advice="above `llm_slots`: some wait",
)
LLM_CUT = Metric(
    "cosyserve_llm_cut_total",
    "counter",
    "Segments cut because they outgrew their text or repeated themselves",
    advice="a rise after new weights or voices: listen to them",
)
SPEECH_TOKENS = Metric(
    "cosyserve_speech_tokens_total",
    "counter",
    "Speech tokens generated",
    advice="its rate is the language model's speed",
)
FLOW_SEQUENCES = Metric("cosyserve_flow_sequences", "gauge", "Utterances whose flow state is held")
FLOW_CACHE = Metric(
    "cosyserve_flow_cache_bytes",
    "gauge",
    "Bytes of flow state held by streams and voices",
    advice="near `flow_cache_mib`: streams will be refused; not zero when idle, recent voices stay",
)
FLOW_FRAMES = Metric(
    "cosyserve_flow_frames_total",
    "counter",
    "Mel frames computed, prompts included",
    advice="far above what is spoken: voices are prepared anew all the time",
)
HIFT_SEQUENCES = Metric("cosyserve_hift_sequences", "gauge", "Utterances whose vocoder state is held")
