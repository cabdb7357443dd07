"""From prepared weights to the objects that the models run: the one place that knows which file feeds what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from safetensors.numpy import load_file

from cosyserve.config import DitFlowConfig, LlmConfig, UNetFlowConfig
from cosyserve.errors import WeightsError
from cosyserve.flow.encoders import ConformerGraph, Encoder, LookaheadGraph
from cosyserve.flow.graphs import GraphFlow
from cosyserve.flow.networks import FlowNetworks
from cosyserve.frontend import Frontend
from cosyserve.hift.noise import FixedNoise
from cosyserve.hift.stream import HiftNetworks
from cosyserve.llm.decoder import Decoder
from cosyserve.llm.embeddings import Embeddings
from cosyserve.llm.graph_decoder import GraphDecoder, LlmNetworks
from cosyserve.pipeline.orchestrate import Grid
from cosyserve.runtimes.graph import Graph
from cosyserve.runtimes.onnx import OnnxGraph
from cosyserve.settings import Settings
from cosyserve.text.normalize import preload
from cosyserve.text.tokenizer import Tokenizer
from cosyserve.voices import VoiceStore
from cosyserve.weights import Weights


def load_grid(settings: Settings) -> Grid:
    """Chunk geometry and policy."""
    config = Weights(settings.folder).config
    if config.sample_rate != settings.sample_rate:
        raise WeightsError(f"weights speak at {config.sample_rate} Hz, but tts promises {settings.sample_rate} Hz")
    return Grid(
        chunk=config.flow.chunk,
        lookahead=config.flow.lookahead,
        samples_per_token=config.flow.ratio * config.hift.frame,
        sample_rate=config.sample_rate,
        first_hop=settings.first_hop,
        max_hop=settings.max_hop,
    )


def load_frontend(settings: Settings) -> Frontend:
    """Tokenizer, speaker model, speech tokenizer and voices."""
    weights = Weights(settings.folder)
    # These two files come from the bundle as they are, so their tensors are addressed by position.
    speaker = OnnxGraph(weights.file("campplus.onnx"), settings.threads)
    tokenizer = OnnxGraph(weights.file("speech_tokenizer.onnx"), settings.threads)
    preload()
    return Frontend(
        weights.config,
        Tokenizer.load(weights.file("tokenizer.json")),
        speaker.first,
        tokenizer.first,
        load_voices(weights),
    )


def load_voices(weights: Weights) -> VoiceStore:
    """Registered voices."""
    return VoiceStore(weights.folder / "voices")


def load_llm_networks(settings: Settings) -> LlmNetworks:
    """The language model and its embedding tables; the tables stay on disk and are read row by row."""
    weights = Weights(settings.folder)
    graph = _graph(weights, "llm", settings)
    return LlmNetworks(graph, Embeddings.load(weights))


def load_decoder(settings: Settings) -> tuple[LlmConfig, Decoder]:
    """The language model with the rows that an engine of `llm_slots` needs, on the runtime that is asked for."""
    if settings.llm_runtime == "gguf":
        try:
            from cosyserve.runtimes.gguf import load_decoder as load_gguf
        except ModuleNotFoundError:
            raise WeightsError("setting llm_runtime: gguf needs `pip install 'cosyserve[gguf]'`") from None
        weights = Weights(settings.folder)
        return weights.config.llm, load_gguf(weights, settings)
    if settings.runtime != "onnx":
        from cosyserve.runtimes.torch.llm import load_decoder as load_torch  # serving from ONNX graphs needs no torch

        weights = Weights(settings.folder)
        _torch_runs(weights, settings)
        return weights.config.llm, load_torch(weights, settings)
    networks = load_llm_networks(settings)
    return networks.config, GraphDecoder(networks, settings.llm_rows)


def load_flow_networks(settings: Settings) -> FlowNetworks:
    """Encoder, estimator and noise."""
    weights = Weights(settings.folder)
    if settings.runtime != "onnx":
        from cosyserve.runtimes.torch.flow import load_flow

        _torch_runs(weights, settings)
        return load_flow(weights, settings)
    return GraphFlow(
        weights.config.flow,
        encoder=_ENCODERS[type(weights.config.flow)](weights.config.flow, _graph(weights, "flow_encoder", settings)),
        estimator=_graph(weights, "flow_estimator", settings),
        noise=load_file(weights.file("flow.safetensors"))["noise"],
        window=settings.flow_window,
    )


def load_hift_networks(settings: Settings) -> HiftNetworks:
    """The vocoder's three graphs."""
    weights = Weights(settings.folder)
    if settings.runtime != "onnx":
        from cosyserve.runtimes.torch.hift import load_hift

        _torch_runs(weights, settings)
        return load_hift(weights, settings)
    f0, source, decoder = (_graph(weights, name, settings) for name in ("hift_f0", "hift_source", "hift_decoder"))
    networks = HiftNetworks(weights.config.hift, f0, source, decoder)
    if "hift_noise.safetensors" not in weights.manifest["files"]:
        return networks
    twister = load_file(weights.file("hift_noise.safetensors"))["twister"]
    return replace(networks, noise=lambda seed: FixedNoise(twister))


_ENCODERS: dict[type, Callable[[Any, Graph], Encoder]] = {
    UNetFlowConfig: ConformerGraph,
    DitFlowConfig: LookaheadGraph,
}
"""What runs the encoder of each kind of flow."""


def _torch_runs(weights: Weights, settings: Settings) -> None:
    """Refuses a runtime that has no networks of the weights' version."""
    if weights.config.version != 2:
        version = weights.config.version
        raise WeightsError(f"setting runtime: {settings.runtime} does not run CosyVoice version {version}; use onnx")


def _graph(weights: Weights, name: str, settings: Settings) -> OnnxGraph:
    return OnnxGraph(weights.graph(name), settings.threads, settings.device)
