"""Run the server's own stage objects on torch networks, and record what passes between the networks.

`verify` compares these tensors with the recorded ones. All arrays are numpy, float32 unless stated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from cosyserve import versions
from cosyserve.config import DitFlowConfig, FlowConfig, HiftConfig, LlmConfig, ModelConfig, UNetFlowConfig, expect
from cosyserve.flow.encoders import ConformerGraph, Encoder, LookaheadGraph
from cosyserve.flow.graphs import GraphFlow
from cosyserve.flow.kv_cache import FlowKVCache
from cosyserve.flow.solver import time_grid
from cosyserve.flow.stream import FlowStream, FlowVoice
from cosyserve.hift.noise import FixedNoise
from cosyserve.hift.stream import HiftNetworks, HiftStream
from cosyserve.lazy import resolve
from cosyserve.limits import MAX_TOKENS_PER_TEXT_TOKEN, MIN_TOKENS_PER_TEXT_TOKEN
from cosyserve.llm.decoder import VocabLayout
from cosyserve.llm.embeddings import Embeddings
from cosyserve.llm.graph_decoder import LlmNetworks
from cosyserve.llm.kv_cache import KVCache
from cosyserve.networks.dit import GuidedDit
from cosyserve.networks.flow_encoder import FlowEncoder
from cosyserve.networks.guided import Cache, Guided, Part
from cosyserve.networks.hift import Decoder, F0Predictor
from cosyserve.networks.hift_source import source_of
from cosyserve.networks.lookahead import LookaheadEncoder
from cosyserve.networks.qwen2 import SpeechLM
from cosyserve.networks.unet import GuidedFlow
from cosyserve.runtimes.graph import Arrays, Graph, Outputs, flat
from cosyserve_build.bundles.bundle import StateDict
from cosyserve_build.noise import flow_noise

Array = NDArray[Any]


class ModuleGraph:
    """Torch network with the `Graph` protocol.

    Args:
        module: the network; its parameters are loaded from `state`.
        state: a checkpoint.
        outputs: names of the results in order; a trailing ``*`` marks a list.
    """

    def __init__(self, module: nn.Module, state: StateDict, *outputs: str) -> None:
        module.load_state_dict({name: state[name] for name in module.state_dict()})
        self.module, self._outputs = module.eval(), outputs

    def __call__(self, inputs: Arrays) -> Outputs:
        """Run once, without gradients."""
        with torch.no_grad():
            results = self.module(**{name: _tensors(value) for name, value in inputs.items()})
        results = results if isinstance(results, tuple) else (results,)
        named = {name.rstrip("*"): _arrays(value) for name, value in zip(self._outputs, results, strict=True)}
        return Outputs(cast("dict[str, NDArray[np.float32]]", flat(named)))


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    return [_tensors(item) for item in value]


def _arrays(value: Any) -> Any:
    return [_arrays(item) for item in value] if isinstance(value, list) else value.numpy()


def likeliest(
    logits: Callable[[list[int]], Array], pick: Pick, end: int, texts: int, limit: int | None
) -> tuple[list[int], list[Array]]:
    """Run greedily, and return the tokens without the end token, and the logits of every step.

    Args:
        logits: computes the logits [V] of the next token from the tokens so far.
        pick: chooses the token.
        end: the first id that ends a run.
        texts: number of text ids, for the length limits.
        limit: maximum number of tokens, instead of the length limits'.
    """
    tokens: list[int] = []
    steps: list[Array] = []
    most = MAX_TOKENS_PER_TEXT_TOKEN * texts if limit is None else limit
    while len(tokens) < most:
        steps.append(logits(tokens))
        token = pick(steps[-1], hold=len(tokens) < MIN_TOKENS_PER_TEXT_TOKEN * texts)
        if token >= end:
            break
        tokens.append(token)
    return tokens, steps


def likeliest_id(logits: Array, *, hold: bool, end: int) -> int:
    """Return the likeliest id; `hold` forbids only the end id, as in upstream."""
    allowed = logits.copy()
    if hold:
        allowed[end] = -np.inf
    return int(allowed.argmax())


class Pick(Protocol):
    """Chooses a token from logits [V]; with `hold`, it must not be an end token."""

    def __call__(self, logits: Array, *, hold: bool) -> int: ...


class LlmProbe:
    """Single calls and greedy runs of the language model."""

    def __init__(self, config: LlmConfig, state: StateDict) -> None:
        self.config = config
        self._graph = ModuleGraph(SpeechLM(config), state, "logits", "new_k*", "new_v*")
        speech, text = (
            state[f"{name}.weight"].numpy() for name in ("speech_embedding", "llm.model.model.embed_tokens")
        )
        special = state.get("llm_embedding.weight", torch.zeros(0, config.hidden)).numpy()
        self.embed = Embeddings(config, text, speech, special)
        self.networks = LlmNetworks(self._graph, self.embed)
        self.reset()

    def reset(self) -> None:
        """Clear the KV cache."""
        self._cache = KVCache(self.config.layers, 1, self.config.kv_heads, self.config.head_dim)
        self._length = 0

    def prompt(self, text: Sequence[int], speech: Sequence[int]) -> Array:
        """Compute input embeddings [n, hidden]; `text` is prompt text and text."""
        none = np.zeros(0, np.int32)
        ids = VocabLayout(self.config).prompt(none, np.asarray(text, np.int32), np.asarray(speech, np.int32))
        return self.embed(ids)

    def embed_speech(self, ids: Sequence[int]) -> Array:
        """Look up the embeddings [n, hidden] of speech ids."""
        return self.embed.speech[np.asarray(ids, np.int64)]

    def hidden(self, embeds: Array) -> Array:
        """Compute states after the final norm [n, hidden] of positions [n, hidden], without a KV cache."""
        self.reset()
        model = cast(SpeechLM, self._graph.module)
        past = _tensors(self._cache.keys()), _tensors(self._cache.values())
        with torch.no_grad():
            states, *_ = model.hidden(torch.from_numpy(embeds)[None], torch.zeros(1, dtype=torch.int64), *past)
        return states[0].numpy()

    def forward(self, embeds: Array) -> Array:
        """Append positions [n, hidden] and return the logits [V] of the last one."""
        self._cache.fit(self._length + len(embeds))
        out = self._graph(
            {
                "embeds": embeds[None],
                "lengths": np.asarray([self._length], np.int64),
                "past_k": self._cache.keys(),
                "past_v": self._cache.values(),
            }
        )
        self._cache.write(slice(None), self._length, out.many("new_k"), out.many("new_v"))
        self._length += len(embeds)
        logits: Array = out["logits"][0]
        return logits

    def argmax(self, logits: Array, *, hold: bool) -> int:
        """See `likeliest_id`."""
        return likeliest_id(logits, hold=hold, end=self.config.end)

    def greedy(self, embeds: Array, texts: int, limit: int | None = None) -> tuple[list[int], list[Array]]:
        """Return tokens without the end token, and the raw logits of every step, for a text of `texts` ids."""
        self.reset()

        def logits(tokens: list[int]) -> Array:
            return self.forward(self.embed_speech(tokens[-1:]) if tokens else embeds)

        return likeliest(logits, self.argmax, self.config.end, texts, limit)


@dataclass(frozen=True)
class FlowRun:
    """Tensors of one run of the flow; they include the prompt's frames, except `mel`."""

    mu: Array  # [1, mels, T]
    hidden: Array  # [1, T, width]
    cond: Array  # [1, mels, T]
    inputs: Array  # [steps, mels, T]: the state before each Euler step
    states: Array  # [steps, mels, T]: and after it
    mel: Array  # [1, mels, frames]


@dataclass
class _Taps:
    """Records the calls of a run, and gives the encoder the tokens that upstream uses as context only."""

    encoder: Graph
    estimator: Graph
    beyond: Array  # tokens after the encoded ones
    hidden: list[Array] = field(default_factory=list)
    solved: list[dict[str, Array]] = field(default_factory=list)

    def encode(self, inputs: Arrays) -> Outputs:
        inputs = {name: np.array(a) if name.startswith("context") else a for name, a in inputs.items()}
        context, valid = cast(Array, inputs["context"])[0], cast(Array, inputs["context_valid"])[0]
        free = slice(int(valid.sum()), int(valid.sum()) + len(self.beyond))
        context[free] = self.beyond[: len(context[free])]
        valid[free] = 1.0
        return self.encoder(inputs)

    def estimate(self, inputs: Arrays) -> Outputs:
        out = self.estimator(inputs)
        self.solved.append({name: cast(Array, inputs[name]) for name in ("x", "mu", "cond")} | {"v": out["velocity"]})
        return out


@dataclass(frozen=True)
class ProbedFlow:
    """Networks of one kind of flow."""

    encoder: ModuleGraph
    estimator: ModuleGraph
    stage: Callable[[Any, Graph], Encoder]  # the server's wrapper of the encoder
    tap: Callable[[Callable[[Array], None]], RemovableHandle]  # hooks what upstream records as encoder output


def unet_flow(config: UNetFlowConfig, state: StateDict) -> ProbedFlow:
    """Flow of version 2: an up-sampling conformer and a causal U-Net."""
    encoder = ModuleGraph(FlowEncoder(config), state, "mu", "conv_tail_out", "up_tail_out", "new_k*", "new_v*")
    estimator = ModuleGraph(GuidedFlow(config), state, "velocity", "new_tails*", "new_k*", "new_v*")
    projection = cast(FlowEncoder, encoder.module).encoder_proj
    return ProbedFlow(
        encoder,
        estimator,
        ConformerGraph,
        lambda take: projection.register_forward_pre_hook(lambda _, inputs: take(inputs[0].numpy())),
    )


def dit_flow(config: DitFlowConfig, state: StateDict) -> ProbedFlow:
    """Flow of version 3: two convolutions and a diffusion transformer."""
    encoder = ModuleGraph(LookaheadEncoder(config), state, "mu", "conv_tail_out")
    estimator = ModuleGraph(GuidedDit(config), state, "velocity", "new_tails*", "new_k*", "new_v*")
    layer = cast(LookaheadEncoder, encoder.module).pre_lookahead_layer
    return ProbedFlow(
        encoder,
        estimator,
        LookaheadGraph,
        lambda take: layer.register_forward_hook(lambda _, inputs, outputs: take(outputs[0].numpy())),
    )


class FlowProbe:
    """Runs of the server's `FlowStream`."""

    def __init__(self, model: ModelConfig, state: StateDict, voice: FlowVoice) -> None:
        self.config = expect(FlowConfig, model.flow)
        self._voice = voice
        self._net: ProbedFlow = resolve(versions.of(model).flow.probe)(model.flow, state)
        self._guided = cast(Guided, self._net.estimator.module)
        self.noise = flow_noise(self.config.mels).numpy()
        self._runs: dict[tuple[bytes, bool, bool], FlowRun] = {}

    def run(self, tokens: Array, *, streaming: bool, finalize: bool) -> FlowRun:
        """Reproduce a call of upstream: prompt and `tokens` [n] to mel; without `finalize` the last are context."""
        key = (tokens.astype(np.int64).tobytes(), streaming, finalize)
        if key not in self._runs:
            settled = len(tokens) - (0 if finalize else self.config.lookahead)
            self._runs[key] = self._run(tokens[:settled], tokens[settled:], streaming)
        return self._runs[key]

    def _run(self, tokens: Array, beyond: Array, streaming: bool) -> FlowRun:
        taps = _Taps(self._net.encoder, self._net.estimator, beyond)
        hook = self._net.tap(taps.hidden.append)
        try:
            tapped = GraphFlow(self.config, self._net.stage(self.config, taps.encode), taps.estimate, self.noise)
            mel = FlowStream(tapped, self._voice, full=not streaming).step(tokens.astype(np.int32), final=True)
        finally:
            hook.remove()
        steps = self.config.steps
        by_step = [taps.solved[step::steps] for step in range(steps)]
        after = [
            np.concatenate([call["x"] + dt * call["v"] for call in calls], axis=2)
            for calls, (_, dt) in zip(by_step, time_grid(steps), strict=True)
        ]
        return FlowRun(
            mu=_joined(by_step[0], "mu"),
            hidden=np.concatenate(taps.hidden, axis=1),
            cond=_joined(by_step[0], "cond"),
            inputs=np.concatenate([_joined(calls, "x") for calls in by_step]),
            states=np.concatenate(after),
            mel=mel[None],
        )

    def speaker(self) -> Array:
        """Compute the speaker vector that is the estimator's input, [1, mels]."""
        with torch.no_grad():
            return self._guided.speaker(torch.from_numpy(self._voice.embedding)[None]).numpy()

    def estimate(self, inputs: dict[str, Array], *, chunk: int) -> Array:
        """Call the estimator on two rows x, mu, cond [2, mels, T], t [2], spks [2, mels], `chunk` frames a call."""
        config, estimator = self.config, self._guided.decoder["estimator"]
        layers, heads, dim = config.attention
        past = FlowKVCache(layers, heads, dim)
        none = [torch.zeros(1, 2, heads, dim)] * layers
        tails = [torch.zeros(2, *tail) for tail in config.tails]
        pieces: list[Array] = []
        for start in range(0, inputs["x"].shape[2], chunk):
            x, mu, cond = _tensors([inputs[name][:, :, start : start + chunk] for name in ("x", "mu", "cond")])
            known = [torch.from_numpy(layer) for layer in past.layers()]
            keys, values = known[:layers], known[layers:]
            position = [torch.full((2,), start)] if config.positions else []
            cache = Cache(
                Part(none, none, torch.zeros(2, dtype=torch.int64)),
                Part(keys, values, torch.full((2,), past.length)),
                tails,
            )
            with torch.no_grad():
                out = estimator(x, mu, *_tensors([inputs["t"], inputs["spks"]]), cond, *position, cache)
            tails = cache.new_tails
            past.append(_arrays([*cache.new_k, *cache.new_v]))
            pieces.append(out.numpy())
        return np.concatenate(pieces, axis=2)


def _joined(calls: list[dict[str, Array]], name: str) -> Array:
    return np.concatenate([call[name] for call in calls], axis=2)


class HiftProbe:
    """Runs of the server's `HiftStream` on whole windows, and of its first two networks.

    Args:
        config: sizes.
        state: the checkpoint.
        twister: state of `FixedNoise`, for models with fixed noise.
    """

    def __init__(self, config: HiftConfig, state: StateDict, twister: NDArray[np.uint32] | None = None) -> None:
        self._twister = twister
        self.config = config
        self._networks = HiftNetworks(
            config,
            f0=ModuleGraph(F0Predictor(config), state, "f0"),
            source=ModuleGraph(source_of(config), state, "source", "phases"),
            decoder=ModuleGraph(Decoder(config), state, "audio"),
        )

    def f0(self, mel: Array) -> Array:
        """Predict the pitch of mel [1, mels, T] in Hz [1, T], float64."""
        return self._networks.f0({"mel": mel})["f0"]

    def source(self, f0: Array, noise: Array | None = None) -> Array:
        """Make the source [1, 1, samples] from f0 [1, T], starting at phase zero; without noise unless given."""
        sines, samples = self.config.harmonics + 1, f0.shape[1] * self.config.frame
        noise = np.zeros((1, samples, sines), np.float32) if noise is None else noise[:, :samples]
        phase, start = np.zeros((1, sines)), np.ones(1, np.float32)
        return self._networks.source({"f0": f0.astype(np.float64), "phase": phase, "start": start, "noise": noise})[
            "source"
        ]

    def noise(self, samples: int) -> Array:
        """Return the first samples of the fixed noise, [1, samples, harmonics + 1]."""
        assert self._twister is not None
        return FixedNoise(self._twister)(samples, self.config.harmonics + 1)[None]

    def wave(self, mel: Array, source: Array | None = None, *, final: bool = True) -> Array:
        """Decode mel [1, mels, T] to [1, samples], with the given source [1, 1, samples] or its own.

        Without `final`, only the samples that no later frame changes.
        """
        networks = self._networks
        if source is not None:
            phases = np.zeros((1, mel.shape[2], self.config.harmonics + 1), np.float32)
            networks = replace(networks, source=_constant(Outputs(source=source, phases=phases)))
        return HiftStream(networks, seed=0, noise_gain=0.0).step(mel[0], final)[None]


def _constant(outputs: Outputs) -> Graph:
    return lambda inputs: outputs


@dataclass
class Join:
    """Upstream's cross-fade between vocoder windows (upstream utils/common.py :: fade_in_out)."""

    held: int  # samples that fade; every window except the last holds them back
    tail: Array | None = None

    def __call__(self, wave: Array, *, last: bool) -> Array:
        """Return the samples that are final after a window [1, n]."""
        joined = wave.astype(np.float64)
        if self.tail is not None:
            window = np.hamming(2 * self.held)
            joined[:, : self.held] = joined[:, : self.held] * window[: self.held] + self.tail * window[self.held :]
        self.tail = joined[:, joined.shape[1] - self.held :]
        emitted = joined if last else joined[:, : joined.shape[1] - self.held]
        return emitted.astype(np.float32)
