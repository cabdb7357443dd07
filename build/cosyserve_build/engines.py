"""Build TensorRT plans for the GPU of this machine from prepared weights. Not verified on hardware."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import onnx
from onnx import ModelProto

from cosyserve.errors import WeightsError
from cosyserve.runtimes.buckets import Profile
from cosyserve.runtimes.engine_files import EngineSpec, engine_precision, profile, save_engine
from cosyserve.runtimes.tensorrt import load_tensorrt, this_gpu
from cosyserve.weights import Weights
from cosyserve_build import operators
from cosyserve_build.autocast import HALF, autocast


def engines(
    folder: Path, precision: str, graphs: Sequence[str], report: Callable[[str], None] = lambda line: None
) -> None:
    """Build a plan of each graph in the folder ``plans`` of the weights, with a JSON that describes it.

    All graphs are checked before TensorRT is imported, so the checks work without it.

    Args:
        folder: prepared weights.
        precision: ``fp16``, ``bf16`` or ``fp32``; the vocoder is always float32.
        graphs: names of the graphs.
        report: called with a line of text after each finished part.

    Raises:
        WeightsError: TensorRT cannot run a graph, TensorRT or a GPU is missing, or the build failed.
    """
    weights = Weights(folder)
    checked: list[tuple[str, ModelProto, Profile]] = []
    for graph in graphs:
        shapes = profile(weights, graph)
        model = typed(onnx.load(str(weights.graph(graph))), engine_precision(graph, precision))
        operators.check(graph, model)
        checked.append((graph, model, shapes))
        report(f"{graph}: every operator and type suits TensorRT; {len(shapes)} inputs vary along the ladder")
    trt, gpu = load_tensorrt(), this_gpu()
    for graph, model, shapes in checked:
        plan = EngineSpec.wanted(weights, graph, gpu, trt.__version__, precision)
        path = save_engine(folder, plan, _build(trt, graph, model, shapes))
        report(f"{path}: built")


def typed(model: ModelProto, precision: str) -> ModelProto:
    """Return the graph with its precision written into it; float32 graphs need no change."""
    return autocast(model, precision) if precision in HALF else model


def _build(trt: ModuleType, graph: str, model: ModelProto, shapes: Profile) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # TensorRT 11 has only strongly typed networks and ignores the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise WeightsError(f"{graph}: TensorRT cannot read the graph: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # graphs in float32 need its full precision
    ranges = builder.create_optimization_profile()
    for name, (least, usual, greatest) in shapes.items():
        ranges.set_shape(name, least, usual, greatest)
    config.add_optimization_profile(ranges)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise WeightsError(f"{graph}: TensorRT could not build a plan; its log above says why")
    return bytes(plan)
