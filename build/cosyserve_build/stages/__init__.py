"""Stages that `verify` compares for each version, and recorded tensors that are inputs only."""

from __future__ import annotations

from dataclasses import dataclass

from cosyserve_build.recorded import RecordedSet
from cosyserve_build.stages import accumulated, common, cosyvoice1, windowed
from cosyserve_build.stages.common import Stage

_FED = "recorded input"
_PROMPT = "recorded input; the frontend's output is compared"


@dataclass(frozen=True, slots=True)
class VerifySpec:
    """Specification of the comparison for one version.

    Attributes:
        stages: the stage that produces each file of vectors.
        declared: patterns of recorded tensors that no stage produces, with the reason.
        opens: class that reads such a set.
    """

    stages: dict[str, Stage]
    declared: tuple[tuple[str, str], ...]
    opens: type[RecordedSet] = RecordedSet


_COMMON: dict[str, Stage] = {
    "frontend": common.frontend,
    "llm": common.llm,
    "ras": common.ras,
    "flow": common.flow,
}
_DECLARED = (
    ("ras/logp", _FED),
    ("ras/history", _FED),
    ("ras/ignore_eos", _FED),
    ("ras/race_q_*", _FED),
    ("ras/cdf_u", _FED),
    ("llm/bistream_*_prompt_text_ids", _PROMPT),
    ("llm/bistream_*_prompt_speech_token", _PROMPT),
    ("flow/spk_raw", _PROMPT),
    ("flow/prompt_token", _PROMPT),
    ("flow/prompt_feat", _PROMPT),
    ("flow/token", _FED),
    ("hift/mel", _FED),
    ("hift/stream_mel", _FED),
)

COSYVOICE1 = VerifySpec(
    stages={
        "frontend": cosyvoice1.frontend,
        "llm": cosyvoice1.llm,
        "flow": cosyvoice1.flow,
        "hift": cosyvoice1.hift,
        "e2e": cosyvoice1.e2e,
    },
    declared=(
        ("flow/noise", "recorded random draw, used as input"),
        ("hift/mel", _FED),
        ("hift/source", "made with random draws that were not recorded; used as input"),
    ),
    opens=cosyvoice1.CosyVoice1Set,
)

COSYVOICE2 = VerifySpec(
    stages={**_COMMON, "hift": windowed.hift, "e2e": windowed.e2e},
    declared=(
        *_DECLARED,
        ("hift/rand_ini", "recorded random draw without effect: the down-sampling of the phase cancels it"),
        ("hift/noise", "recorded random draw, used as input"),
        ("hift/stream*_source", "made with noise that was not recorded; used as input"),
    ),
)

COSYVOICE3 = VerifySpec(stages={**_COMMON, "hift": accumulated.hift, "e2e": accumulated.e2e}, declared=_DECLARED)
