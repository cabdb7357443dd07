"""Stages on a runtime as the server loads it, for those recorded tensors that it gives out: mel, samples, logits.

A stage yields ``(key, array)`` for one file of vectors. What passes between the networks is compared by `verify`
without a runtime.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from cosyserve.config import LlmConfig, expect
from cosyserve.flow.stream import FlowStream, FlowVoice
from cosyserve.hift.stream import HiftNetworks, HiftStream
from cosyserve.llm.decoder import Decoder, VocabLayout
from cosyserve.load.flow import load_flow_networks
from cosyserve.load.hift import load_hift_networks
from cosyserve.load.llm import load_decoder
from cosyserve.runtimes.graph import Outputs
from cosyserve.settings import Settings
from cosyserve_build.probes import Array, likeliest, likeliest_id
from cosyserve_build.recorded import RecordedSet
from cosyserve_build.stages.common import Produced, Stage


class OnRuntime:
    """The networks of one runtime, and the stages on them.

    Args:
        settings: weights, runtime and precision.
    """

    def __init__(self, settings: Settings) -> None:
        self._flow = load_flow_networks(settings)
        self._hift = load_hift_networks(settings)
        _, self._llm = load_decoder(settings)

    @property
    def stages(self) -> dict[str, Stage]:
        """By file of vectors."""
        return {"llm": self.llm, "flow": self.flow, "hift": self.hift, "e2e": self.whole}

    def llm(self, data: RecordedSet) -> Produced:
        """Greedy tokens behind the recorded prompt, and their logits."""
        text, prompt = data.text("tts_text"), data.text("prompt_text")
        tokens, logits = _greedy(self._llm, expect(LlmConfig, data.bundle.config.llm), prompt, text, data)
        yield "logits", np.stack(logits[: len(data.vectors["llm"]["logits"])])
        yield "greedy_tokens", np.asarray(tokens, np.int32)

    def flow(self, data: RecordedSet) -> Produced:
        """The mel of each recorded run."""
        tokens = data.vectors["flow"]["token"][0].astype(np.int32)
        for case in data.cases["flow_cases"]:
            stream = FlowStream(self._flow, _voice(data), full=not case["streaming"])
            yield f"{case['name']}_mel", stream.step(tokens[: case["n_tokens"]], case["finalize"])[None]

    def hift(self, data: RecordedSet) -> Produced:
        """Pitch and samples of the recorded mel, with the recorded source."""
        recorded = data.vectors["hift"]
        yield "f0", self._hift.f0({"mel": recorded["mel"]})["f0"]
        yield "wav", _wave(self._hift, recorded["mel"], recorded["source"])

    def whole(self, data: RecordedSet) -> Produced:
        """A whole run without streaming."""
        recorded = data.vectors["e2e"]
        stream = FlowStream(self._flow, _voice(data), full=True)
        yield "offline_mel", stream.step(recorded["tokens"].astype(np.int32), final=True)[None]
        yield "offline_pcm", _wave(self._hift, recorded["offline_mel"], recorded["offline_source"])


def _voice(data: RecordedSet) -> FlowVoice:
    recorded = data.vectors["flow"]
    return FlowVoice(recorded["prompt_token"][0].astype(np.int32), recorded["prompt_feat"][0], recorded["spk_raw"][0])


def _wave(networks: HiftNetworks, mel: Array, source: Array) -> Array:
    """Samples [1, n] of a mel [1, mels, T] with this source [1, 1, n]."""
    phases = np.zeros((1, mel.shape[2], networks.config.harmonics + 1), np.float32)
    given = Outputs(source=source, phases=phases)
    return HiftStream(replace(networks, source=lambda inputs: given), seed=0, noise_gain=0.0).step(mel[0], True)[None]


def _greedy(
    decoder: Decoder, config: LlmConfig, prompt: list[int], text: list[int], data: RecordedSet
) -> tuple[list[int], list[Array]]:
    layout = VocabLayout(config)
    ids = layout.prompt(*(np.asarray(part, np.int32) for part in (prompt, text, data.prompt_speech)))

    def logits(tokens: list[int]) -> Array:
        if tokens:
            position = np.asarray([len(ids) + len(tokens) - 1], np.int64)
            return decoder.step(np.asarray([layout.speech + tokens[-1]], np.int64), position).row(0)
        for start in range(0, len(ids), decoder.prefill_chunk):
            scores = decoder.prefill(0, start, ids[start : start + decoder.prefill_chunk])
        return scores.row(0)

    return likeliest(logits, partial(likeliest_id, end=config.end), config.end, len(text), None)
