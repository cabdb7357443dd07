"""The runtimes: what each can run, on which device and with which precision, and what loads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cosyserve.errors import WeightsError
from cosyserve.lazy import resolve
from cosyserve.versions.base import Version

STAGES = ("llm", "flow", "hift")
"""What runtimes run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One runtime.

    Attributes:
        name: what settings call it.
        loaders: for each stage that it runs, weights and settings to what the stage runs, by lazy name.
        networks: names (`Network.name`) of those it has; None: all, because every version exports its own.
        devices: where it runs.
        precisions: of layers of llm and flow and of what they keep.
        side_by_side: computes streams in calls side by side, and not in one batch: a CPU gains nothing from a batch.
        plans: whether it takes TensorRT plans where there are some.
        writer: what writes its form of the weights, by lazy name; empty where it has none of its own.
        extra: of the package, that brings what it needs.
    """

    name: str
    loaders: Mapping[str, str]
    networks: frozenset[str] | None
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    side_by_side: bool = False
    plans: bool = False
    writer: str = ""
    extra: str

    def runs(self, version: Version) -> bool:
        """Whether it has the networks of a version, of all stages that it runs."""
        return self.networks is None or {version.networks[stage].name for stage in self.loaders} <= self.networks


_IN_TORCH = {
    "llm": "cosyserve.runtimes.torch.llm:load_decoder",
    "flow": "cosyserve.runtimes.torch.flow:load_flow",
    "hift": "cosyserve.runtimes.torch.hift:load_hift",
}

ONNX = Runtime(
    name="onnx",
    loaders={
        "llm": "cosyserve.runtimes.onnx.stages:load_llm",
        "flow": "cosyserve.runtimes.onnx.stages:load_flow",
        "hift": "cosyserve.runtimes.onnx.stages:load_hift",
    },
    networks=None,
    devices=("cpu",),
    precisions=("fp32",),
    side_by_side=True,
    writer="cosyserve_build.prepare:write_graphs",
    extra="cpu",
)

TORCH = Runtime(
    name="torch",
    loaders=_IN_TORCH,
    networks=frozenset(
        {
            "Qwen2LM",
            "CosyVoice3LM",
            "CausalMaskedDiffWithXvec",
            "CausalMaskedDiffWithDiT",
            "HiFTGenerator with SineGen2",
            "CausalHiFTGenerator",
        }
    ),
    devices=("cpu", "cuda"),
    precisions=("fp32", "bf16", "fp16"),
    writer="cosyserve_build.prepare:write_torch",
    extra="gpu",
)

TENSORRT = Runtime(
    name="tensorrt",
    loaders=_IN_TORCH,
    networks=TORCH.networks,
    devices=("cuda",),
    precisions=TORCH.precisions,
    plans=True,
    extra="gpu",
)

GGUF = Runtime(
    name="gguf",
    loaders={"llm": "cosyserve.runtimes.gguf:load_decoder"},
    networks=frozenset({"Qwen2LM"}),
    devices=("cpu",),
    precisions=("fp32",),
    extra="gguf",
)

RUNTIMES = (ONNX, TORCH, TENSORRT, GGUF)

ALL_STAGES = tuple(runtime.name for runtime in RUNTIMES if set(runtime.loaders) == set(STAGES))
"""Names of the runtimes that run everything."""

LLM_ALONE = tuple(runtime.name for runtime in RUNTIMES if set(runtime.loaders) == {"llm"})
"""Names of those that run the language model, beside another one for the rest."""

PREPARED = tuple(runtime.name for runtime in RUNTIMES if runtime.writer)
"""Names of those that take the weights in a form of their own."""

DEVICES = tuple(dict.fromkeys(device for runtime in RUNTIMES for device in runtime.devices))
PRECISIONS = tuple(dict.fromkeys(precision for runtime in RUNTIMES for precision in runtime.precisions))


def get(name: str) -> Runtime:
    """The runtime of that name; ``KeyError`` when there is none."""
    return _BY_NAME[name]


def loader(stage: str, name: str, version: Version) -> Callable[..., Any]:
    """What loads a stage of a version.

    Raises:
        WeightsError: the runtime does not run the version, or a package that it needs is not installed; the message
            names the setting.
    """
    runtime = get(name)
    alone = name in LLM_ALONE
    setting, instead = ("llm_runtime", "leave it empty") if alone else ("runtime", "use onnx, on a CPU (--profile cpu)")
    if not runtime.runs(version):
        problem = f"{name} does not run CosyVoice version {version.number}"
        raise WeightsError(f"setting {setting}: {problem}; {instead}")
    try:
        found: Callable[..., Any] = resolve(runtime.loaders[stage])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cosyserve"):
            raise
        raise WeightsError(f"setting {setting}: {name} needs `pip install 'cosyserve[{runtime.extra}]'`") from None
    return found


_BY_NAME = {runtime.name: runtime for runtime in RUNTIMES}
