"""Every metric of the server: name and meaning, once. Triton serves them on its metrics port."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family; `kind` is ``gauge`` or ``counter``."""

    name: str
    kind: str
    description: str


ACTIVE_STREAMS = Metric("cosyserve_active_streams", "gauge", "Utterances in progress")
LLM_SEQUENCES = Metric("cosyserve_llm_sequences", "gauge", "Segments that generate or wait to generate speech tokens")
LLM_CUT = Metric(
    "cosyserve_llm_cut_total", "counter", "Segments cut because their speech outgrew their text or went in circles"
)
FLOW_SEQUENCES = Metric("cosyserve_flow_sequences", "gauge", "Utterances whose flow state is held")
FLOW_CACHE = Metric("cosyserve_flow_cache_bytes", "gauge", "Bytes of flow state held by streams and voices")
HIFT_SEQUENCES = Metric("cosyserve_hift_sequences", "gauge", "Utterances whose vocoder state is held")
SPEECH_TOKENS = Metric("cosyserve_speech_tokens_total", "counter", "Speech tokens generated")
FLOW_FRAMES = Metric("cosyserve_flow_frames_total", "counter", "Mel frames computed, prompts included")
AUDIO_SAMPLES = Metric("cosyserve_audio_samples_total", "counter", "Audio samples sent to clients")
CANCELLED = Metric("cosyserve_cancelled_total", "counter", "Utterances ended because their client went away")
REFUSED = Metric("cosyserve_refused_total", "counter", "Utterances refused by a server that was full or about to stop")
