"""Run the stage objects of CosyVoice 1 on torch networks, and record tensors; see `cosyserve_build.probes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from cosyserve.config import TransformerConfig, WindowFlowConfig
from cosyserve.flow.solver import time_grid
from cosyserve.flow.stream import FlowVoice
from cosyserve.flow.window_stream import WindowNetworks, WindowStream
from cosyserve.limits import PREFILL_CHUNK
from cosyserve.llm.graph_decoder import LlmNetworks
from cosyserve.llm.relative_decoder import PromptEncoder, RelativeDecoder, SpeechEmbeddings
from cosyserve.llm.sequence import GenerationRequest
from cosyserve.networks.transformer import Positions, RelativeLM, TextEncoder
from cosyserve.networks.window_encoder import WindowEncoder
from cosyserve.networks.window_unet import WindowFlow
from cosyserve.runtimes.graph import Arrays, Outputs
from cosyserve_build.bundles.bundle import StateDict
from cosyserve_build.probes import Array, ModuleGraph, likeliest


class RelativeLlmProbe:
    """Prompts, states and greedy runs of the language model, with the server's decoder."""

    def __init__(self, config: TransformerConfig, state: StateDict) -> None:
        self.config = config
        tables = {name: state[f"{name}_embedding.weight"].numpy() for name in ("text", "speech")}
        tables["special"] = state["llm_embedding.weight"].numpy()
        self._opening = PromptEncoder(config, tables, ModuleGraph(TextEncoder(config), state, "text", "speaker_out"))
        self._graph = ModuleGraph(RelativeLM(config), state, "logits", "new_k*", "new_v*")
        self._positions = ModuleGraph(Positions(config), state, "positions*")
        self._networks = LlmNetworks(self._graph, SpeechEmbeddings(config, tables["speech"]))

    def opening(self, prompt_text: Sequence[int], text: Sequence[int], speech: Sequence[int], speaker: Array) -> Array:
        """Compute input embeddings [n, inputs] up to the first new token; `speaker` is [192] or empty."""
        segment = GenerationRequest(
            id=0,
            text=np.asarray(text, np.int32),
            prompt_text=np.asarray(prompt_text, np.int32),
            prompt_speech=np.asarray(speech, np.int32),
            seed=0,
            emit=_ignore,
            fail=_ignore,
            speaker=speaker.astype(np.float32),
        )
        return self._opening(segment)

    def hidden(self, embeds: Array) -> Array:
        """Compute states after the final norm [n, hidden] of positions [n, inputs], without a KV cache."""
        config, count = self.config, len(embeds)
        positions = [torch.from_numpy(p) for p in self._positions({"distances": np.arange(count)}).many("positions")]
        past = [torch.zeros(1, config.kv_heads, count, config.head_dim)] * config.layers
        with torch.no_grad():
            model = cast(RelativeLM, self._graph.module)
            states, *_ = model.hidden(torch.from_numpy(embeds)[None], torch.zeros(1).long(), positions, past, past)
        return states[0].numpy()

    def greedy(self, opening: Array, texts: int, limit: int | None = None) -> tuple[list[int], list[Array]]:
        """Return tokens without the end token, and the raw logits of every step, for a text of `texts` ids."""
        decoder = RelativeDecoder(self._networks, self._positions, rows=1)

        def logits(tokens: list[int]) -> Array:
            if tokens:
                length = np.asarray([len(opening) + len(tokens) - 1])
                return decoder.step(np.asarray([tokens[-1] + self.config.vocab]), length).row(0)
            for start in range(0, len(opening), PREFILL_CHUNK):
                scores = decoder.prefill(0, start, opening[start : start + PREFILL_CHUNK])
            return scores.row(0)

        def pick(logits: Array, *, hold: bool) -> int:
            return int(logits[: self.config.end if hold else None].argmax())

        return likeliest(logits, pick, self.config.end, texts, limit)


def _ignore(_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class WindowRun:
    """Tensors of one window of the flow; they include the prompt's frames, except `mel`."""

    hidden: Array  # [1, n, width]
    mu: Array  # [1, mels, T]
    cond: Array  # [1, mels, T]
    inputs: Array  # [steps, mels, T]: the state before each Euler step
    mel: Array  # [1, mels, frames], before the cross-fade with the previous window


class WindowProbe:
    """Runs of the server's `WindowStream`; every window starts from the same noise [mels, T]."""

    def __init__(self, config: WindowFlowConfig, state: StateDict, voice: FlowVoice, noise: Array) -> None:
        self.config = config
        self._voice, self._noise = voice, noise
        self._encoder = ModuleGraph(WindowEncoder(config), state, "mu")
        self._estimator = ModuleGraph(WindowFlow(config), state, "velocity")
        self._guided = cast(WindowFlow, self._estimator.module)

    def run(self, tokens: Array, *, streaming: bool) -> list[WindowRun]:
        """Run a segment, and return its windows."""
        hidden: list[Array] = []
        solved: list[dict[str, Array]] = []

        def estimate(inputs: Arrays) -> Outputs:
            out = self._estimator(inputs)
            solved.append({name: cast(Array, inputs[name]) for name in ("x", "mu", "cond")} | {"v": out["velocity"]})
            return out

        projection = cast(WindowEncoder, self._encoder.module).encoder_proj
        hook = projection.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0].numpy()))
        try:
            networks = WindowNetworks(self.config, self._encoder, estimate)
            stream = WindowStream(networks, self._voice, lambda frames: self._noise[:, :frames], full=not streaming)
            stream.step(tokens.astype(np.int32), final=True)
        finally:
            hook.remove()
        steps, prompt = self.config.steps, len(self._voice.mel)
        _, last = time_grid(steps)[-1]
        return [
            WindowRun(
                hidden=states,
                mu=calls[0]["mu"],
                cond=calls[0]["cond"],
                inputs=np.concatenate([call["x"] for call in calls]),
                mel=(calls[-1]["x"] + last * calls[-1]["v"])[:, :, prompt:],
            )
            for states, calls in zip(hidden, (solved[i : i + steps] for i in range(0, len(solved), steps)), strict=True)
        ]

    def speaker(self) -> Array:
        """Compute the speaker vector that is the estimator's input, [1, mels]."""
        with torch.no_grad():
            return self._guided.speaker(torch.from_numpy(self._voice.embedding)[None]).numpy()

    def estimate(self, inputs: dict[str, Array]) -> Array:
        """Call the estimator on two rows x, mu, cond [2, mels, T], t [2], spks [2, mels]."""
        unet = self._guided.decoder["estimator"]
        with torch.no_grad():
            given = (torch.from_numpy(inputs[name]) for name in ("x", "mu", "t", "spks", "cond"))
            return cast(Array, unet(*given).numpy())
