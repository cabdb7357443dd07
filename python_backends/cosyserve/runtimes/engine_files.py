"""TensorRT plans in the weights folder: what each was built for, and which one fits.

A plan is native code for one GPU and one TensorRT version: load only what you built.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from cosyserve.errors import WeightsError
from cosyserve.runtimes import buckets
from cosyserve.runtimes.stacking import stacked_shapes
from cosyserve.weights import Weights

PLANS = "plans"
"""Folder of the plans inside the weights folder."""

HALVES = ("flow_estimator",)
"""Graphs that half precision suits. The vocoder is float32 in upstream too: it sums waves by their phases."""


TENSORRT = "TensorRT"
"""For data-centre cards: a plan fits the card that it was built on."""

RTX = "TensorRT-RTX"
"""For GeForce, RTX and Ada cards: a plan fits every card of a compute capability, and is built on any machine."""

ANY = "any"
"""Name of the GPU of a plan that fits all of its compute capability."""


class Gpu(NamedTuple):
    """A GPU model: its name and its compute capability, such as ``9.0``."""

    name: str
    capability: str


@dataclass(frozen=True)
class EngineSpec:
    """What a plan was built for; all of it must match where it runs.

    Attributes:
        graph: name of the graph.
        flavour: `TENSORRT` or `RTX`.
        gpu: name of the GPU, or `ANY`.
        capability: its compute capability, such as ``9.0``.
        tensorrt: its full version.
        precision: of the products and the caches; ``fp16``, ``bf16`` or ``fp32``.
        profile: hash of the input shapes, see `buckets.digest`.
        sha256: of the graph's files.
    """

    graph: str
    flavour: str
    gpu: str
    capability: str
    tensorrt: str
    precision: str
    profile: str
    sha256: str

    @classmethod
    def wanted(
        cls, weights: Weights, graph: str, gpu: Gpu, version: str, precision: str, flavour: str = TENSORRT
    ) -> EngineSpec:
        """The plan that fits these weights on this GPU with this version of a flavour.

        Raises:
            WeightsError: the graph has no shape ladder, or the ladder does not cover its inputs.
        """
        return cls(
            graph,
            flavour,
            ANY if flavour == RTX else gpu.name,
            gpu.capability,
            version,
            engine_precision(graph, precision),
            buckets.digest(profile(weights, graph)),
            _sha256(weights, graph),
        )

    @property
    def file(self) -> str:
        """Name of the plan's file."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        sm = self.capability.replace(".", "")
        digest = hashlib.sha256(f"{self.profile} {self.sha256}".encode()).hexdigest()[:12]
        kind = "rtx" if self.flavour == RTX else "trt"
        return f"{self.graph}-{gpu}-sm{sm}-{kind}{self.tensorrt}-{self.precision}-{digest}.plan"

    def differences(self, other: EngineSpec) -> str:
        """Each field in which another plan differs, with both values, for the eye."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return ", ".join(f"{name} {found}, wanted {wanted}" for name, found, wanted in pairs if found != wanted)


def engine_precision(graph: str, precision: str) -> str:
    """The precision of a graph's plan where ``precision`` is asked for."""
    return precision if graph in HALVES else "fp32"


def profile(weights: Weights, graph: str) -> buckets.Profile:
    """Input shapes that a plan of the graph takes.

    Raises:
        WeightsError: the graph has no shape ladder, the ladder misses an axis, or the weights lack the graph.
    """
    sizes = buckets.axes(graph, weights.config)
    inputs = _entry(weights, graph)["inputs"]
    return buckets.profile(stacked_shapes({name: entry["shape"] for name, entry in inputs.items()}), sizes)


def find_engine(folder: Path, graph: str, gpu: Gpu, version: str, precision: str, flavour: str = TENSORRT) -> Path:
    """The plan of a graph for this GPU and this TensorRT.

    Args:
        folder: prepared weights.
        version: full version of what is installed of this flavour.
        precision: ``fp16``, ``bf16`` or ``fp32``; graphs outside `HALVES` are float32 whatever it is.

    Raises:
        WeightsError: none was built, or what was built does not fit; the line says what differs.
    """
    wanted = EngineSpec.wanted(Weights(folder), graph, gpu, version, precision, flavour)
    refused = []
    for path in sorted((folder / PLANS).glob(f"{graph}-*.plan")):
        found = _read(path)
        if found == wanted:
            return path
        refused.append(f"{path.name} ({found.differences(wanted) if found else 'its JSON cannot be read'})")
    problem = f"does not fit: {'; '.join(refused)}" if refused else "was not built"
    raise WeightsError(f"the {flavour} plan of {graph} {problem}; run `cosyserve-build engines` on this machine")


def save_engine(folder: Path, plan: EngineSpec, content: bytes) -> Path:
    """Keep a plan for `find_engine`, with a JSON beside it that says what it was built for.

    The JSON comes first and each file in one move, so a plan that can be found is whole and described.

    Args:
        folder: prepared weights.
        content: what TensorRT serialised.
    """
    path = folder / PLANS / plan.file
    path.parent.mkdir(exist_ok=True)
    for target, data in ((_described(path), json.dumps(asdict(plan), indent=1).encode()), (path, content)):
        part = target.with_name(target.name + ".part")
        part.write_bytes(data)
        part.replace(target)
    return path


def _described(path: Path) -> Path:
    return path.with_suffix(".json")


def _read(path: Path) -> EngineSpec | None:
    try:
        return EngineSpec(**json.loads(_described(path).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _entry(weights: Weights, graph: str) -> dict[str, Any]:
    """The manifest's entry of a graph."""
    try:
        entry: dict[str, Any] = weights.manifest["graphs"][graph]
    except KeyError:
        raise WeightsError(f"{graph}.onnx is not in the weights folder: prepare with `--runtime onnx` too") from None
    return entry


def _sha256(weights: Weights, graph: str) -> str:
    """Of the checksums of a graph's files: the graph itself and its weights."""
    files = weights.manifest["files"]
    parts = (files[file]["sha256"] for file in _entry(weights, graph)["files"])
    return hashlib.sha256("".join(parts).encode()).hexdigest()
