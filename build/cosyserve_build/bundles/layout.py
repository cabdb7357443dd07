"""What a bundle says about its model. Its version is the one whose YAML lies in it."""

from __future__ import annotations

from pathlib import Path

from cosyserve import versions
from cosyserve.config import ModelConfig
from cosyserve.errors import BundleError
from cosyserve.lazy import resolve
from cosyserve.text.tokenizer import Tokenizer
from cosyserve.versions.base import Version
from cosyserve_build.bundles.hyperyaml import read_yaml
from cosyserve_build.bundles.section import Section

_CHECKPOINTS = ("llm.pt", "flow.pt", "hift.pt", "campplus.onnx")


def version_of(folder: Path) -> Version:
    """The version of the bundle in `folder`.

    Raises:
        BundleError: no file says which version it is.
    """
    for version in versions.every():
        if (folder / version.bundle.yaml).is_file():
            return version
    if not folder.is_dir():
        raise BundleError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    names = ", ".join(version.bundle.yaml for version in versions.every())
    raise BundleError(f"{folder.name}: no CosyVoice bundle: it has none of {names}")


def files_of(version: Version) -> tuple[str, ...]:
    """All files that a bundle must have."""
    layout = version.bundle
    return (layout.yaml, *_CHECKPOINTS, layout.speech_tokenizer, *layout.others)


def read_config(folder: Path, version: Version) -> ModelConfig:
    """The sizes of the model in `folder`.

    Raises:
        BundleError: naming file and key.
    """
    layout = version.bundle
    root = Section(layout.yaml, "", read_yaml(folder / layout.yaml))
    config: ModelConfig = resolve(layout.reader)(folder, root, version)
    return config


def read_tokenizer(folder: Path, version: Version) -> Tokenizer:
    """The text tokenizer of the bundle in `folder`."""
    tokenizer: Tokenizer = resolve(version.bundle.tokenizer)(folder, version)
    return tokenizer
