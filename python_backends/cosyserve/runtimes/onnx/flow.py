"""The flow over ONNX graphs."""

from __future__ import annotations

from safetensors.numpy import load_file

from cosyserve.config import DitFlowConfig, FlowConfig, UNetFlowConfig, WindowFlowConfig, expect
from cosyserve.flow.encoders import ConformerGraph, Encoder, LookaheadGraph
from cosyserve.flow.graphs import GraphFlow
from cosyserve.flow.window_stream import WindowNetworks
from cosyserve.runtimes.onnx.graph import load_graph
from cosyserve.settings import Settings
from cosyserve.weights import Weights


def load_conformer_flow(weights: Weights, settings: Settings) -> GraphFlow:
    """With an up-sampling conformer for encoder."""
    config = expect(UNetFlowConfig, weights.config.flow)
    return _chunked(weights, settings, ConformerGraph(config, load_graph(weights, "flow_encoder", settings)))


def load_lookahead_flow(weights: Weights, settings: Settings) -> GraphFlow:
    """With two convolutions for encoder."""
    config = expect(DitFlowConfig, weights.config.flow)
    return _chunked(weights, settings, LookaheadGraph(config, load_graph(weights, "flow_encoder", settings)))


def load_windows(weights: Weights, settings: Settings) -> WindowNetworks:
    """Of a flow that works window by window."""
    encoder, estimator = (load_graph(weights, name, settings) for name in ("flow_encoder", "flow_estimator"))
    return WindowNetworks(expect(WindowFlowConfig, weights.config.flow), encoder, estimator)


def _chunked(weights: Weights, settings: Settings, encoder: Encoder) -> GraphFlow:
    return GraphFlow(
        expect(FlowConfig, weights.config.flow),
        encoder=encoder,
        estimator=load_graph(weights, "flow_estimator", settings),
        noise=load_file(weights.file("flow.safetensors"))["noise"],
        window=settings.flow_window,
    )
