"""Find out the version of a bundle, from the name of its YAML, and read its sizes and tokenizer."""

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
    """Return the version of the bundle in `folder`.

    Raises:
        BundleError: no YAML of a known version is in the folder.
    """
    for version in versions.every():
        if (folder / version.bundle.yaml).is_file():
            return version
    if not folder.is_dir():
        raise BundleError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    names = ", ".join(version.bundle.yaml for version in versions.every())
    raise BundleError(f"{folder.name}: not a CosyVoice bundle: it has none of {names}")


def files_of(version: Version) -> tuple[str, ...]:
    """List all files that a bundle must have."""
    layout = version.bundle
    return (layout.yaml, *_CHECKPOINTS, layout.speech_tokenizer, *layout.others)


def read_config(folder: Path, version: Version) -> ModelConfig:
    """Read the sizes of the model in `folder`.

    Raises:
        BundleError: a value is missing or wrong; the message names file and key.
    """
    layout = version.bundle
    root = Section(layout.yaml, "", read_yaml(folder / layout.yaml))
    config: ModelConfig = resolve(layout.reader)(folder, root, version)
    return config


def read_tokenizer(folder: Path, version: Version) -> Tokenizer:
    """Load the text tokenizer of the bundle in `folder`."""
    tokenizer: Tokenizer = resolve(version.bundle.tokenizer)(folder, version)
    return tokenizer
