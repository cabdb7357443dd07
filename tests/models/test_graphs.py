"""Prepared graphs match their manifest, and accept the inputs of the streams."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cosyserve.flow.encoders import ConformerGraph
from cosyserve.flow.graphs import GraphFlow
from cosyserve.flow.networks import FlowNetworks
from cosyserve.flow.stream import FlowStream, FlowVoice
from cosyserve.hift.stream import HiftNetworks, HiftStream
from cosyserve.llm.engine import Engine
from cosyserve.llm.graph_decoder import GraphDecoder, LlmNetworks
from cosyserve.llm.sequence import GenerationRequest
from cosyserve.runtimes.graph import Arrays, Graph, Outputs, flat
from cosyserve.runtimes.onnx.graph import OnnxGraph
from cosyserve.scheduler import Scheduler, Task

GRAPHS = ["llm", "flow_encoder", "flow_estimator", "hift_f0", "hift_source", "hift_decoder"]
TYPES = {"FLOAT": "float32", "DOUBLE": "float64", "INT64": "int64"}
every_graph = pytest.mark.parametrize("name", GRAPHS)


@pytest.fixture(scope="module")
def manifest(weights: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((weights / "manifest.json").read_text("utf-8"))
    return content


class Recorder:
    """Passes calls on to a graph and compares them with its manifest entry."""

    def __init__(self, graph: Graph, entry: dict[str, Any]) -> None:
        self._graph = graph
        self._entry = entry
        self.calls = 0
        self.batches: set[int] = set()

    def __call__(self, inputs: Arrays) -> Outputs:
        outputs = self._graph(inputs)
        self.batches.add(self._check(flat(inputs), self._entry["inputs"])["batch"])
        self._check(outputs, self._entry["outputs"])
        self.calls += 1
        return outputs

    def _check(self, found: dict[str, Any], specified: dict[str, Any]) -> dict[str, int]:
        assert set(found) == set(specified)
        sizes: dict[str, int] = {}
        for name, array in found.items():
            assert array.dtype.name == TYPES[specified[name]["dtype"]], name
            for size, wanted in zip(array.shape, specified[name]["shape"], strict=True):
                if isinstance(wanted, int):
                    assert size == wanted, name
                elif wanted.isidentifier():  # not an expression of other axes
                    assert sizes.setdefault(wanted, size) == size, f"{name}: axis {wanted}"
        return sizes


def test_the_graphs_are_these(manifest: dict[str, Any]) -> None:
    assert list(manifest["graphs"]) == GRAPHS


@every_graph
def test_a_graph_is_valid_onnx(weights: Path, name: str) -> None:
    onnx.checker.check_model(str(weights / f"{name}.onnx"))


@every_graph
def test_inputs_and_outputs_are_the_manifest_s(weights: Path, manifest: dict[str, Any], name: str) -> None:
    graph = onnx.load(str(weights / f"{name}.onnx"), load_external_data=False).graph

    def described(values: Any) -> dict[str, Any]:
        return {
            value.name: {
                "dtype": onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
                "shape": [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
            }
            for value in values
        }

    entry = manifest["graphs"][name]
    assert described(graph.input) == entry["inputs"]
    assert described(graph.output) == entry["outputs"]
    assert entry["files"] == [f"{name}.onnx", f"{name}.onnx.data"]


@every_graph
def test_variable_axes_have_readable_names(manifest: dict[str, Any], name: str) -> None:
    entry = manifest["graphs"][name]
    axes = {axis for tensor in entry["inputs"].values() for axis in tensor["shape"] if isinstance(axis, str)}
    words = {word for axis in axes for word in re.findall(r"[a-z]\w*", axis)}
    assert words
    assert words <= {"batch", "rows", "new", "prompt", "past", "up_past", "capacity", "frames", "samples"}


def test_flow_streams_feed_their_graphs(
    weights: Path, flow_networks: FlowNetworks, flow_voice: FlowVoice, manifest: dict[str, Any]
) -> None:
    encoder, estimator = (
        Recorder(OnnxGraph(weights / f"{name}.onnx"), manifest["graphs"][name])
        for name in ("flow_encoder", "flow_estimator")
    )
    config = flow_networks.config
    networks = GraphFlow(config, ConformerGraph(config, encoder), estimator, flow_networks.noise)
    bare = FlowVoice(flow_voice.tokens[:0], flow_voice.mel[:0], flow_voice.embedding)

    def failed(error: Exception) -> None:
        raise error

    scheduler = Scheduler(4)
    for voice in (flow_voice, flow_voice, bare):
        for full in (False, True):
            steps = FlowStream(networks, voice, full=full).begin_step(flow_voice.tokens[:40], final=True)
            scheduler.add(Task(steps, 0, lambda mel: None, failed))
    while call := scheduler.schedule():
        call.run()
        scheduler.update(call)
    for graph in (encoder, estimator):
        assert {1, 2} <= graph.batches
    assert estimator.calls % 10 == 0


def test_vocoder_streams_feed_their_graphs(hift_networks: HiftNetworks, manifest: dict[str, Any]) -> None:
    graphs = manifest["graphs"]
    f0 = Recorder(hift_networks.f0, graphs["hift_f0"])
    source = Recorder(hift_networks.source, graphs["hift_source"])
    decoder = Recorder(hift_networks.decoder, graphs["hift_decoder"])
    stream = HiftStream(replace(hift_networks, f0=f0, source=source, decoder=decoder), seed=0)
    mel = np.random.default_rng(0).standard_normal((80, 60)).astype(np.float32)
    stream.step(mel, final=False)
    stream.step(mel, final=True)
    assert (f0.calls, source.calls, decoder.calls) == (2, 2, 2)


def test_the_engine_feeds_its_graph(llm_networks: LlmNetworks, manifest: dict[str, Any]) -> None:
    graph = Recorder(llm_networks.graph, manifest["graphs"]["llm"])
    engine = Engine(GraphDecoder(replace(llm_networks, graph=graph), 3), llm_networks.config, slots=3)
    for id in range(3):
        tokens = np.arange(4 + 30 * id, dtype=np.int32)
        engine.admit(
            GenerationRequest(id, tokens[:4], tokens[4:], tokens[4:], id, lambda token: None, lambda error: None)
        )
    for _ in range(12):
        engine.step()
    # The prompts have 6, 66 and 126 ids: 5 chunks. Every step decodes.
    assert graph.calls == 5 + 12
