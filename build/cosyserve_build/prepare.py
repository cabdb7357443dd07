"""Convert a CosyVoice bundle to prepared weights: the files that the server loads, each with a checksum."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from cosyserve import versions
from cosyserve.config import ModelConfig
from cosyserve.errors import BundleError, Unsupported
from cosyserve.lazy import resolve
from cosyserve.runtimes import registry
from cosyserve.runtimes.torch.modules import weights_file
from cosyserve.voices import VoiceStore, voices_from_spk2info
from cosyserve.weights import FORMAT, MANIFEST, VOICES_FOLDER, sha256
from cosyserve_build import export
from cosyserve_build.bundles import bundle
from cosyserve_build.bundles.bundle import StateDict
from cosyserve_build.export_gguf import Quantisation, write_speech_gguf
from cosyserve_build.folder import replaced
from cosyserve_build.noise import flow_noise, vocoder_draws
from cosyserve_build.precision import PRECISIONS

TOOLS = ("cosyserve", "torch", "onnx", "onnxscript", "onnxruntime")


def prepare(
    source: Path,
    out: Path,
    report: Callable[[str], None] = lambda line: None,
    runtimes: Collection[str] = (registry.ONNX.name,),
    llm_gguf: Quantisation | None = None,
    precision: str = "fp32",
) -> None:
    """Write prepared weights of the bundle in `source` to the new folder `out`.

    Everything is written beside `out` first and moved there when it is complete, so `out` is never incomplete.
    Voices that users registered in earlier weights of the same CosyVoice version are kept.

    Args:
        source: a CosyVoice bundle in the official layout.
        out: must be absent, or hold earlier prepared weights, which are replaced.
        report: called with a line of text after each finished part.
        runtimes: those of `registry.PREPARED` that will run the networks; each has its own files, of the same total
            size.
        llm_gguf: type of the matrices in ``llm.gguf``, the language model for llama.cpp; None to omit the file.
        precision: one of `PRECISIONS`, in which ONNX graphs store their weights.

    Raises:
        BundleError: the bundle is invalid, `llm_gguf` does not fit its sizes, `precision` does not fit its values or
            `runtimes`, or `out` holds other files, or voices registered with another version.
        Unsupported: a runtime of `runtimes` does not support the bundle's version.
    """
    if precision != "fp32" and registry.ONNX.name not in runtimes:
        raise BundleError(f"precision {precision} applies to ONNX graphs only: prepare with --runtime onnx")
    if out.exists() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise BundleError(f"{out} holds files other than prepared weights; name another folder")
    opened = bundle.read(source)
    earlier = VoiceStore(out / VOICES_FOLDER)
    registered = [card for card in earlier.cards() if card.created]
    if registered and _version(out) != opened.version:
        raise BundleError(f"{out} holds voices registered with another CosyVoice version; name another folder")
    with replaced(out) as folder:
        _write(opened, folder, report, runtimes, llm_gguf, precision)
        for card in registered:
            voice = earlier.get(card.name)
            VoiceStore(folder / VOICES_FOLDER).save(voice, consent=card.consent, created=card.created, replace=True)
            report(f"voice {card.name}: kept")


def _version(weights: Path) -> int | None:
    """Return the CosyVoice version of prepared weights in any format."""
    version: int | None = json.loads((weights / MANIFEST).read_text("utf-8")).get("model", {}).get("version")
    return version


def _write(
    opened: bundle.Bundle,
    folder: Path,
    report: Callable[[str], None],
    runtimes: Collection[str],
    llm_gguf: Quantisation | None,
    precision: str,
) -> None:
    config = opened.config
    states = {"llm": opened.llm(), "flow": opened.flow(), "hift": opened.hift()}
    graphs: dict[str, Any] = {}
    for name in registry.PREPARED:
        if name in runtimes:
            runtime = registry.get(name)
            if not runtime.runs(opened.description):
                raise Unsupported(
                    f"--runtime {name}: not for CosyVoice version {opened.version} yet; it runs on {registry.ONNX.name}"
                )
            graphs |= resolve(runtime.writer)(config, states, folder, report, precision)
    if llm_gguf:
        write_speech_gguf(opened, folder / "llm.gguf", llm_gguf)
        report(f"llm.gguf: written, {llm_gguf}")
    save_file({name: states["llm"][key] for name, key in _TABLES if key in states["llm"]}, folder / "llm.safetensors")
    if config.flow.fixed_noise:
        save_file({"noise": flow_noise(config.flow.mels)}, folder / "flow.safetensors")
    if config.hift.fixed_noise:
        save_file({"twister": torch.from_numpy(vocoder_draws(config)[1])}, folder / "hift_noise.safetensors")
    shutil.copyfile(opened.campplus, folder / "campplus.onnx")
    shutil.copyfile(opened.speech_tokenizer, folder / "speech_tokenizer.onnx")
    opened.text_tokenizer().save(folder / "tokenizer.json")
    report("embedding tables, noise, tokenizer, speaker model and speech tokenizer: copied")
    (folder / VOICES_FOLDER).mkdir()
    store = VoiceStore(folder / VOICES_FOLDER)
    speakers = {
        name: {key: value for key, value in entry.items() if isinstance(value, np.ndarray)}
        for name, entry in opened.spk2info().items()
    }
    for voice in voices_from_spk2info(speakers):
        store.save(voice)
        report(f"voice {voice.name}: imported")
    # The manifest omits voices: users add and delete them, and each file has its own checksum.
    files = sorted(path for path in folder.iterdir() if path.is_file())
    manifest = {
        "format": FORMAT,
        "precision": precision,
        "random": _random(opened.folder),
        "tools": {tool: version(tool) for tool in TOOLS},
        "model": config.to_dict(),
        "graphs": graphs,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")


_TABLES = (
    ("text", "llm.model.model.embed_tokens.weight"),
    ("text", "text_embedding.weight"),
    ("speech", "speech_embedding.weight"),
    ("special", "llm_embedding.weight"),
)
"""Names of the embedding tables in ``llm.safetensors``, and in checkpoints."""


def write_graphs(
    config: ModelConfig, states: dict[str, StateDict], folder: Path, report: Callable[[str], None], precision: str
) -> dict[str, Any]:
    """Write the networks as checked ONNX graphs, and return their entries in the manifest."""
    graphs: dict[str, Any] = {}
    lowered = PRECISIONS[precision]
    for spec in export.graphs(config, states["llm"], states["flow"], states["hift"]):
        graphs[spec.name] = export.export(spec, folder, lowered)
        near = lowered is not None and lowered.changes(spec.name)
        like = f"with {precision} weights near torch" if near else "equals torch"
        report(f"{spec.name}.onnx: checked, {like} in onnxruntime")
    return graphs


def write_torch(
    config: ModelConfig, states: dict[str, StateDict], folder: Path, report: Callable[[str], None], precision: str
) -> dict[str, Any]:
    """Write the parameters of the torch modules, and return no graphs."""
    for stage, network in versions.of(config).networks.items():
        with torch.device("meta"):
            modules: list[nn.Module] = [resolve(module)(getattr(config, stage)) for module in network.modules]
        names = {name for module in modules for name in module.state_dict()}
        save_file({name: states[stage][name] for name in names}, folder / weights_file(stage))
        report(f"{weights_file(stage)}: written")
    return {}


def _random(folder: Path) -> bool:
    """Return whether `synth-bundle` wrote the bundle, according to its ``configuration.json``."""
    path = folder / "configuration.json"
    return path.is_file() and bool(json.loads(path.read_text("utf-8")).get("random_weights", False))
