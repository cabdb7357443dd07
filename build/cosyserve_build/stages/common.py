"""Stages of versions 2 and 3: frontend, language model, sampling, flow.

A stage yields ``(key, array)`` for one file of vectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from cosyserve.audio.features import fbank, log_mel_128, prompt_mel, resample, subtract_mean
from cosyserve.config import FlowConfig, LlmConfig, expect
from cosyserve.flow.solver import time_grid
from cosyserve.hift.time_stretch import TimeStretch
from cosyserve.llm.interleave import Interleaver
from cosyserve.llm.sampling import draw_inverse_cdf, draw_race, nucleus
from cosyserve.llm.sampling import ras as draw_ras
from cosyserve.llm.scores import top
from cosyserve.runtimes.onnx.graph import OnnxGraph
from cosyserve_build.probes import Array, FlowRun, LlmProbe
from cosyserve_build.recorded import RecordedSet

Produced = Iterator[tuple[str, Array]]
Stage = Callable[[Any], Produced]
"""Takes a set of the class `VerifySpec.opens`."""


def heard(data: RecordedSet) -> Generator[tuple[str, Array], None, tuple[Array, Array]]:
    """Produce the frontend's stages; return speech tokens [1, n] and mel [1, frames, mels] of the prompt."""
    config, recorded = data.bundle.config, data.vectors["frontend"]
    for index, case in enumerate(data.cases["token_cases"]):
        yield f"text_ids_{index:02d}", np.asarray(data.tokenizer.encode(case["text"]), np.int32)
    yield "prompt_text_ids", np.asarray([data.text("prompt_text")], np.int32)
    yield "tts_text_ids", np.asarray([data.text("tts_text")], np.int32)
    yield f"wav_{data.rate // 1000}k", resample(data.prompt, data.rate, data.rate)[None]
    energies = fbank(recorded["wav_16k"][0])
    yield "fbank_raw", energies
    yield "fbank_cmn", subtract_mean(energies)
    yield "spk_embedding", OnnxGraph(data.bundle.campplus).first(recorded["fbank_cmn"][None])
    yield "logmel128", log_mel_128(recorded["wav_16k"][0]).reshape(1, 128, -1)
    log_mel = recorded["logmel128"]
    length = np.asarray([log_mel.shape[2]], np.int32)
    tokens = OnnxGraph(data.bundle.speech_tokenizer).first(log_mel, length).reshape(1, -1).astype(np.int32)
    return tokens, prompt_mel(recorded["wav_24k"][0], config.mel)[None]


def frontend(data: RecordedSet) -> Produced:
    tokens, mel = yield from heard(data)
    yield "speech_token_full", tokens
    yield "speech_feat_full", mel
    ratio = expect(FlowConfig, data.bundle.config.flow).ratio
    aligned = min(mel.shape[1] // ratio, tokens.shape[1])
    yield "speech_token", tokens[:, :aligned]
    yield "speech_feat", mel[:, : aligned * ratio]


def llm(data: RecordedSet) -> Produced:
    recorded, model = data.vectors["llm"], data.llm
    prompt_text, text = data.text("prompt_text"), data.text("tts_text")
    embeds = model.prompt([*prompt_text, *text], data.prompt_speech)
    yield "lm_input", embeds[None]
    yield "hidden_prefill", model.hidden(embeds)[None]
    tokens, steps = data.greedy
    logits = np.stack(steps[: len(recorded["logits"])])
    yield "logits", logits
    yield "logp", torch.from_numpy(logits[: len(recorded["logp"])]).log_softmax(-1).numpy()
    yield "greedy_tokens", np.asarray(tokens, np.int32)
    yield from _llm_modes(data, text)
    for case in data.cases["bistream"]:
        yield from _bistream(data, case)


def _llm_modes(data: RecordedSet, text: list[int]) -> Produced:
    model = data.llm
    crossed, instruct = data.text("cross_lingual_text"), data.tokenizer.encode(data.cases["texts"]["instruct_text"])
    runs: dict[str, tuple[list[int], list[int], list[int]]] = {
        "cross_lingual": ([], crossed, []),
        "instruct2": (instruct, text, []),
        "sft": ([], text, []),
    }
    stored = _stored_prompt(data)
    if stored:
        runs["zero_shot_spk"] = (stored[0], text, stored[1])
    yield "lm_input_instruct2", model.prompt([*instruct, *text], [])[None]
    # Recorded runs were cut at one common length; a shorter one ended by itself.
    most = max(len(v) for k, v in data.vectors["llm"].items() if k.startswith("greedy_tokens_"))
    for mode, (before, spoken, speech) in runs.items():
        tokens, _ = model.greedy(model.prompt([*before, *spoken], speech), len(spoken), most)
        yield f"greedy_tokens_{mode}", np.asarray(tokens, np.int32)


def _stored_prompt(data: RecordedSet) -> tuple[list[int], list[int]] | None:
    """Return text and speech tokens of the stored speaker whose prompt has the length in the manifest."""
    shapes = data.cases.get("modes", {}).get("zero_shot_spk", {})
    keys = ("prompt_text", "llm_prompt_speech_token")
    for speaker in data.bundle.spk2info().values():
        prompt = [np.asarray(speaker[key]) for key in keys if key in speaker]
        if [list(part.shape) for part in prompt] == [shapes.get(key) for key in keys]:
            text, speech = ([int(token) for token in part[0]] for part in prompt)
            return text, speech
    return None


def _bistream(data: RecordedSet, case: dict[str, Any]) -> Produced:
    model, tag = data.llm, f"bistream_{case['tag']}"
    recorded = data.vectors["llm"]
    prompt_text, speech = (
        [int(token) for token in recorded[f"{tag}_prompt_{kind}"][0]] for kind in ("text_ids", "speech_token")
    )
    model.reset()
    inputs: list[Array] = []
    prefix = model.config.prefix(prompt_text)
    run = Interleaver(model.config, prompt_text[prefix:], speech, prompt_text[:prefix], as_upstream=True)
    sample = _scripted(case["sampler"], model) if "sampler" in case else _greedy(model)

    def speak() -> Iterator[int]:
        history: list[int] = []
        for text in [*case["text_pieces"], None]:
            if text is None:
                run.end()
            else:
                run.add(data.tokenizer.encode(text))
            while piece := run.next():
                inputs.append(model.embed(np.asarray(piece.ids, np.int64)))
                logits = model.forward(inputs[-1])
                token = sample(logits, history, run.open) if piece.draws else model.config.fill
                history.append(token)
                if token == model.config.eos and not run.open:
                    return
                if piece.draws:
                    run.take(token)
                if token < model.config.end:
                    yield token

    emitted = list(islice(speak(), len(recorded[f"{tag}_emitted"]) + 1))
    yield f"{tag}_emitted", np.asarray(emitted, np.int32)
    yield f"{tag}_forward_lengths", np.asarray([len(embeds) for embeds in inputs], np.int32)
    yield f"{tag}_first_input", inputs[0][None]


_Sample = Callable[["Array", Sequence[int], bool], int]


def _greedy(model: LlmProbe) -> _Sample:
    return lambda logits, history, hold: model.argmax(logits, hold=hold)


def _scripted(script: str, model: LlmProbe) -> _Sample:
    """Parse the sampler that the manifest describes in words; ``ValueError`` for an unknown description."""
    ids = re.match(r"argmax over ids below (\d+)", script)
    ending = re.search(r"sampler call number (\d+) of that last phase returns the end token", script)
    filling = re.search(r"the (\d+)\w+ sampler call of the run returns the fill token", script)
    if ids is None or ending is None:
        raise ValueError(f"unknown sampler script: {script}")
    below, end_at, fill_at = int(ids[1]), int(ending[1]), int(filling[1]) if filling else 0
    calls = {"all": 0, "last phase": 0}

    def sample(logits: Array, _: Sequence[int], hold: bool) -> int:
        calls["all"] += 1
        calls["last phase"] += not hold
        if calls["all"] == fill_at:
            return model.config.fill
        return model.config.eos if calls["last phase"] == end_at else int(logits[:below].argmax())

    return sample


def ras(data: RecordedSet) -> Produced:
    config, recorded = expect(LlmConfig, data.bundle.config.llm), data.vectors["ras"]
    count, width = recorded["nucleus_ids"].shape
    ids = np.full((count, width), -1, np.int32)
    probs = np.full((count, width), np.nan, np.float32)
    race, fallback, inverse = np.zeros(count, np.int32), np.zeros(count, np.bool_), np.zeros(count, np.int32)
    lengths = (recorded["history"] >= 0).sum(axis=1).astype(np.int32)
    for row in range(count):
        logits = recorded["logp"][row].copy()
        if recorded["ignore_eos"][row]:
            logits[config.end] = -np.inf
        history = recorded["history"][row, max(0, lengths[row] - config.win_size) : lengths[row]].tolist()
        (likeliest,), (mass,) = top(logits[None], config.top_k)
        kept = nucleus(mass, config.top_p)
        ids[row, :kept], probs[row, :kept] = likeliest[:kept], mass[:kept]

        def full(logits: Array = logits) -> Array:
            return logits

        def draw_by_race(p: Array, again: bool, row: int = row) -> int:
            fallback[row] |= again
            return draw_race(p, recorded["race_q_full" if again else "race_q_nucleus"][row, : len(p)])

        def draw_by_inverse(p: Array, again: bool, row: int = row) -> int:
            return draw_inverse_cdf(p, float(recorded["cdf_u"][row, int(again)]))

        race[row] = draw_ras(likeliest, mass, full, history, draw_by_race, config)
        inverse[row] = draw_ras(likeliest, mass, full, history, draw_by_inverse, config)
    yield "history_len", lengths
    yield "nucleus_ids", ids
    yield "nucleus_probs", probs
    yield "race_token", race
    yield "fallback_used", fallback
    yield "cdf_token", inverse


def flow(data: RecordedSet) -> Produced:
    recorded, flow = data.vectors["flow"], data.flow
    yield "spks", flow.speaker()
    yield "noise", flow.noise[None, :, : recorded["noise"].shape[2]]
    yield "t_steps", np.asarray([t for t, _ in time_grid(flow.config.steps)], np.float32)
    for case in data.cases["flow_cases"]:
        run, name = _flow_case(data, case), case["name"]
        yield f"{name}_encoder_out", run.hidden
        yield f"{name}_mu", run.mu
        yield f"{name}_cond", run.cond
        yield f"{name}_euler_states", run.states
        yield f"{name}_mel", run.mel
    yield from _estimator(data)


def _flow_case(data: RecordedSet, case: dict[str, Any]) -> FlowRun:
    tokens = data.vectors["flow"]["token"][0, : case["n_tokens"]]
    return data.flow.run(tokens, streaming=case["streaming"], finalize=case["finalize"])


def _estimator(data: RecordedSet) -> Produced:
    """Produce one recorded estimator call of a case; its second row is the unconditional one."""
    recorded, flow = data.vectors["flow"], data.flow
    frames = recorded["est_x"].shape[2]
    run = next(
        run for run in (_flow_case(data, case) for case in data.cases["flow_cases"]) if run.mu.shape[2] == frames
    )
    times = np.asarray([t for t, _ in time_grid(flow.config.steps)])
    step = int(np.abs(times - recorded["est_t"][0]).argmin())

    def conditional(tensor: Array) -> Array:
        return np.concatenate([tensor, np.zeros_like(tensor)])

    yield "est_x", np.stack([run.inputs[step]] * 2)
    yield "est_mask", np.ones((2, 1, frames), np.float32)
    yield "est_mu", conditional(run.mu)
    yield "est_t", np.full(2, times[step], np.float32)
    yield "est_spks", conditional(flow.speaker())
    yield "est_cond", conditional(run.cond)
    inputs = {name: recorded[f"est_{name}"] for name in ("x", "mu", "t", "spks", "cond")}
    yield "est_out_streaming", flow.estimate(inputs, chunk=flow.config.frame_chunk)
    yield "est_out_offline", flow.estimate(inputs, chunk=frames)


def offline(data: RecordedSet) -> Produced:
    """Produce whole runs without streaming, at each speed."""
    recorded, hift, cases = data.vectors["e2e"], data.hift, data.cases["e2e"]
    yield "offline_mel", data.flow.run(recorded["tokens"], streaming=False, finalize=True).mel
    mel = recorded["offline_mel"]
    yield "offline_source", hift.source(hift.f0(mel))
    yield "offline_pcm", hift.wave(mel, recorded["offline_source"])
    for name in cases:
        speed = re.fullmatch(r"offline_speed_([\d.]+)", name)
        if speed:
            stretch = TimeStretch(mel.shape[1], float(speed[1]), whole=True)
            yield f"offline_speed{speed[1].replace('.', '')}_pcm", hift.wave(stretch.step(mel[0], final=True)[None])
