"""Compare our stages with the tensors that the original implementation recorded from the same bundle.

A set holds ``bundle/``, ``vectors/*.npz``, ``manifest.json``, ``prompt.wav`` and ``prompt.txt``. Each stage is fed the
recorded inputs of that stage, so a miss points at the stage that broke. Sizes, chunk grids, prompt lengths and cases
come from the bundle, the vectors and the manifest. A recorded tensor that nothing here produces is a miss.

What runs is the server's own code over torch networks (see `probes`). Upstream's cross-fade between vocoder windows is
rebuilt to check the windows under it; the server itself joins exactly instead.
"""

from __future__ import annotations

import fnmatch
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from cosyserve.audio.features import fbank, log_mel_128, prompt_mel, resample, subtract_mean
from cosyserve.bundle import Bundle, read
from cosyserve.errors import BundleError
from cosyserve.flow.solver import time_grid
from cosyserve.flow.stream import FlowVoice
from cosyserve.llm.bistream import Interleaver
from cosyserve.llm.sampling import draw_inverse_cdf, draw_race, nucleus, ras
from cosyserve.llm.scores import top
from cosyserve.runtimes.onnx import OnnxGraph
from cosyserve.text.normalize import normalize
from cosyserve.text.split import segments
from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.probes import Array, FlowProbe, FlowRun, HiftProbe, Join, LlmProbe

Produced = Iterator[tuple[str, Array]]

TOLERANCES: tuple[tuple[str, float], ...] = (
    ("frontend/wav_*", 1e-6),  # the samples of the file
    # Logarithms of quiet bins, where the original's float32 spectrum is noise. Seen with two speakers and prompt rates:
    # 3.9e-4 (the float64 values are as far from the record), 6e-5 and 1.3e-4.
    ("frontend/fbank_*", 1e-3),
    ("frontend/logmel128", 2e-4),
    ("frontend/speech_feat*", 5e-4),
    ("flow/*_euler_states", 2e-4),
    ("flow/est_x", 2e-4),
    ("flow/t_steps", 1e-6),
    ("flow/noise", 0.0),
    ("hift/*f0", 1e-2),
    ("hift/source", 5e-3),
    ("hift/speech_window", 1e-6),
    ("hift/*wav*", 1e-5),
    ("e2e/offline_speed*_pcm", 5e-3),  # its source was not recorded
    ("e2e/*_pcm", 1e-5),
    ("e2e/*_source", 1e-2),
    ("*", 1e-4),
)
"""Largest absolute error of float tensors, first match counts; integers must be equal."""

DRIFTING = ("e2e/offline_speed*_pcm", "e2e/*_source")
"""Made from a pitch that was not recorded, in which the original's float32 noise (5e-4 Hz) moves the phase of the
harmonics ever further: the tolerance is for each second of the signal, up to `DRIFTED`."""

DRIFTED = 0.1
"""Largest tolerance of a drifting tensor: a fifth of the amplitude of a source."""

_FED = "recorded input: only fed in"
_PROMPT = "recorded input: only fed in; the frontend's own is compared"
DECLARED: tuple[tuple[str, str], ...] = (
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
    ("hift/noise", "recorded random draw: only fed in"),
    ("hift/rand_ini", "recorded random draw without effect: the down-sampling of the phase cancels it"),
    ("hift/stream*_source", "made with noise that was not recorded: only fed in"),
)
"""Recorded tensors that no stage produces, with the reason."""

RESAMPLED = "soxr's low-pass filter instead of torchaudio's; the stages behind it are fed the recorded wave"
"""Why the prompt at a rate other than its file's is not compared."""

NAN_PADDED = frozenset({"ras/nucleus_probs"})


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded tensor. The error is None when ours is absent, not finite, or of another shape or kind."""

    name: str
    shape: tuple[int, ...]
    max_abs_error: float | None
    tolerance: float
    passed: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found: one row or one declaration for each recorded tensor."""

    rows: tuple[Row, ...]
    declared: tuple[tuple[str, str], ...]

    @property
    def misses(self) -> int:
        """Rows that did not pass."""
        return sum(not row.passed for row in self.rows)

    def to_json(self) -> str:
        """``{"rows": [{"name", "shape", "max_abs_error", "tolerance", "pass"}], "declared": [..], "misses": n}``."""
        rows = [
            {
                "name": row.name,
                "shape": list(row.shape),
                "max_abs_error": row.max_abs_error,
                "tolerance": row.tolerance,
                "pass": row.passed,
            }
            for row in self.rows
        ]
        declared = [{"name": name, "reason": reason} for name, reason in self.declared]
        return json.dumps({"rows": rows, "declared": declared, "misses": self.misses}, indent=1)

    def table(self) -> str:
        """A line for each tensor, misses with their cause, and a summary line at the end."""
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [f"{'tensor':{width}}  {'shape':>12}  {'max abs error':>13}  {'tolerance':>9}"]
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            error = "-" if row.max_abs_error is None else f"{row.max_abs_error:.1e}"
            verdict = "pass" if row.passed else f"MISS {row.note}".rstrip()
            lines.append(f"{row.name:{width}}  {shape:>12}  {error:>13}  {row.tolerance:>9.0e}  {verdict}")
        lines += [f"{name:{width}}  not compared: {reason}" for name, reason in self.declared]
        return "\n".join([*lines, f"{len(self.rows)} compared, {len(self.declared)} declared, {self.misses} misses"])


def verify(set_folder: Path | str) -> Report:
    """Run every stage on a set's bundle and compare with its vectors.

    Raises:
        BundleError: the set has no readable manifest, or its bundle does not open.
    """
    data = _Set(Path(set_folder))
    declarations = (*DECLARED, *((f"frontend/wav_{rate // 1000}k", RESAMPLED) for rate in data.resampled_rates))
    produced: dict[str, Array] = {}
    failures: dict[str, str] = {}
    for part, stage in STAGES.items():
        try:
            for key, value in stage(data):
                produced[f"{part}/{key}"] = value
        except Exception as problem:  # a broken stage is a miss of its tensors, not the end of the report
            failures[part] = f"{type(problem).__name__}: {problem}"
    rows: list[Row] = []
    declared: list[tuple[str, str]] = []
    for name, recorded in data.recorded():
        reason = next((reason for pattern, reason in declarations if fnmatch.fnmatch(name, pattern)), None)
        if reason is not None and recorded is not None:
            declared.append((name, reason))
        else:
            failure = failures.get(name.split("/")[0], "")
            rows.append(_compare(name, recorded, produced.get(name), failure, data.bundle.config.sample_rate))
    return Report(tuple(rows), tuple(declared))


def _tolerance(name: str, seconds: float) -> float:
    tolerance = next(value for pattern, value in TOLERANCES if fnmatch.fnmatch(name, pattern))
    drifts = any(fnmatch.fnmatch(name, pattern) for pattern in DRIFTING)
    return min(tolerance * max(1.0, seconds), DRIFTED) if drifts else tolerance


def _compare(name: str, recorded: Array | None, ours: Array | None, failure: str, rate: int) -> Row:
    if recorded is None:
        return Row(name, (), None, 0.0, False, "listed in the manifest, but not recorded")
    exact = recorded.dtype.kind in "biu"
    tolerance = 0.0 if exact else _tolerance(name, recorded.shape[-1] / rate)

    def miss(note: str) -> Row:
        return Row(name, recorded.shape, None, tolerance, False, note)

    if ours is None:
        return miss(failure or "no check for this tensor")
    if ours.shape != recorded.shape:
        return miss(f"shape {list(ours.shape)}")
    if exact != (ours.dtype.kind in "biu") or recorded.dtype.kind not in "biuf":
        return miss(f"dtype {ours.dtype} against {recorded.dtype}")
    a, b = recorded.astype(np.float64), ours.astype(np.float64)
    if name in NAN_PADDED:
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return miss("padding differs")
        a, b = np.nan_to_num(a), np.nan_to_num(b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return miss("not finite")
    error = float(np.abs(a - b).max(initial=0.0))
    return Row(name, recorded.shape, error, tolerance, error <= tolerance)


# --- The set and its networks ---------------------------------------------------------------------------------------


class _Set:
    """A set's files, and the probes of its bundle, built when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
            self.cases: dict[str, Any] = self.manifest["cases"]
        except (OSError, ValueError, KeyError) as problem:
            raise BundleError(f"manifest.json: unreadable: {type(problem).__name__}") from problem
        self.bundle: Bundle = read(folder / "bundle")
        try:
            samples, self.rate = soundfile.read(folder / "prompt.wav", dtype="float32", always_2d=True)
        except (OSError, soundfile.LibsndfileError) as problem:
            raise BundleError(f"prompt.wav: unreadable: {problem}") from problem
        self.prompt: Array = samples.mean(axis=1)
        self.vectors: dict[str, dict[str, Array]] = {}
        for path in sorted((folder / "vectors").glob("*.npz")):
            try:
                with np.load(path) as archive:
                    self.vectors[path.stem] = dict(archive.items())
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
                raise BundleError(f"vectors/{path.name}: unreadable: {problem}") from problem

    @property
    def resampled_rates(self) -> list[int]:
        """Rates of the recorded waves that are not the prompt file's."""
        return [rate for rate in (16_000, 24_000) if rate != self.rate]

    def recorded(self) -> Iterator[tuple[str, Array | None]]:
        """Every tensor in the files, then those that only the manifest names."""
        for stem, tensors in self.vectors.items():
            for key, value in tensors.items():
                yield f"{stem}/{key}", value
        for file, tensors in self.manifest.get("vectors", {}).items():
            stem = Path(file).stem
            for key in tensors:
                if key not in self.vectors.get(stem, {}):
                    yield f"{stem}/{key}", None

    def text(self, name: str) -> list[int]:
        """Ids of a text of the manifest, normalised without a number grammar, as it was recorded."""
        spoken = normalize(self.cases["texts"][name], lambda text: text)
        if name == "prompt_text":
            return self.tokenizer.encode(spoken)
        return self.tokenizer.encode(segments(spoken, lambda text: len(self.tokenizer.encode(text)))[0])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_bundle(self.bundle.tokenizer, self.bundle.version)

    @cached_property
    def llm(self) -> LlmProbe:
        return LlmProbe(self.bundle.config.llm, self.bundle.llm())

    @cached_property
    def flow(self) -> FlowProbe:
        recorded = self.vectors["flow"]
        voice = FlowVoice(recorded["prompt_token"][0], recorded["prompt_feat"][0], recorded["spk_raw"][0])
        return FlowProbe(self.bundle.config.flow, self.bundle.flow(), voice)

    @cached_property
    def hift(self) -> HiftProbe:
        return HiftProbe(self.bundle.config.hift, self.bundle.hift())

    @cached_property
    def greedy(self) -> tuple[list[int], list[Array]]:
        """Tokens and logits of the zero-shot run."""
        text = self.text("tts_text")
        return self.llm.greedy(self.llm.prompt([*self.text("prompt_text"), *text], self.prompt_speech), len(text))

    @property
    def prompt_speech(self) -> list[int]:
        return [int(token) for token in self.vectors["frontend"]["speech_token"][0]]


# --- Stages: each yields (key, array) for one file of vectors -------------------------------------------------------


def _frontend(data: _Set) -> Produced:
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
    tokens = OnnxGraph(data.bundle.speech_tokenizer).first(log_mel, length).reshape(1, -1)
    mel = prompt_mel(recorded["wav_24k"][0], config.mel)[None]
    yield "speech_token_full", tokens
    yield "speech_feat_full", mel
    aligned = min(mel.shape[1] // config.flow.ratio, tokens.shape[1])
    yield "speech_token", tokens[:, :aligned]
    yield "speech_feat", mel[:, : aligned * config.flow.ratio]


def _llm(data: _Set) -> Produced:
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


def _llm_modes(data: _Set, text: list[int]) -> Produced:
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
    # Runs were cut at one common length; a shorter one had ended by itself.
    most = max(len(v) for k, v in data.vectors["llm"].items() if k.startswith("greedy_tokens_"))
    for mode, (before, spoken, speech) in runs.items():
        tokens, _ = model.greedy(model.prompt([*before, *spoken], speech), len(spoken), most)
        yield f"greedy_tokens_{mode}", np.asarray(tokens, np.int32)


def _stored_prompt(data: _Set) -> tuple[list[int], list[int]] | None:
    """Text and speech tokens of the stored speaker whose prompt is as long as the manifest says of that mode."""
    shapes = data.cases.get("modes", {}).get("zero_shot_spk", {})
    keys = ("prompt_text", "llm_prompt_speech_token")
    for speaker in data.bundle.spk2info().values():
        prompt = [np.asarray(speaker[key]) for key in keys if key in speaker]
        if [list(part.shape) for part in prompt] == [shapes.get(key) for key in keys]:
            text, speech = ([int(token) for token in part[0]] for part in prompt)
            return text, speech
    return None


def _bistream(data: _Set, case: dict[str, Any]) -> Produced:
    model, tag = data.llm, f"bistream_{case['tag']}"
    recorded = data.vectors["llm"]
    prompt_text, speech = (
        [int(token) for token in recorded[f"{tag}_prompt_{kind}"][0]] for kind in ("text_ids", "speech_token")
    )
    model.reset()
    inputs: list[Array] = []
    run = Interleaver(model.config, prompt_text, speech, as_upstream=True)
    sample = _scripted(case["sampler"], model) if "sampler" in case else _greedy(model)

    def speak() -> Iterator[int]:
        history: list[int] = []
        for text in [*case["text_pieces"], None]:
            if text is None:
                run.end()
            else:
                run.add(data.tokenizer.encode(text))
            while piece := run.next():
                inputs.append(model.networks.embed(np.asarray(piece.ids, np.int64)))
                logits = model.forward(inputs[-1])
                token = sample(logits, history, run.open) if piece.draws else model.config.fill
                history.append(token)
                if token == model.config.end and not run.open:
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
    """The sampler that the manifest describes in words; ``ValueError`` when the words are others."""
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
        return model.config.end if calls["last phase"] == end_at else int(logits[:below].argmax())

    return sample


def _ras(data: _Set) -> Produced:
    config, recorded = data.bundle.config.llm, data.vectors["ras"]
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

        race[row] = ras(likeliest, mass, full, history, draw_by_race, config)
        inverse[row] = ras(likeliest, mass, full, history, draw_by_inverse, config)
    yield "history_len", lengths
    yield "nucleus_ids", ids
    yield "nucleus_probs", probs
    yield "race_token", race
    yield "fallback_used", fallback
    yield "cdf_token", inverse


def _flow(data: _Set) -> Produced:
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


def _flow_case(data: _Set, case: dict[str, Any]) -> FlowRun:
    tokens = data.vectors["flow"]["token"][0, : case["n_tokens"]]
    return data.flow.run(tokens, streaming=case["streaming"], finalize=case["finalize"])


def _estimator(data: _Set) -> Produced:
    """One recorded estimator call inside a case; its second row is the unconditional one."""
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
    yield "est_out_streaming", flow.estimate(inputs, chunk=flow.config.unet_chunk)
    yield "est_out_offline", flow.estimate(inputs, chunk=frames)


def _hift(data: _Set) -> Produced:
    recorded, hift = data.vectors["hift"], data.hift
    yield "f0", hift.f0(recorded["mel"])
    yield "source", hift.source(recorded["f0"], recorded["noise"])
    yield "wav", hift.wave(recorded["mel"], recorded["source"])

    held = len(recorded["speech_window"]) // 2
    yield "speech_window", np.hamming(2 * held).astype(np.float32)
    mels = recorded["stream_mel"]
    lengths = [recorded[f"stream{i}_f0"].shape[1] for i in range(sum(k.endswith("_wav_raw") for k in recorded))]
    # Every window but the first starts with frames that the one before had too.
    cached = (sum(lengths) - mels.shape[2]) // max(1, len(lengths) - 1)
    join = Join(held)
    start = 0
    for index, frames in enumerate(lengths):
        mel = mels[:, :, start : start + frames]
        wave = hift.wave(mel, recorded[f"stream{index}_source"])
        yield f"stream{index}_f0", hift.f0(mel)
        yield f"stream{index}_wav_raw", wave
        yield f"stream{index}_wav", join(wave, last=index == len(lengths) - 1)
        start += frames - cached


def _e2e(data: _Set) -> Produced:
    recorded, hift, cases = data.vectors["e2e"], data.hift, data.cases["e2e"]
    yield "offline_mel", data.flow.run(recorded["tokens"], streaming=False, finalize=True).mel
    mel = recorded["offline_mel"]
    yield "offline_source", hift.source(hift.f0(mel))
    yield "offline_pcm", hift.wave(mel, recorded["offline_source"])
    for name in cases:
        speed = re.fullmatch(r"offline_speed_([\d.]+)", name)
        if speed:
            frames = int(mel.shape[2] / float(speed[1]))
            faster = torch.nn.functional.interpolate(torch.from_numpy(mel), size=frames, mode="linear")
            yield f"offline_speed{speed[1].replace('.', '')}_pcm", hift.wave(faster.numpy())
    yield from _e2e_stream(data, cases["stream"])
    yield "tokens", np.asarray(data.greedy[0], np.int32)


def _e2e_stream(data: _Set, calls: Sequence[dict[str, Any]]) -> Produced:
    """Upstream's streaming: each call redoes the flow on the prefix and the vocoder on a window with a cached head."""
    recorded, flow, hift = data.vectors["e2e"], data.flow, data.hift
    held = calls[0]["hift_wav_samples"] - calls[0]["emitted_samples"]
    join = Join(held)
    window = recorded["stream0_mel"][:, :, :0]
    before = np.zeros((1, 1, 0), np.float32)
    for index, call in enumerate(calls):
        tokens = recorded["tokens"][: call["n_tokens"]]
        run = flow.run(tokens, streaming=call["flow_streaming"], finalize=call["finalize"])
        yield f"stream{index}_mel", run.mel[:, :, flow.config.ratio * call["token_offset"] :]

        cached = call["hift_mel_frames"] - call["new_mel_frames"]
        window = np.concatenate([window[:, :, window.shape[2] - cached :], recorded[f"stream{index}_mel"]], axis=2)
        head = before[:, :, max(0, before.shape[2] - held) :]
        yield f"stream{index}_source", np.concatenate([head, hift.source(hift.f0(window))[:, :, head.shape[2] :]], 2)

        before = recorded[f"stream{index}_source"]
        yield f"stream{index}_pcm", join(hift.wave(window, before), last=call["finalize"])


STAGES: dict[str, Callable[[_Set], Produced]] = {
    "frontend": _frontend,
    "llm": _llm,
    "ras": _ras,
    "flow": _flow,
    "hift": _hift,
    "e2e": _e2e,
}
"""The stage that produces each file of vectors."""
