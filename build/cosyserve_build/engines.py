"""Build TensorRT plans from prepared weights: for the GPU of this machine, or with TensorRT-RTX for any.

TensorRT-RTX has built them (`make check-tensorrt`). No plan has run on a GPU yet.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import onnx
from onnx import ModelProto

from cosyserve.errors import WeightsError
from cosyserve.runtimes.buckets import Profile
from cosyserve.runtimes.engine_files import (
    ANY,
    RTX,
    TENSORRT,
    EngineSpec,
    Gpu,
    engine_precision,
    profile,
    save_engine,
)
from cosyserve.runtimes.tensorrt import load_tensorrt, this_gpu
from cosyserve.weights import Weights
from cosyserve_build import operators
from cosyserve_build.autocast import HALF, autocast
from cosyserve_build.stacked import stacked


def engines(
    folder: Path,
    precision: str,
    graphs: Sequence[str],
    report: Callable[[str], None] = lambda line: None,
    rtx: str = "",
) -> None:
    """Build a plan of each graph in the folder ``plans`` of the weights, with a JSON that describes it.

    All graphs are checked before TensorRT is imported, so the checks work without it.

    Args:
        folder: prepared weights.
        precision: ``fp16``, ``bf16`` or ``fp32``; the vocoder is always float32.
        graphs: names of the graphs.
        report: called with a line of text after each finished part.
        rtx: builds with TensorRT-RTX for this compute capability, such as ``sm89``; no GPU is needed.

    Raises:
        WeightsError: TensorRT cannot run a graph, TensorRT or a GPU is missing, `rtx` is no compute capability, or the
            build failed.
    """
    capability = _capability(rtx) if rtx else None
    weights = Weights(folder)
    checked: list[tuple[str, ModelProto, Profile]] = []
    for graph in graphs:
        shapes = profile(weights, graph)
        model = stacked(typed(onnx.load(str(weights.graph(graph))), engine_precision(graph, precision)))
        operators.check(graph, model)
        checked.append((graph, model, shapes))
        report(f"{graph}: every operator and type suits TensorRT; {len(shapes)} inputs vary along the ladder")
    flavour = RTX if capability else TENSORRT
    trt = load_tensorrt(flavour)
    gpu = Gpu(ANY, capability) if capability else this_gpu()
    for graph, model, shapes in checked:
        plan = EngineSpec.wanted(weights, graph, gpu, trt.__version__, precision, flavour)
        began = time.monotonic()
        content = _build(trt, graph, model, shapes, capability)
        path = save_engine(folder, plan, content)
        report(f"{path}: built in {time.monotonic() - began:.0f} s, {len(content) / 2**20:.1f} MiB")


def _capability(name: str) -> str:
    """``sm89`` as ``8.9``."""
    if not (found := re.fullmatch(r"sm(\d{1,2})(\d)", name)):
        raise WeightsError(f"{name}: not a compute capability; write sm89, for example")
    return f"{found[1]}.{found[2]}"


def typed(model: ModelProto, precision: str) -> ModelProto:
    """Return the graph with its precision written into it; float32 graphs need no change."""
    return autocast(model, precision) if precision in HALF else model


def _build(trt: ModuleType, graph: str, model: ModelProto, shapes: Profile, capability: str | None) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # TensorRT 11 has only strongly typed networks and ignores the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise WeightsError(f"{graph}: TensorRT cannot read the graph: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # graphs in float32 need its full precision
    if capability:
        target = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if target is None:
            raise WeightsError(f"{RTX} {trt.__version__} builds nothing for compute capability {capability}")
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)
    ranges = builder.create_optimization_profile()
    for name, (least, usual, greatest) in shapes.items():
        ranges.set_shape(name, least, usual, greatest)
    config.add_optimization_profile(ranges)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise WeightsError(f"{graph}: TensorRT could not build a plan; its log above says why")
    return bytes(plan)
