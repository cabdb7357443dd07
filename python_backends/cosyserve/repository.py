"""The model repository: for each model its ``model.py`` and a ``config.pbtxt`` rendered from the contracts.

`cosyserve serve` renders one for its profile and its weights at each start. The one in the source is the profile
``gpu`` at 24 kHz, for starting tritonserver without the launcher.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cosyserve import versions
from cosyserve.config import ModelConfig
from cosyserve.contracts import MODELS, SAMPLE_RATE_PARAMETER, TTS, UPSTREAM, Model
from cosyserve.errors import ServeError
from cosyserve.limits import MAX_LLM_SLOTS, MAX_STREAMS
from cosyserve.runtimes.registry import TORCH

SAMPLE_RATE = 24_000
"""Hz that the repository in the source promises to clients."""

PARAMETERS: dict[str, dict[str, str]] = {
    **{
        model.name: {"max_streams": str(MAX_STREAMS), "first_hop": "25", "max_hop": "100"} for model in (TTS, *UPSTREAM)
    },
    "voices": {},
    "frontend": {"threads": "1"},
    "llm": {"threads": "1", "llm_slots": str(MAX_LLM_SLOTS)},
    "flow": {"threads": "1", "flow_cache_mib": "8192"},
    "hift": {"threads": "1"},
}
"""Settings of each model, whatever the profile."""

PROFILES: dict[str, dict[str, dict[str, str]]] = {
    "cpu": {
        # Measured with `cosyserve bench` on two cores: at 16 streams, two calls of one thread each give about twice
        # the audio of one call of two threads; and a call for several streams takes as long as a call for each.
        "flow": {"concurrency": "2"},
    },
    "gpu": {
        # What a second chunk takes is far less than the shorter first one lasts.
        **{model.name: {"first_hop": "16"} for model in (TTS, *UPSTREAM)},
        # A voice that nobody has heard: 10 ms instead of seconds.
        "frontend": {"device": "cuda"},
        "llm": {"runtime": TORCH.name, "llm_precision": "fp32"},
        # Nearer to float32 than bf16, by a factor of ten in log-mel distance.
        "flow": {"runtime": TORCH.name, "precision": "fp16", "concurrency": "32", "flow_cache_mib": "0"},
        # The vocoder is always float32.
        "hift": {"runtime": TORCH.name, "concurrency": "32"},
    },
}
"""Settings of each model that a profile adds or replaces."""


def source() -> Path:
    """The model repository of this installation: beside the source in a checkout, inside the package when installed."""
    here = Path(__file__).resolve().parent
    for folder in (here / "model_repository", here.parents[1] / "model_repository"):
        if folder.is_dir():
            return folder
    raise ServeError("the model repository is missing from this installation")


def served(config: ModelConfig) -> tuple[Model, ...]:
    """The models for weights of this configuration: of upstream's contracts, only that of their version."""
    own = versions.of(config).upstream
    return tuple(model for model in MODELS if model not in UPSTREAM or model.name == own)


def write(folder: Path, profile: str, config: ModelConfig) -> None:
    """Write the model repository for a profile and weights of this configuration into a new or empty folder.

    Raises:
        ServeError: the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ServeError(f"{folder} is not an empty folder")
    for model in served(config):
        shutil.copytree(source() / model.name, folder / model.name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / model.name / "config.pbtxt").write_text(render(model, profile, config.sample_rate), "utf-8")


def paths(repository: Path) -> dict[Path, str]:
    """Every configuration file of the repository in the source, with the text that it should have."""
    return {repository / model.name / "config.pbtxt": render(model, "gpu", SAMPLE_RATE) for model in MODELS}


def render(model: Model, profile: str, sample_rate: int) -> str:
    """The text of one configuration file.

    Args:
        sample_rate: of the weights, in Hz; clients read it from the configuration of `tts`.
    """
    from cosyserve.model_config import render_config  # imports gRPC, which takes half a second

    parameters = PARAMETERS.get(model.name, {}) | PROFILES[profile].get(model.name, {})
    if model is TTS:
        parameters[SAMPLE_RATE_PARAMETER] = str(sample_rate)
    return render_config(model, parameters, on_gpu=profile == "gpu" and model.computes)
