"""Stages of CosyVoice 1. A stage yields ``(key, array)`` for one file of vectors.

Where the server differs from upstream, these stages reproduce upstream: the prompt mel from 24 kHz samples by an
extractor for 22.05 kHz (the server resamples first), and cross-fades whose weights sum to 1.08.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from cosyserve.config import TransformerConfig, WindowFlowConfig, expect
from cosyserve.flow.solver import time_grid
from cosyserve.flow.stream import FlowVoice
from cosyserve.text.normalize import contains_chinese, normalize
from cosyserve.text.special_tokens import LANGUAGE_TAGS
from cosyserve_build.probes import Array, Join
from cosyserve_build.probes1 import RelativeLlmProbe, WindowProbe, WindowRun
from cosyserve_build.recorded import RecordedSet
from cosyserve_build.stages.common import Produced, heard

_NOBODY: Array = np.zeros(0, np.float32)


class CosyVoice1Set(RecordedSet):
    """Set of version 1; only its ``frontend.npz`` has the prompt."""

    @cached_property
    def opened(self) -> RelativeLlmProbe:
        """Runs of the language model."""
        return RelativeLlmProbe(expect(TransformerConfig, self.bundle.config.llm), self.bundle.llm())

    @cached_property
    def windows(self) -> WindowProbe:
        """Runs of the flow with the recorded voice and noise."""
        config, heard = expect(WindowFlowConfig, self.bundle.config.flow), self.vectors["frontend"]
        voice = FlowVoice(heard["speech_token"][0], heard["speech_feat"][0], self.speaker)
        return WindowProbe(config, self.bundle.flow(), voice, self.vectors["flow"]["noise"][0])

    @property
    def speaker(self) -> Array:
        """Speaker embedding of the prompt, [192]."""
        embedding: Array = self.vectors["frontend"]["spk_embedding"][0]
        return embedding

    @cached_property
    def offline(self) -> WindowRun:
        """Run of the whole utterance in one window."""
        (run,) = self.windows.run(self.vectors["e2e"]["tokens"], streaming=False)
        return run

    @cached_property
    def zero_shot(self) -> tuple[list[int], list[Array]]:
        """Tokens and logits of the zero-shot run."""
        return self.opened.greedy(self.opening, len(self.text("tts_text")))

    @property
    def opening(self) -> Array:
        """Input embeddings of the zero-shot run."""
        return self.opened.opening(self.text("prompt_text"), self.text("tts_text"), self.prompt_speech, self.speaker)


def frontend(data: CosyVoice1Set) -> Produced:
    """Produce the same as later versions, but prompt mel and tokens are not cut to a common length."""
    tokens, mel = yield from heard(data)
    yield "speech_token", tokens
    yield "speech_feat", mel


def llm(data: CosyVoice1Set) -> Produced:
    """Produce prompts, states and greedy runs of every mode."""
    recorded, model = data.vectors["llm"], data.opened
    opening = data.opening
    yield "lm_input", opening[None]
    yield "hidden_prefill", model.hidden(opening)[None]
    tokens, steps = data.zero_shot
    logits = np.stack(steps[: len(recorded["logits"])])
    yield "logits", logits
    yield "logp", torch.from_numpy(logits[: len(recorded["logp"])]).log_softmax(-1).numpy()
    yield "greedy_tokens", np.asarray(tokens, np.int32)
    text = data.text("tts_text")
    instruct = data.tokenizer.encode(normalize(data.cases["texts"]["instruct_text"], lambda spoken: spoken))
    runs: dict[str, list[tuple[list[int], list[int], Array]]] = {
        "sft": [([], text, speaker) for speaker in _stored_speakers(data)],
        "instruct": [(instruct, text, _NOBODY)],
        "cross_lingual": [([], crossed, data.speaker) for crossed in _crossed(data, text)],
    }
    # Recorded runs were cut at one common length; a shorter one ended by itself.
    most = max(len(v) for k, v in recorded.items() if k.startswith("greedy_tokens_"))
    for mode, candidates in runs.items():
        if f"greedy_tokens_{mode}" not in recorded:
            continue
        for before, spoken, speaker in candidates:
            tokens, _ = model.greedy(model.opening(before, spoken, [], speaker), len(spoken), most)
            yield f"greedy_tokens_{mode}", np.asarray(tokens, np.int32)
            if tokens == recorded[f"greedy_tokens_{mode}"].tolist():
                break


def _stored_speakers(data: CosyVoice1Set) -> list[Array]:
    """Return the candidate embeddings of mode sft; sets do not say which speaker was used."""
    embeddings = (entry.get("embedding") for entry in data.bundle.spk2info().values())
    return [np.asarray(embedding).reshape(-1) for embedding in embeddings if embedding is not None]


def _crossed(data: CosyVoice1Set, text: list[int]) -> list[list[int]]:
    """Return candidate texts of the cross-lingual run: the recorded one, or the text after each language tag."""
    if "cross_lingual_text" in data.cases["texts"]:
        return [data.text("cross_lingual_text")]
    likely = "<|zh|>" if contains_chinese(data.cases["texts"]["tts_text"]) else "<|en|>"
    tags = sorted(LANGUAGE_TAGS, key=lambda tag: tag != likely)
    return [[*data.tokenizer.encode(tag), *text] for tag in tags]


def flow(data: CosyVoice1Set) -> Produced:
    """Produce the offline run, and one of its estimator calls."""
    recorded, windows, run = data.vectors["flow"], data.windows, data.offline
    yield "spks", windows.speaker()
    yield "encoder_out", run.hidden
    yield "mu", run.mu
    yield "cond", run.cond
    yield "mel", run.mel
    times = np.asarray([t for t, _ in time_grid(windows.config.steps)])
    step = int(np.abs(times - recorded["est_t"][0]).argmin())

    def conditional(tensor: Array) -> Array:
        return np.concatenate([tensor, np.zeros_like(tensor)])

    yield "est_x", np.stack([run.inputs[step]] * 2)
    yield "est_mask", np.ones((2, 1, run.mu.shape[2]), np.float32)
    yield "est_mu", conditional(run.mu)
    yield "est_t", np.full(2, times[step], np.float32)
    yield "est_spks", conditional(windows.speaker())
    yield "est_cond", conditional(run.cond)
    yield "est_out", windows.estimate({name: recorded[f"est_{name}"] for name in ("x", "mu", "t", "spks", "cond")})


def hift(data: CosyVoice1Set) -> Produced:
    """Produce the vocoder's output from the recorded source, whose random draws were not recorded."""
    recorded = data.vectors["hift"]
    yield "f0", data.hift.f0(recorded["mel"])
    yield "wav", data.hift.wave(recorded["mel"], recorded["source"])


def e2e(data: CosyVoice1Set) -> Produced:
    """Produce the whole utterance, and its windows with upstream's cross-fades of mel frames and of samples."""
    recorded, hift, calls = data.vectors["e2e"], data.hift, data.cases["e2e"]["stream"]
    yield "tokens", np.asarray(data.zero_shot[0], np.int32)
    mel = data.vectors["flow"]["mel"]
    yield "offline_source", hift.source(hift.f0(mel))
    yield "offline_pcm", hift.wave(mel, recorded["offline_source"])

    config, frame = data.windows.config, hift.config.frame
    shared = config.frames(config.overlap)
    held = calls[0]["hift_mel_frames"] * frame - calls[0]["emitted_samples"]
    fade, join = Join(shared), Join(held)
    vocoded = recorded["stream0_hift_mel"][:, :, :0]
    before = np.zeros((1, 1, 0), np.float32)
    for index, (call, run) in enumerate(zip(calls, data.windows.run(recorded["tokens"], streaming=True), strict=True)):
        last = call["finalize"]
        yield f"stream{index}_mel", run.mel
        faded = fade(recorded[f"stream{index}_mel"][0], last=last)[None]
        cached = call["hift_mel_frames"] - faded.shape[2]
        yield f"stream{index}_hift_mel", np.concatenate([vocoded[:, :, vocoded.shape[2] - cached :], faded], axis=2)

        vocoded = recorded[f"stream{index}_hift_mel"]
        head = before[:, :, max(0, before.shape[2] - held) :]
        own = hift.source(hift.f0(vocoded))
        yield f"stream{index}_source", np.concatenate([head, own[:, :, head.shape[2] :]], axis=2)
        before = recorded[f"stream{index}_source"]
        yield f"stream{index}_pcm", join(hift.wave(vocoded, before), last=last)
