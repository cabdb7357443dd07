"""Compare our stages with the tensors that the original implementation recorded from the same bundle.

A set holds ``bundle/``, ``vectors/*.npz``, ``manifest.json``, ``prompt.wav`` and ``prompt.txt``. Each stage is fed the
recorded inputs of that stage, so a miss points at the stage that broke. Sizes, chunk grids, prompt lengths and cases
come from the bundle, the vectors and the manifest. A recorded tensor that nothing here produces is a miss.

The networks take no attention masks: streaming runs them chunk by chunk on the grid counted from the first prompt
token, full attention is one call. Upstream's cross-fade between vocoder windows is rebuilt here to check the windows
under it; the server itself joins exactly instead.
"""

from __future__ import annotations

import fnmatch
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.audio.features import fbank, log_mel_128, prompt_mel, resample, subtract_mean
from cosyserve.bundle import Bundle, StateDict, read
from cosyserve.config import FlowConfig, LlmConfig
from cosyserve.errors import BundleError
from cosyserve.flow.encoder import FlowEncoder
from cosyserve.flow.solver import time_grid
from cosyserve.flow.unet import GuidedFlow, UNet, tail_channels
from cosyserve.hift.generator import Decoder, F0Predictor
from cosyserve.hift.source import HarmonicSource
from cosyserve.limits import MAX_TOKENS_PER_TEXT_TOKEN, MIN_TOKENS_PER_TEXT_TOKEN
from cosyserve.llm.bistream import Interleaver
from cosyserve.llm.qwen2 import SpeechLM
from cosyserve.llm.sampling import draw_inverse_cdf, draw_race, nucleus, ras, softmax
from cosyserve.text.normalize import normalize
from cosyserve.text.split import segments
from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.prepare import flow_noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Produced = Iterator[tuple[str, "Array"]]

TOLERANCES: tuple[tuple[str, float], ...] = (
    ("frontend/wav_*", 1e-5),
    ("frontend/fbank_*", 1e-3),  # logarithms of energies near the float32 noise of an FFT
    ("frontend/logmel128", 1e-3),
    ("frontend/speech_feat*", 1e-3),
    ("flow/prompt_feat", 1e-3),
    ("flow/*_euler_states", 2e-4),
    ("flow/est_x", 2e-4),
    ("hift/*f0", 1e-2),
    ("hift/source", 5e-3),
    ("hift/*wav*", 1e-5),
    ("hift/speech_window", 1e-6),
    ("e2e/*_source", 2e-2),  # upstream sums phases of seconds in float32
    ("e2e/*_pcm", 5e-3),
    ("*", 1e-4),
)
"""Largest absolute error of float tensors, first match counts; integers must be equal."""

_FED = "recorded input of the sampling cases: only fed in"
DECLARED: tuple[tuple[str, str], ...] = (
    ("ras/logp", _FED),
    ("ras/history", _FED),
    ("ras/ignore_eos", _FED),
    ("ras/race_q_*", _FED),
    ("ras/cdf_u", _FED),
    ("hift/noise", "recorded random draw: only fed in"),
    ("hift/rand_ini", "recorded random draw without effect: the down-sampling of the phase cancels it"),
    ("hift/stream*_source", "made with noise that was not recorded: only fed in"),
)
"""Recorded tensors that no stage produces, with the reason."""

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
    produced: dict[str, Array] = {}
    failures: dict[str, str] = {}
    with torch.no_grad():
        for part, stage in STAGES.items():
            try:
                for key, value in stage(data):
                    produced[f"{part}/{key}"] = value
            except Exception as problem:  # a broken stage is a miss of its tensors, not the end of the report
                failures[part] = f"{type(problem).__name__}: {problem}"
    rows: list[Row] = []
    declared: list[tuple[str, str]] = []
    for name, recorded in data.recorded():
        reason = next((reason for pattern, reason in DECLARED if fnmatch.fnmatch(name, pattern)), None)
        if reason is not None and recorded is not None:
            declared.append((name, reason))
        else:
            rows.append(_compare(name, recorded, produced.get(name), failures.get(name.split("/")[0], "")))
    return Report(tuple(rows), tuple(declared))


def _compare(name: str, recorded: Array | None, ours: Array | None, failure: str) -> Row:
    if recorded is None:
        return Row(name, (), None, 0.0, False, "listed in the manifest, but not recorded")
    exact = recorded.dtype.kind in "biu"
    tolerance = 0.0 if exact else next(value for pattern, value in TOLERANCES if fnmatch.fnmatch(name, pattern))

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
    """A set's files, and the networks of its bundle, built when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
            self.cases: dict[str, Any] = self.manifest["cases"]
        except (OSError, ValueError, KeyError) as problem:
            raise BundleError(f"manifest.json: unreadable: {type(problem).__name__}") from problem
        self.bundle: Bundle = read(folder / "bundle")
        self.vectors: dict[str, dict[str, Array]] = {}
        for path in sorted((folder / "vectors").glob("*.npz")):
            try:
                with np.load(path) as archive:
                    self.vectors[path.stem] = dict(archive.items())
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
                raise BundleError(f"vectors/{path.name}: unreadable: {problem}") from problem

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
        return FlowProbe(
            self.bundle.config.flow,
            self.bundle.flow(),
            prompt=recorded["prompt_token"][0],
            mel=torch.from_numpy(recorded["prompt_feat"]).mT,
            embedding=torch.from_numpy(recorded["spk_raw"]),
        )

    @cached_property
    def hift(self) -> HiftProbe:
        return HiftProbe(self.bundle)

    @cached_property
    def offline_mel(self) -> Tensor:
        return self.flow.run(self.vectors["e2e"]["tokens"], streaming=False, finalize=True).new_mel


def _network(module: nn.Module, state: StateDict, keep: Callable[[str], bool]) -> Any:
    module.load_state_dict({key: value for key, value in state.items() if keep(key)})
    return module.eval()


class LlmProbe:
    """Greedy and scripted runs of `SpeechLM`."""

    OUTSIDE = ("llm_embedding.", "speech_embedding.", "llm.model.model.embed_tokens.")

    def __init__(self, config: LlmConfig, state: StateDict) -> None:
        self.config = config
        self.model: SpeechLM = _network(SpeechLM(config), state, lambda key: not key.startswith(self.OUTSIDE))
        special, speech, text = (state[f"{name}weight"].numpy() for name in self.OUTSIDE)
        self.start, self.task, self.speech, self.text = special[:1], special[1:2], speech, text
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        shape = (1, self.config.kv_heads, 256, self.config.head_dim)
        self.keys = [torch.zeros(shape) for _ in range(self.config.layers)]
        self.values = [torch.zeros(shape) for _ in range(self.config.layers)]
        self.length = 0

    def prompt(self, text: Sequence[int], speech: Sequence[int]) -> Array:
        """Input embeddings [n, hidden]."""
        return np.concatenate([self.start, self.embed_text(text), self.task, self.embed_speech(speech)])

    def embed_text(self, ids: Sequence[int]) -> Array:
        return cast("Array", self.text[np.asarray(ids, np.int64)])

    def embed_speech(self, ids: Sequence[int]) -> Array:
        return cast("Array", self.speech[np.asarray(ids, np.int64)])

    def hidden(self, embeds: Array) -> Tensor:
        """Append positions [n, hidden] and return their states after the final norm, [1, n, hidden]."""
        stop = self.length + len(embeds)
        while stop > self.keys[0].shape[2]:
            self.keys = [torch.cat([k, torch.zeros_like(k)], dim=2) for k in self.keys]
            self.values = [torch.cat([v, torch.zeros_like(v)], dim=2) for v in self.values]
        hidden, new_k, new_v = self.model.hidden(
            torch.from_numpy(embeds)[None], torch.tensor([self.length]), self.keys, self.values
        )
        for past, new in zip([*self.keys, *self.values], [*new_k, *new_v], strict=True):
            past[:, :, self.length : stop] = new
        self.length = stop
        return hidden

    def forward(self, embeds: Array) -> Array:
        """Append positions and return the logits [V] of the last one."""
        logits: Array = self.model.llm_decoder(self.hidden(embeds)[0, -1]).numpy()
        return logits

    def greedy(self, embeds: Array, texts: int, limit: int | None = None) -> tuple[list[int], list[Array]]:
        """Tokens without the end, and the raw logits of every step; the length rules count `texts` text ids."""
        self.reset()
        tokens: list[int] = []
        logits: list[Array] = []
        most = MAX_TOKENS_PER_TEXT_TOKEN * texts if limit is None else limit
        while len(tokens) < most:
            logits.append(self.forward(embeds))
            token = self.argmax(logits[-1], hold=len(tokens) < MIN_TOKENS_PER_TEXT_TOKEN * texts)
            if token >= self.config.end:
                break
            tokens.append(token)
            embeds = self.embed_speech([token])
        return tokens, logits

    def argmax(self, logits: Array, *, hold: bool) -> int:
        """The likeliest id; `hold` forbids the end id alone, as upstream does."""
        if hold:
            logits = logits.copy()
            logits[self.config.end] = -np.inf
        return int(logits.argmax())


@dataclass(frozen=True)
class FlowRun:
    mu: Tensor  # [1, mels, T]
    hidden: Tensor  # [1, T, width]
    cond: Tensor  # [1, mels, T]
    inputs: Tensor  # [steps, mels, T]: the state before each Euler step
    states: Tensor  # [steps, mels, T]: and after it
    prompt_frames: int

    @property
    def new_mel(self) -> Tensor:
        """[1, mels, frames] without the prompt."""
        return self.states[-1:, :, self.prompt_frames :]


@dataclass
class _Past:
    """Tails, keys and values of the estimator's two rows."""

    tails: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, config: FlowConfig) -> _Past:
        none = [torch.zeros(2, config.unet_heads, 0, config.unet_head_dim) for _ in range(config.attentions)]
        return cls([torch.zeros(2, channels, 2) for channels in tail_channels(config)], none, list(none))

    @property
    def arguments(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return self.tails, self.keys, self.values

    def extend(self, tails: list[Tensor], keys: list[Tensor], values: list[Tensor]) -> None:
        self.tails, self.keys, self.values = tails, _extended(self.keys, keys), _extended(self.values, values)


def _extended(past: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [torch.cat(pair, dim=2) for pair in zip(past, new, strict=True)]


class FlowProbe:
    """Chunk-wise or one-call runs of encoder and estimator, keeping what passes between them."""

    def __init__(self, config: FlowConfig, state: StateDict, prompt: Array, mel: Tensor, embedding: Tensor) -> None:
        self.config, self.prompt, self.mel, self.embedding = config, prompt, mel, embedding
        behind = ("decoder.", "spk_embed_affine_layer.")
        self.encoder: FlowEncoder = _network(FlowEncoder(config), state, lambda key: not key.startswith(behind))
        self.guided: GuidedFlow = _network(GuidedFlow(config), state, lambda key: key.startswith(behind))
        self.unet = cast(UNet, self.guided.decoder["estimator"])
        self.noise = flow_noise(config.mels)[None]
        self.runs: dict[tuple[bytes, bool, bool], FlowRun] = {}

    def run(self, tokens: Array, *, streaming: bool, finalize: bool) -> FlowRun:
        """One upstream call: prompt and `tokens` [n] to mel; without `finalize` the last tokens are context only."""
        key = (tokens.astype(np.int64).tobytes(), streaming, finalize)
        if key not in self.runs:
            mu, hidden = self.encode(np.concatenate([self.prompt, tokens]), streaming, finalize)
            self.runs[key] = self.solve(mu, hidden, streaming)
        return self.runs[key]

    def encode(self, tokens: Array, streaming: bool, finalize: bool) -> tuple[Tensor, Tensor]:
        """mu [1, mels, T] and the hidden states behind it [1, T, width]."""
        config, ahead = self.config, self.config.lookahead
        count = len(tokens) - (0 if finalize else ahead)
        ids = torch.zeros(1, len(tokens) + ahead, dtype=torch.int64)
        ids[0, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        valid = (torch.arange(ids.shape[1]) < len(tokens)).float()[None]
        none = torch.zeros(1, config.heads, 0, config.width // config.heads)
        keys = [none] * (config.blocks + config.up_blocks)
        values = list(keys)
        tails = torch.zeros(1, config.width, 2), torch.zeros(1, config.width, 2 * config.ratio)
        pieces: list[Tensor] = []
        for start, stop in _spans(count, config.chunk if streaming else count):
            window = slice(stop, stop + ahead)
            hidden, *rest, new_k, new_v = self.encoder.hidden(
                ids[:, start:stop], ids[:, window], valid[:, window], *tails, keys, values
            )
            tails = cast("tuple[Tensor, Tensor]", tuple(rest))
            keys, values = _extended(keys, new_k), _extended(values, new_v)
            pieces.append(hidden)
        joined = torch.cat(pieces, dim=1)
        return self.encoder.encoder_proj(joined).mT, joined

    def solve(self, mu: Tensor, hidden: Tensor, streaming: bool) -> FlowRun:
        """Ten Euler steps over each chunk."""
        frames = mu.shape[2]
        cond = torch.zeros_like(mu)
        known = min(self.mel.shape[2], frames)
        cond[:, :, :known] = self.mel[:, :, :known]
        grid = time_grid(self.config.steps)
        pasts = [_Past.empty(self.config) for _ in grid]
        before: list[Tensor] = []
        after: list[Tensor] = []
        for start, stop in _spans(frames, self.config.unet_chunk if streaming else frames):
            x = self.noise[:, :, start:stop]
            states = [x]
            for past, (t, dt) in zip(pasts, grid, strict=True):
                velocity, *new = self.guided(
                    x,
                    mu[:, :, start:stop],
                    cond[:, :, start:stop],
                    self.embedding,
                    torch.tensor([t]),
                    torch.tensor([start]),
                    *past.arguments,
                )
                past.extend(*new)
                x = x + float(dt) * velocity
                states.append(x)
            before.append(torch.cat(states[:-1]))
            after.append(torch.cat(states[1:]))
        return FlowRun(mu, hidden, cond, torch.cat(before, 2), torch.cat(after, 2), self.mel.shape[2])

    def estimate(self, x: Tensor, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor, *, chunk: int) -> Tensor:
        """The bare estimator on two rows [2, mels, T], `chunk` frames a call."""
        past = _Past.empty(self.config)
        pieces: list[Tensor] = []
        for start, stop in _spans(x.shape[2], chunk):
            span = slice(start, stop)
            length = torch.full((2,), start)
            out, *new = self.unet(x[:, :, span], mu[:, :, span], t, spks, cond[:, :, span], length, *past.arguments)
            past.extend(*new)
            pieces.append(out)
        return torch.cat(pieces, dim=2)


def _spans(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, count)) for start in range(0, count, size))


class HiftProbe:
    """The vocoder's networks on whole windows."""

    def __init__(self, bundle: Bundle) -> None:
        config, state = bundle.config.hift, bundle.hift()
        self.config = config
        inner = ("f0_predictor.", "m_source.")
        self.f0: F0Predictor = _network(F0Predictor(config), state, lambda key: key.startswith(inner[0]))
        self.source_net: HarmonicSource = _network(HarmonicSource(config), state, lambda key: key.startswith(inner[1]))
        self.decoder: Decoder = _network(Decoder(config), state, lambda key: not key.startswith(inner))

    def source(self, f0: Tensor, noise: Tensor | None = None) -> Tensor:
        """[1, 1, samples] from f0 [1, T], starting at phase zero; no noise unless given."""
        overtones = self.config.harmonics + 1
        if noise is None:
            noise = torch.zeros(1, f0.shape[1] * self.config.frame, overtones)
        source, _ = self.source_net(f0, torch.zeros(1, overtones, dtype=torch.float64), torch.ones(1), noise)
        return cast(Tensor, source)

    def wave(self, mel: Tensor, source: Tensor) -> Array:
        """[1, samples]."""
        audio: Array = self.decoder(mel, source).numpy()
        return audio


@dataclass
class _Join:
    """Upstream's cross-fade between vocoder windows (upstream utils/common.py :: fade_in_out)."""

    held: int  # samples faded, and held back by every window but the last
    tail: Array | None = None

    def __call__(self, wave: Array, *, last: bool) -> Array:
        joined = wave.astype(np.float64)
        if self.tail is not None:
            window = np.hamming(2 * self.held)
            joined[:, : self.held] = joined[:, : self.held] * window[: self.held] + self.tail * window[self.held :]
        self.tail = joined[:, joined.shape[1] - self.held :]
        emitted = joined if last else joined[:, : joined.shape[1] - self.held]
        return emitted.astype(np.float32)


# --- Stages: each yields (key, array) for one file of vectors -------------------------------------------------------


def _frontend(data: _Set) -> Produced:
    import soundfile

    config, recorded = data.bundle.config, data.vectors["frontend"]
    for index, case in enumerate(data.cases["token_cases"]):
        yield f"text_ids_{index:02d}", np.asarray(data.tokenizer.encode(case["text"]), np.int32)
    yield "prompt_text_ids", np.asarray([data.text("prompt_text")], np.int32)
    yield "tts_text_ids", np.asarray([data.text("tts_text")], np.int32)

    samples, rate = soundfile.read(data.folder / "prompt.wav", dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    yield "wav_16k", resample(mono, rate, 16_000)[None]
    yield "wav_24k", resample(mono, rate, 24_000)[None]

    energies = fbank(recorded["wav_16k"][0])
    yield "fbank_raw", energies
    yield "fbank_cmn", subtract_mean(energies)
    yield "spk_embedding", _onnx(data.bundle.campplus, recorded["fbank_cmn"][None])
    yield "logmel128", log_mel_128(recorded["wav_16k"][0]).reshape(1, 128, -1)
    log_mel = recorded["logmel128"]
    length = np.asarray([log_mel.shape[2]], np.int32)
    tokens = _onnx(data.bundle.speech_tokenizer, log_mel, length).reshape(1, -1)
    mel = prompt_mel(recorded["wav_24k"][0], config.mel)[None]
    yield "speech_token_full", tokens
    yield "speech_feat_full", mel
    aligned = min(mel.shape[1] // config.flow.ratio, tokens.shape[1])
    yield "speech_token", tokens[:, :aligned]
    yield "speech_feat", mel[:, : aligned * config.flow.ratio]


def _onnx(path: Path, *inputs: Array) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    out: Array = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return out


def _llm(data: _Set) -> Produced:
    recorded, model = data.vectors["llm"], data.llm
    prompt_text, text = data.text("prompt_text"), data.text("tts_text")
    speech = [int(token) for token in data.vectors["frontend"]["speech_token"][0]]
    embeds = model.prompt([*prompt_text, *text], speech)
    yield "lm_input", embeds[None]
    model.reset()
    yield "hidden_prefill", model.hidden(embeds).numpy()
    tokens, steps = model.greedy(embeds, len(text))
    logits = np.stack(steps[: len(recorded["logits"])])
    yield "logits", logits
    yield "logp", torch.from_numpy(logits[: len(recorded["logp"])]).log_softmax(-1).numpy()
    yield "greedy_tokens", np.asarray(tokens, np.int32)
    yield from _llm_modes(data, prompt_text, text)
    for case in data.cases["bistream"]:
        yield from _bistream(data, case, prompt_text, speech)


def _llm_modes(data: _Set, prompt_text: list[int], text: list[int]) -> Produced:
    model = data.llm
    crossed, instruct = data.text("cross_lingual_text"), data.tokenizer.encode(data.cases["texts"]["instruct_text"])
    runs: dict[str, tuple[list[int], list[int], list[int]]] = {
        "cross_lingual": ([], crossed, []),
        "instruct2": (instruct, text, []),
        "sft": ([], text, []),
    }
    for speaker in data.bundle.spk2info().values():
        if "prompt_text" in speaker and "llm_prompt_speech_token" in speaker:
            stored = [cast("Array", speaker[key])[0] for key in ("prompt_text", "llm_prompt_speech_token")]
            runs["zero_shot_spk"] = ([int(i) for i in stored[0]], text, [int(i) for i in stored[1]])
            break
    yield "lm_input_instruct2", model.prompt([*instruct, *text], [])[None]
    # Runs were cut at one common length; a shorter one had ended by itself.
    most = max(len(v) for k, v in data.vectors["llm"].items() if k.startswith("greedy_tokens_"))
    for mode, (before, spoken, speech) in runs.items():
        tokens, _ = model.greedy(model.prompt([*before, *spoken], speech), len(spoken), most)
        yield f"greedy_tokens_{mode}", np.asarray(tokens, np.int32)


def _bistream(data: _Set, case: dict[str, Any], prompt_text: list[int], speech: list[int]) -> Produced:
    model, tag = data.llm, f"bistream_{case['tag']}"
    prompt_text = prompt_text[: case["prompt_text_tokens_used"]]
    speech = speech[: case["prompt_speech_tokens_used"]]
    yield f"{tag}_prompt_text_ids", np.asarray([prompt_text], np.int32)
    yield f"{tag}_prompt_speech_token", np.asarray([speech], np.int32)

    model.reset()
    inputs: list[Array] = []

    def forward(embeds: Array) -> Array:
        inputs.append(embeds)
        return model.forward(embeds)

    run = Interleaver(
        model.config,
        start=model.start,
        task=model.task,
        prompt_text=prompt_text,
        prompt_speech=speech,
        embed_text=model.embed_text,
        embed_speech=model.embed_speech,
        forward=forward,
        sample=_scripted(case["sampler"], model) if "sampler" in case else _greedy(model),
    )

    def speak() -> Iterator[int]:
        for piece in case["text_pieces"]:
            yield from run.feed(data.tokenizer.encode(piece))
        yield from run.finish()

    emitted = list(islice(speak(), len(data.vectors["llm"][f"{tag}_emitted"]) + 1))
    yield f"{tag}_emitted", np.asarray(emitted, np.int32)
    yield f"{tag}_forward_lengths", np.asarray([len(embeds) for embeds in inputs], np.int32)
    yield f"{tag}_first_input", inputs[0][None]


_Sample = Callable[["Array", Sequence[int], bool], int]


def _greedy(model: LlmProbe) -> _Sample:
    return lambda logits, _, hold: model.argmax(logits, hold=hold)


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
    rule = {"top_p": config.top_p, "top_k": config.top_k, "win_size": config.win_size, "tau_r": config.tau_r}
    count, width = recorded["nucleus_ids"].shape
    ids = np.full((count, width), -1, np.int32)
    probs = np.full((count, width), np.nan, np.float32)
    race, fallback, inverse = np.zeros(count, np.int32), np.zeros(count, np.bool_), np.zeros(count, np.int32)
    lengths = (recorded["history"] >= 0).sum(axis=1).astype(np.int32)
    for row in range(count):
        logits = recorded["logp"][row].astype(np.float64)
        if recorded["ignore_eos"][row]:
            logits[config.end] = -np.inf
        history = [int(token) for token in recorded["history"][row, : lengths[row]]]
        kept, mass = nucleus(softmax(logits), config.top_p, config.top_k)
        ids[row, : len(kept)], probs[row, : len(kept)] = kept, mass

        def draw_by_race(p: Array, again: bool, row: int = row) -> int:
            fallback[row] |= again
            return draw_race(p, recorded["race_q_full" if again else "race_q_nucleus"][row, : len(p)])

        def draw_by_inverse(p: Array, again: bool, row: int = row) -> int:
            return draw_inverse_cdf(p, float(recorded["cdf_u"][row, int(again)]))

        race[row] = ras(logits, history, draw_by_race, **rule)  # type: ignore[arg-type]
        inverse[row] = ras(logits, history, draw_by_inverse, **rule)  # type: ignore[arg-type]
    yield "history_len", lengths
    yield "nucleus_ids", ids
    yield "nucleus_probs", probs
    yield "race_token", race
    yield "fallback_used", fallback
    yield "cdf_token", inverse


def _flow(data: _Set) -> Produced:
    recorded, flow = data.vectors["flow"], data.flow
    frontend = data.vectors["frontend"]
    yield "spk_raw", _onnx(data.bundle.campplus, frontend["fbank_cmn"][None])
    yield "prompt_token", frontend["speech_token"]
    yield "prompt_feat", frontend["speech_feat"]
    text = data.text("tts_text")
    embeds = data.llm.prompt([*data.text("prompt_text"), *text], [int(token) for token in flow.prompt])
    yield "token", np.asarray([data.llm.greedy(embeds, len(text))[0]], np.int32)
    speaker = flow.guided.spk_embed_affine_layer(F.normalize(flow.embedding, dim=1, eps=1e-12))
    yield "spks", speaker.numpy()
    yield "noise", flow.noise[:, :, : recorded["noise"].shape[2]].numpy()
    yield "t_steps", np.asarray([t for t, _ in time_grid(flow.config.steps)], np.float32)
    for case in data.cases["flow_cases"]:
        tokens = recorded["token"][0, : case["n_tokens"]]
        run = flow.run(tokens, streaming=case["streaming"], finalize=case["finalize"])
        name = case["name"]
        yield f"{name}_encoder_out", run.hidden.numpy()
        yield f"{name}_mu", run.mu.numpy()
        yield f"{name}_cond", run.cond.numpy()
        yield f"{name}_euler_states", run.states.numpy()
        yield f"{name}_mel", run.new_mel.numpy()
    yield from _estimator(data, speaker)


def _estimator(data: _Set, speaker: Tensor) -> Produced:
    """One recorded estimator call inside the first case; its second row is the unconditional one."""
    recorded, flow, case = data.vectors["flow"], data.flow, data.cases["flow_cases"][0]
    tokens = recorded["token"][0, : case["n_tokens"]]
    run = flow.run(tokens, streaming=case["streaming"], finalize=case["finalize"])
    times = np.asarray([t for t, _ in time_grid(flow.config.steps)])
    step = int(np.abs(times - recorded["est_t"][0]).argmin())
    x = run.inputs[step]

    def conditional(tensor: Tensor) -> Array:
        return torch.cat([tensor, torch.zeros_like(tensor)]).numpy()

    yield "est_x", torch.stack([x, x]).numpy()
    yield "est_mask", np.ones((2, 1, x.shape[1]), np.float32)
    yield "est_mu", conditional(run.mu)
    yield "est_t", np.full(2, times[step], np.float32)
    yield "est_spks", conditional(speaker)
    yield "est_cond", conditional(run.cond)
    inputs = {name: torch.from_numpy(recorded[f"est_{name}"]) for name in ("x", "mu", "t", "spks", "cond")}
    yield "est_out_streaming", flow.estimate(**inputs, chunk=flow.config.unet_chunk).numpy()
    yield "est_out_offline", flow.estimate(**inputs, chunk=inputs["x"].shape[2]).numpy()


def _hift(data: _Set) -> Produced:
    recorded, hift = data.vectors["hift"], data.hift
    tensors = {key: torch.from_numpy(value) for key, value in recorded.items()}
    yield "mel", data.offline_mel[:, :, : recorded["mel"].shape[2]].numpy()
    yield "stream_mel", data.offline_mel[:, :, : recorded["stream_mel"].shape[2]].numpy()
    yield "f0", hift.f0(tensors["mel"]).numpy()
    yield "source", hift.source(tensors["f0"], tensors["noise"]).numpy()
    yield "wav", hift.wave(tensors["mel"], tensors["source"])

    held = len(recorded["speech_window"]) // 2
    yield "speech_window", np.hamming(2 * held).astype(np.float32)
    cached, frames = held // hift.config.frame, recorded["stream_mel"].shape[2]
    join = _Join(held)
    stop = 0
    for index in range(sum(bool(re.fullmatch(r"stream\d+_f0", key)) for key in recorded)):
        start = max(0, stop - cached)
        stop = start + recorded[f"stream{index}_f0"].shape[1]
        mel = tensors["stream_mel"][:, :, start:stop]
        wave = hift.wave(mel, tensors[f"stream{index}_source"])
        yield f"stream{index}_f0", hift.f0(mel).numpy()
        yield f"stream{index}_wav_raw", wave
        yield f"stream{index}_wav", join(wave, last=stop == frames)


def _e2e(data: _Set) -> Produced:
    hift, cases = data.hift, data.cases["e2e"]
    tokens = data.vectors["e2e"]["tokens"]
    yield "tokens", data.vectors["flow"]["token"][0]
    mel = data.offline_mel
    source = hift.source(hift.f0(mel))
    yield "offline_mel", mel.numpy()
    yield "offline_source", source.numpy()
    yield "offline_pcm", hift.wave(mel, source)
    for name in cases:
        speed = re.fullmatch(r"offline_speed_([\d.]+)", name)
        if speed:
            faster = F.interpolate(mel, size=int(mel.shape[2] / float(speed[1])), mode="linear")
            wave = hift.wave(faster, hift.source(hift.f0(faster)))
            yield f"offline_speed{speed[1].replace('.', '')}_pcm", wave
    yield from _e2e_stream(data, tokens, cases["stream"])


def _e2e_stream(data: _Set, tokens: Array, calls: Iterable[dict[str, Any]]) -> Produced:
    """Upstream's streaming: each call redoes the flow on the prefix and the vocoder on a window with a cached head."""
    flow, hift = data.flow, data.hift
    window = torch.zeros(1, flow.config.mels, 0)
    source = torch.zeros(1, 1, 0)
    join: _Join | None = None
    for index, call in enumerate(calls):
        run = flow.run(tokens[: call["n_tokens"]], streaming=call["flow_streaming"], finalize=call["finalize"])
        mel = run.new_mel[:, :, flow.config.ratio * call["token_offset"] :]
        cached = call["hift_mel_frames"] - call["new_mel_frames"]
        window = torch.cat([window[:, :, window.shape[2] - cached :], mel], dim=2)
        held = cached * hift.config.frame
        fresh = hift.source(hift.f0(window))
        fresh[:, :, :held] = source[:, :, source.shape[2] - held :]
        source = fresh
        wave = hift.wave(window, source)
        join = join or _Join(call["hift_wav_samples"] - call["emitted_samples"])
        yield f"stream{index}_mel", mel.numpy()
        yield f"stream{index}_source", source.numpy()
        yield f"stream{index}_pcm", join(wave, last=call["finalize"])


STAGES: dict[str, Callable[[_Set], Produced]] = {
    "frontend": _frontend,
    "llm": _llm,
    "ras": _ras,
    "flow": _flow,
    "hift": _hift,
    "e2e": _e2e,
}
"""The stage that produces each file of vectors."""
