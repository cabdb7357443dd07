"""Export networks as ONNX graphs with explicit state, and check each in onnxruntime against torch."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from cosyserve import versions
from cosyserve.config import (
    DitFlowConfig,
    FlowConfig,
    HiftConfig,
    LlmConfig,
    ModelConfig,
    TransformerConfig,
    UNetFlowConfig,
    WindowFlowConfig,
)
from cosyserve.errors import BundleError
from cosyserve.lazy import resolve
from cosyserve.networks.dit import GuidedDit
from cosyserve.networks.flow_encoder import FlowEncoder
from cosyserve.networks.hift import Decoder, F0Predictor
from cosyserve.networks.hift_source import source_of
from cosyserve.networks.lookahead import LookaheadEncoder
from cosyserve.networks.qwen2 import SpeechLM
from cosyserve.networks.transformer import Positions, RelativeLM, TextEncoder
from cosyserve.networks.unet import GuidedFlow
from cosyserve.networks.window_encoder import WindowEncoder
from cosyserve.networks.window_unet import WindowFlow
from cosyserve.runtimes.graph import Outputs, flat
from cosyserve.runtimes.onnx.graph import OnnxGraph
from cosyserve_build.precision import Precision

OPSET = 20
StateDict = dict[str, Tensor]
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """One graph to export.

    Attributes:
        name: file name without suffix.
        module: network with its weights.
        inputs: makes inputs for given sizes, by forward's argument names; lists become numbered inputs.
        sizes: the sizes to export at, first-chunk sizes and later-chunk sizes; all are checked.
        axes: for each argument, the names of the axes that vary.
        outputs: names of forward's results; a trailing ``*`` marks a list.
        tolerance: largest difference between torch and onnxruntime.
    """

    name: str
    module: nn.Module
    inputs: Callable[..., Inputs]
    sizes: tuple[dict[str, int], ...]
    axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]
    tolerance: float = 1e-4


def export(spec: Spec, folder: Path, precision: Precision | None = None) -> dict[str, Any]:
    """Write ``<name>.onnx`` with its weights in ``<name>.onnx.data``, check it, and describe it.

    Args:
        spec: the graph.
        folder: for the files.
        precision: in which the file stores the weights; None is float32.

    Returns:
        The graph's entry in the manifest: files, inputs, outputs.

    Raises:
        BundleError: the graph does not reproduce the network.
    """
    spec.module.eval()
    torch.manual_seed(0)
    example = spec.inputs(**spec.sizes[0])
    outputs = _named(spec.outputs, _run(spec.module, example))
    program = _program(spec, example, list(outputs))
    path = folder / f"{spec.name}.onnx"
    _save(_readable(program, spec), path)
    onnx.checker.check_model(str(path))
    _compare(spec, path, spec.tolerance)
    if precision and precision.changes(spec.name):
        lowered = onnx.load(str(path))
        precision.lower(lowered)
        _save(lowered, path)
        _compare(spec, path, precision.tolerance)
    model = onnx.load(str(path), load_external_data=False)
    return {
        "files": [file.name for file in (path, _data(path)) if file.exists()],  # small weights stay in the graph
        "inputs": {i.name: _value(i) for i in model.graph.input},
        "outputs": {o.name: _value(o) for o in model.graph.output},
    }


def graphs(config: ModelConfig, llm: StateDict, flow: StateDict, hift: StateDict) -> Iterator[Spec]:
    """Yield the graphs of a model, in the order in which a request passes them."""
    networks = versions.of(config).networks
    for stage, state in (("llm", llm), ("flow", flow), ("hift", hift)):
        yield from resolve(networks[stage].graphs)(getattr(config, stage), state)


def qwen2_graphs(config: LlmConfig, state: StateDict) -> Iterator[Spec]:
    """Language model of versions 2 and 3, on Qwen2."""

    def inputs(batch: int, new: int, capacity: int) -> Inputs:
        past = [(batch, config.kv_heads, capacity, config.head_dim)] * config.layers
        return {
            "embeds": torch.randn(batch, new, config.hidden),
            "lengths": torch.arange(batch) % capacity,
            "past_k": _noise(past),
            "past_v": _noise(past),
        }

    yield Spec(
        "llm",
        _load(SpeechLM(config), state),
        inputs,
        sizes=(
            {"batch": 3, "new": 5, "capacity": 64},
            {"batch": 1, "new": 40, "capacity": 64},
            {"batch": 2, "new": 1, "capacity": 128},
        ),
        axes={
            "embeds": {0: "batch", 1: "new"},
            "lengths": {0: "batch"},
            "past_k": {0: "batch", 2: "capacity"},
            "past_v": {0: "batch", 2: "capacity"},
        },
        outputs=("logits", "new_k*", "new_v*"),
    )


def unet_flow_graphs(config: UNetFlowConfig, state: StateDict) -> Iterator[Spec]:
    """Flow of version 2: an up-sampling conformer and a causal U-Net."""
    yield _conformer(config, _load(FlowEncoder(config), state))
    yield _estimator(config, _load(GuidedFlow(config), state))


def _conformer(config: UNetFlowConfig, module: nn.Module) -> Spec:
    dim = config.width // config.heads
    ratios = [1] * config.blocks + [config.ratio] * config.up_blocks

    def inputs(batch: int, new: int, past: int) -> Inputs:
        cached = [(batch, config.heads, past * ratio, dim) for ratio in ratios]
        return {
            "tokens": torch.arange(new).repeat(batch, 1) % config.tokens,
            "context": torch.arange(config.lookahead).repeat(batch, 1),
            "context_valid": torch.ones(batch, config.lookahead),
            "length": torch.arange(past, past - batch, -1).clamp(min=0),
            "conv_tail": torch.randn(batch, config.width, 2),
            "up_tail": torch.randn(batch, config.width, 2 * config.ratio),
            "past_k": _noise(cached),
            "past_v": _noise(cached),
        }

    chunk = config.chunk
    return Spec(
        "flow_encoder",
        module,
        inputs,
        sizes=(
            {"batch": 3, "new": chunk + 3, "past": 2 * chunk},
            {"batch": 1, "new": chunk, "past": 0},
            {"batch": 1, "new": 1, "past": chunk},
            {"batch": 2, "new": 2, "past": 0},
        ),
        # Axes of one name have one size, and layers after the up-sampling hold more positions than those before it.
        axes={name: {0: "batch"} for name in ("context", "context_valid", "length", "conv_tail", "up_tail")}
        | {"tokens": {0: "batch", 1: "new"}}
        | {f"past_{kind}": {0: "batch", 2: "past"} for kind in "kv"}
        | {f"past_{kind}_{i}": {0: "batch", 2: "up_past"} for kind in "kv" for i, r in enumerate(ratios) if r > 1},
        outputs=("mu", "conv_tail_out", "up_tail_out", "new_k*", "new_v*"),
    )


def dit_flow_graphs(config: DitFlowConfig, state: StateDict) -> Iterator[Spec]:
    """Flow of version 3: two convolutions and a diffusion transformer."""
    yield _lookahead(config, _load(LookaheadEncoder(config), state))
    yield _estimator(config, _load(GuidedDit(config), state))


def _lookahead(config: DitFlowConfig, module: nn.Module) -> Spec:
    def inputs(batch: int, new: int) -> Inputs:
        return {
            "tokens": torch.arange(new).repeat(batch, 1) % config.tokens,
            "context": torch.arange(config.lookahead).repeat(batch, 1),
            "context_valid": torch.ones(batch, config.lookahead),
            "conv_tail": torch.randn(batch, config.lookahead_channels, 2),
        }

    return Spec(
        "flow_encoder",
        module,
        inputs,
        sizes=({"batch": 3, "new": config.chunk}, {"batch": 1, "new": 1}, {"batch": 2, "new": 2}),
        axes={name: {0: "batch"} for name in ("context", "context_valid", "conv_tail")}
        | {"tokens": {0: "batch", 1: "new"}},
        outputs=("mu", "conv_tail_out"),
    )


def _estimator(config: FlowConfig, module: nn.Module) -> Spec:
    layers, heads, dim = config.attention

    def inputs(batch: int, new: int, prompt: int, past: int) -> Inputs:
        def cached(frames: int) -> list[Tensor]:
            return _noise([(frames, 2 * batch, heads, dim)] * layers)

        position = {"position": torch.arange(past, past + batch)} if config.positions else {}
        # In the order of the network's arguments, which is the order of the graph's inputs.
        return {
            "x": torch.randn(batch, config.mels, new),
            "mu": torch.randn(batch, config.mels, new),
            "cond": torch.randn(batch, config.mels, new),
            "embedding": torch.randn(batch, config.speaker),
            "t": torch.rand(batch),
            "prompt_length": torch.arange(prompt, prompt - batch, -1) - 1,
            "length": torch.arange(past, past - batch, -1) - 1,
            "tails": _noise([(2 * batch, *tail) for tail in config.tails]),
            "prompt_k": cached(prompt),
            "prompt_v": cached(prompt),
            "past_k": cached(past),
            "past_v": cached(past),
            **position,
        }

    chunk = config.frame_chunk
    streams = {name: {0: "batch"} for name in ("embedding", "t", "prompt_length", "length")}
    if config.positions:
        streams["position"] = {0: "batch"}
    return Spec(
        "flow_estimator",
        module,
        inputs,
        sizes=(
            {"batch": 3, "new": chunk, "prompt": chunk, "past": 2 * chunk},
            {"batch": 1, "new": chunk, "prompt": 1, "past": 1},
            {"batch": 2, "new": 2, "prompt": chunk, "past": 3 * chunk},
            {"batch": 1, "new": 3 * chunk, "prompt": 1, "past": 1},
        ),
        axes=streams
        | {name: {0: "batch", 2: "new"} for name in ("x", "mu", "cond")}
        | {"tails": {0: "rows"}}
        | {f"{part}_{kind}": {0: part, 1: "rows"} for part in ("prompt", "past") for kind in "kv"},
        outputs=("velocity", "new_tails*", "new_k*", "new_v*"),
    )


def hift_graphs(config: HiftConfig, state: StateDict) -> Iterator[Spec]:
    """Vocoder of all versions."""
    sizes = ({"batch": 2, "frames": 40}, {"batch": 1, "frames": 9}, {"batch": 3, "frames": 2})
    harmonics = config.harmonics + 1
    yield Spec(
        "hift_f0",
        _load(F0Predictor(config), state),
        lambda batch, frames: {"mel": torch.randn(batch, config.mels, frames)},
        sizes=sizes,
        axes={"mel": {0: "batch", 2: "frames"}},
        outputs=("f0",),
        tolerance=1e-2,
    )
    yield Spec(
        "hift_source",
        _load(source_of(config), state),
        lambda batch, frames: {
            "f0": 200 + 50 * torch.randn(batch, frames, dtype=torch.float64),
            "phase": torch.full((batch, harmonics), 0.25, dtype=torch.float64),
            "start": torch.zeros(batch),
            "noise": torch.randn(batch, config.frame * frames, harmonics),
        },
        sizes=sizes,
        axes={
            "f0": {0: "batch", 1: "frames"},
            "phase": {0: "batch"},
            "start": {0: "batch"},
            "noise": {0: "batch", 1: "samples"},
        },
        outputs=("source", "phases"),
    )
    yield Spec(
        "hift_decoder",
        _load(Decoder(config), state),
        lambda batch, frames: {
            "mel": torch.randn(batch, config.mels, frames),
            "source": 0.1 * torch.randn(batch, 1, config.frame * frames),
        },
        sizes=sizes,
        axes={"mel": {0: "batch", 2: "frames"}, "source": {0: "batch", 2: "samples"}},
        outputs=("audio",),
    )


def transformer_graphs(config: TransformerConfig, state: StateDict) -> Iterator[Spec]:
    """Language model of version 1, behind a text encoder."""

    def text(batch: int, new: int) -> Inputs:
        return {"embeds": torch.randn(batch, new, config.text_inputs), "speaker": torch.randn(batch, config.speaker)}

    yield Spec(
        "llm_text",
        _load(TextEncoder(config), state),
        text,
        sizes=({"batch": 2, "new": 9}, {"batch": 1, "new": 1}, {"batch": 1, "new": 70}),
        axes={"embeds": {0: "batch", 1: "new"}, "speaker": {0: "batch"}},
        outputs=("text", "speaker_out"),
    )
    yield Spec(
        "llm_positions",
        _load(Positions(config), state),
        lambda new: {"distances": torch.arange(new)},
        sizes=({"new": 64}, {"new": 3}),
        axes={"distances": {0: "new"}},
        outputs=("positions*",),
    )

    def inputs(batch: int, new: int, capacity: int) -> Inputs:
        past = [(batch, config.heads, capacity, config.head_dim)] * config.layers
        return {
            "embeds": torch.randn(batch, new, config.inputs),
            "lengths": torch.arange(batch) % (capacity - new),
            "positions": _noise([(capacity, config.heads, config.head_dim)] * config.layers),
            "past_k": _noise(past),
            "past_v": _noise(past),
        }

    cached = {0: "batch", 2: "capacity"}
    yield Spec(
        "llm",
        _load(RelativeLM(config), state),
        inputs,
        sizes=(
            {"batch": 3, "new": 5, "capacity": 64},
            {"batch": 1, "new": 40, "capacity": 64},
            {"batch": 2, "new": 1, "capacity": 128},
        ),
        axes={
            "embeds": {0: "batch", 1: "new"},
            "lengths": {0: "batch"},
            "positions": {0: "capacity"},
            "past_k": cached,
            "past_v": cached,
        },
        outputs=("logits", "new_k*", "new_v*"),
    )


def window_flow_graphs(config: WindowFlowConfig, state: StateDict) -> Iterator[Spec]:
    """Flow of version 1: a conformer and a U-Net that see whole windows."""
    yield Spec(
        "flow_encoder",
        _load(WindowEncoder(config), state),
        lambda batch, tokens, frames: {
            "tokens": torch.arange(tokens).repeat(batch, 1) % config.tokens,
            "stretch": torch.rand(batch, frames, tokens) / tokens,
        },
        sizes=({"batch": 2, "tokens": 30, "frames": 50}, {"batch": 1, "tokens": 1, "frames": 2}),
        axes={"tokens": {0: "batch", 1: "tokens"}, "stretch": {0: "batch", 1: "frames", 2: "tokens"}},
        outputs=("mu",),
    )
    frames = {0: "batch", 2: "frames"}
    yield Spec(
        "flow_estimator",
        _load(WindowFlow(config), state),
        lambda batch, frames: {
            **{name: torch.randn(batch, config.mels, frames) for name in ("x", "mu", "cond")},
            "embedding": torch.randn(batch, config.speaker),
            "t": torch.rand(batch),
        },
        # Halving and doubling an odd length yields one frame too many.
        sizes=({"batch": 2, "frames": 50}, {"batch": 1, "frames": 33}, {"batch": 1, "frames": 2}),
        axes={"x": frames, "mu": frames, "cond": frames, "embedding": {0: "batch"}, "t": {0: "batch"}},
        outputs=("velocity",),
    )


def _load(module: nn.Module, state: StateDict) -> nn.Module:
    """Load a network's parameters from a checkpoint that also has those of other networks."""
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    return module


def _noise(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Make distinct tensors, because the exporter merges two inputs that are the same tensor."""
    return [torch.randn(shape) for shape in shapes]


def _compare(spec: Spec, path: Path, tolerance: float) -> None:
    graph = OnnxGraph(path)
    for sizes in spec.sizes:
        example = spec.inputs(**sizes)
        expected = _named(spec.outputs, _run(spec.module, example))
        found = graph(_arrays(example))
        for name, value in expected.items():
            error = float(np.abs(found[name] - value).max(initial=0)) if found[name].shape == value.shape else np.inf
            if not error <= tolerance * max(1.0, float(np.abs(value).max(initial=0))):
                raise BundleError(f"{spec.name}.onnx: {name} differs from torch by {error:.2g} at {sizes}")


def _run(module: nn.Module, inputs: Inputs) -> Any:
    with torch.inference_mode():
        return module(**inputs)


def _named(outputs: tuple[str, ...], results: Any) -> Outputs:
    values = results if isinstance(results, tuple) else (results,)
    named: dict[str, Any] = {
        name.rstrip("*"): [v.numpy() for v in value] if name.endswith("*") else value.numpy()
        for name, value in zip(outputs, values, strict=True)
    }
    return Outputs(flat(named))


def _arrays(inputs: Inputs) -> dict[str, NDArray[Any] | list[NDArray[Any]]]:
    return {k: [t.numpy() for t in v] if isinstance(v, list) else v.numpy() for k, v in inputs.items()}


def _program(spec: Spec, example: Inputs, outputs: list[str]) -> torch.onnx.ONNXProgram:
    shapes = {name: _dynamic(value, spec.axes.get(name, {})) for name, value in example.items()}
    with warnings.catch_warnings():
        # The exporter warns about its own internals, and about torchvision, which no network here uses.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            spec.module,
            kwargs=example,
            input_names=list(flat(_arrays(example))),
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program


def _dynamic(value: Any, axes: dict[int, str]) -> Any:
    if isinstance(value, list):
        return [_dynamic(item, axes) for item in value]
    return dict.fromkeys(axes, Dim.DYNAMIC)


def write_whole(spec: Spec, path: Path) -> None:
    """Write a graph with its weights in one file, like a bundle's own graphs, without a check against torch."""
    example = spec.inputs(**spec.sizes[0])
    onnx.save_model(_readable(_program(spec, example, list(spec.outputs)), spec), str(path))


def _save(model: onnx.ModelProto, path: Path) -> None:
    for old in (path, _data(path)):
        old.unlink(missing_ok=True)
    onnx.save_model(model, str(path), save_as_external_data=True, location=_data(path).name, size_threshold=256)


def _readable(program: torch.onnx.ONNXProgram, spec: Spec) -> onnx.ModelProto:
    """Remove the exporter's notes, which hold paths of this machine, and give axes readable names."""
    model: onnx.ModelProto = program.model_proto
    del model.graph.value_info[:]
    for item in (model, model.graph, *model.graph.node):
        del item.metadata_props[:]
        item.doc_string = ""
    names = _symbols(spec, model)
    for info in (*model.graph.input, *model.graph.output):
        for axis in info.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), axis.dim_param)
    return model


def _symbols(spec: Spec, model: onnx.ModelProto) -> dict[str, str]:
    """Map the exporter's names of variable axes to ours."""
    names = {}
    for info in model.graph.input:
        axes = spec.axes.get(info.name, spec.axes.get(info.name.rpartition("_")[0], {}))
        for axis, name in axes.items():
            names[info.type.tensor_type.shape.dim[axis].dim_param] = name
    return names


def _data(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def _value(info: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = info.type.tensor_type
    shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return {"dtype": onnx.TensorProto.DataType.Name(kind.elem_type), "shape": shape}
