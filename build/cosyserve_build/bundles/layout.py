"""What a bundle says about its model. Its version is the one whose YAML lies in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cosyserve.config import ModelConfig
from cosyserve.errors import BundleError
from cosyserve_build.bundles import cosyvoice1, cosyvoice2, cosyvoice3
from cosyserve_build.bundles.hyperyaml import read_yaml
from cosyserve_build.bundles.parts import QWEN
from cosyserve_build.bundles.section import Section

_CHECKPOINTS = ("llm.pt", "flow.pt", "hift.pt", "campplus.onnx")
_QWEN_FILES = (f"{QWEN}/config.json", f"{QWEN}/vocab.json", f"{QWEN}/merges.txt")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How bundles of one version are laid out.

    Attributes:
        version: CosyVoice generation.
        yaml: the file that describes the model, by which the version is told.
        speech_tokenizer: ONNX graph of the speech tokenizer.
        others: files that must be there besides.
        read: folder and content of `yaml` to the model's sizes.
    """

    version: int
    yaml: str
    speech_tokenizer: str
    others: tuple[str, ...]
    read: Callable[[Path, Section], ModelConfig]

    @property
    def files(self) -> tuple[str, ...]:
        """All files that a bundle must have."""
        return (self.yaml, *_CHECKPOINTS, self.speech_tokenizer, *self.others)

    def config(self, folder: Path) -> ModelConfig:
        """The sizes of the model in `folder`.

        Raises:
            BundleError: naming file and key.
        """
        return self.read(folder, Section(self.yaml, "", read_yaml(folder / self.yaml)))


RECIPES = (
    Recipe(1, "cosyvoice.yaml", "speech_tokenizer_v1.onnx", (), cosyvoice1.read),
    Recipe(2, "cosyvoice2.yaml", "speech_tokenizer_v2.onnx", _QWEN_FILES, cosyvoice2.read),
    Recipe(3, "cosyvoice3.yaml", "speech_tokenizer_v3.onnx", _QWEN_FILES, cosyvoice3.read),
)
"""In the order in which they are looked for, as upstream does (cli/cosyvoice.py :: AutoModel)."""


def recipe_of(folder: Path) -> Recipe:
    """The recipe of the bundle in `folder`.

    Raises:
        BundleError: no file says which version it is.
    """
    for recipe in RECIPES:
        if (folder / recipe.yaml).is_file():
            return recipe
    if not folder.is_dir():
        raise BundleError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    names = ", ".join(recipe.yaml for recipe in RECIPES)
    raise BundleError(f"{folder.name}: no CosyVoice bundle: it has none of {names}")
