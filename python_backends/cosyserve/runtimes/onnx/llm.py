"""The language model over ONNX graphs."""

from __future__ import annotations

from cosyserve.config import TransformerConfig, expect
from cosyserve.llm.embeddings import Embeddings
from cosyserve.llm.graph_decoder import GraphDecoder, LlmNetworks
from cosyserve.llm.relative_decoder import PromptEncoder, RelativeDecoder, SpeechEmbeddings
from cosyserve.runtimes.onnx.graph import load_graph
from cosyserve.settings import Settings
from cosyserve.weights import Weights, map_tensors


def load_graph_decoder(weights: Weights, settings: Settings) -> GraphDecoder:
    """The decoder of a model that takes ids, with the rows that an engine of `llm_slots` sequences needs."""
    return GraphDecoder(load_llm_networks(weights, settings), settings.llm_rows)


def load_relative_decoder(weights: Weights, settings: Settings) -> RelativeDecoder:
    """The decoder of a model whose attention measures distances, and whose prompts `load_prompt_encoder` makes."""
    config = expect(TransformerConfig, weights.config.llm)
    embeddings = SpeechEmbeddings(config, map_tensors(weights.file("llm.safetensors"))["speech"])
    networks = LlmNetworks(load_graph(weights, "llm", settings), embeddings)
    return RelativeDecoder(networks, load_graph(weights, "llm_positions", settings), settings.llm_rows)


def load_llm_networks(weights: Weights, settings: Settings) -> LlmNetworks:
    """The decoder graph and its embedding tables; the tables stay on disk and are read row by row."""
    return LlmNetworks(load_graph(weights, "llm", settings), Embeddings.load(weights))


def load_prompt_encoder(weights: Weights, settings: Settings) -> PromptEncoder:
    """What makes the prompts of sequences."""
    tables = map_tensors(weights.file("llm.safetensors"))
    return PromptEncoder(
        expect(TransformerConfig, weights.config.llm), tables, load_graph(weights, "llm_text", settings)
    )
