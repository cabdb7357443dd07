"""From prepared weights to the objects that the models run: the one place that knows which file feeds what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file

from cosyserve.config import DitFlowConfig, TransformerConfig, UNetFlowConfig, WindowFlowConfig
from cosyserve.errors import WeightsError
from cosyserve.flow.encoders import ConformerGraph, Encoder, LookaheadGraph
from cosyserve.flow.graphs import GraphFlow
from cosyserve.flow.sequences import FlowFactory
from cosyserve.flow.window_sequences import WindowFlowFactory
from cosyserve.flow.window_stream import WindowNetworks
from cosyserve.frontend import Frontend
from cosyserve.hift.noise import FixedNoise
from cosyserve.hift.stream import HiftNetworks
from cosyserve.llm.decoder import Decoder
from cosyserve.llm.embeddings import Embeddings
from cosyserve.llm.graph_decoder import GraphDecoder, LlmNetworks
from cosyserve.llm.relative_decoder import PromptEncoder, RelativeDecoder, SpeechEmbeddings
from cosyserve.pipeline.synthesizer import ChunkGrid
from cosyserve.runtimes.graph import Graph
from cosyserve.runtimes.onnx import OnnxGraph
from cosyserve.settings import Settings
from cosyserve.text.normalize import preload
from cosyserve.text.tokenizer import Tokenizer
from cosyserve.voices import VoiceStore
from cosyserve.weights import VOICES_FOLDER, Weights, map_tensors

if TYPE_CHECKING:
    from cosyserve.traces import Traces


def load_chunk_grid(settings: Settings) -> ChunkGrid:
    """Chunk geometry and policy."""
    config = Weights(settings.folder).config
    flow, tokens = config.flow, config.sample_rate // config.token_rate
    if isinstance(flow, WindowFlowConfig):
        # Windows of one length, each with what it shares with the next; hops are not for the settings to choose.
        return ChunkGrid(1, flow.overlap, tokens, config.sample_rate, first_hop=flow.hop, max_hop=flow.hop)
    return ChunkGrid(flow.chunk, flow.lookahead, tokens, config.sample_rate, settings.first_hop, settings.max_hop)


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


def load_traces(settings: Settings) -> Traces | None:
    """Where spans go, if they do.

    Raises:
        WeightsError: OpenTelemetry is not installed.
    """
    if not settings.otlp_endpoint:
        return None
    try:
        from cosyserve.traces import Traces  # an extra
    except ModuleNotFoundError:
        raise WeightsError("setting otlp_endpoint: needs `pip install 'cosyserve[tracing]'`") from None
    return Traces(settings.otlp_endpoint)


def load_voices(weights: Weights) -> VoiceStore:
    """Registered voices."""
    return VoiceStore(weights.folder / VOICES_FOLDER)


def load_llm_networks(settings: Settings) -> LlmNetworks:
    """The language model and its embedding tables; the tables stay on disk and are read row by row."""
    weights = Weights(settings.folder)
    graph, config = _graph(weights, "llm", settings), weights.config.llm
    if isinstance(config, TransformerConfig):
        return LlmNetworks(graph, SpeechEmbeddings(config, map_tensors(weights.file("llm.safetensors"))["speech"]))
    return LlmNetworks(graph, Embeddings.load(weights))


def load_decoder(settings: Settings) -> tuple[Any, Decoder]:
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
    if isinstance(networks.config, TransformerConfig):
        positions = _graph(Weights(settings.folder), "llm_positions", settings)
        return networks.config, RelativeDecoder(networks, positions, settings.llm_rows)
    return networks.config, GraphDecoder(networks, settings.llm_rows)


def load_prompt_encoder(settings: Settings) -> PromptEncoder | None:
    """What makes the prompts of sequences, where the language model takes something else than ids."""
    weights = Weights(settings.folder)
    config = weights.config.llm
    if not isinstance(config, TransformerConfig):
        return None
    tables = map_tensors(weights.file("llm.safetensors"))
    return PromptEncoder(config, tables, _graph(weights, "llm_text", settings))


def load_flow_factory(settings: Settings, count_frames: Callable[[int], None]) -> FlowFactory:
    """Flow networks, and the memory that streams and voices share."""
    sessions = WindowFlowFactory if _windowed(settings) else FlowFactory
    return sessions(load_flow_networks(settings), settings.flow_cache_mib * 2**20, count_frames)


def _windowed(settings: Settings) -> bool:
    return isinstance(Weights(settings.folder).config.flow, WindowFlowConfig)


def load_flow_networks(settings: Settings) -> Any:
    """Encoder and estimator, and the noise where it is fixed: what the streams of the weights' version take."""
    weights = Weights(settings.folder)
    if settings.runtime != "onnx":
        from cosyserve.runtimes.torch.flow import load_flow

        _torch_runs(weights, settings)
        return load_flow(weights, settings)
    if _windowed(settings):
        encoder, estimator = (_graph(weights, name, settings) for name in ("flow_encoder", "flow_estimator"))
        return WindowNetworks(weights.config.flow, encoder, estimator)
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
        problem = f"{settings.runtime} does not run CosyVoice version {weights.config.version}"
        raise WeightsError(f"setting runtime: {problem}; use onnx, with precision fp32")


def _graph(weights: Weights, name: str, settings: Settings) -> OnnxGraph:
    return OnnxGraph(weights.graph(name), settings.threads, settings.device)
