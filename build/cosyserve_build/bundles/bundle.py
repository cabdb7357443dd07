"""Read a CosyVoice bundle as data: check its files, read its sizes, load its checkpoints as checked state dicts."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosyserve.config import ModelConfig
from cosyserve.errors import BundleError
from cosyserve.text.tokenizer import Tokenizer
from cosyserve.versions.base import Version
from cosyserve_build.bundles.layout import files_of, read_config, read_tokenizer, version_of
from cosyserve_build.bundles.onnx_file import check_whole
from cosyserve_build.bundles.parts import QWEN
from cosyserve_build.bundles.shapes import expected_shapes

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

StateDict = dict[str, "torch.Tensor"]

LISTED = 5  # differences spelled out in one error


def read(folder: Path | str) -> Bundle:
    """Open the bundle in `folder`.

    Raises:
        BundleError: files are missing (all of them are named), or the YAML lacks a key or names another class.
        Unsupported: a CosyVoice 1 bundle has an unknown text tokenizer.
    """
    folder = Path(folder)
    version = version_of(folder)
    missing = [name for name in files_of(version) if not (folder / name).is_file()]
    if missing:
        raise BundleError(f"{folder.name}: missing {', '.join(missing)}")
    return Bundle(folder, version, read_config(folder, version))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files exist and whose YAML is valid. Checkpoints are loaded on demand.

    Attributes:
        folder: of the bundle.
        description: the version's description.
        config: sizes and constants.
    """

    folder: Path
    description: Version
    config: ModelConfig

    @property
    def version(self) -> int:
        """CosyVoice generation."""
        return self.description.number

    @property
    def campplus(self) -> Path:
        """ONNX graph of the speaker encoder: fbank f32 [B,T,80] to f32 [B,192].

        Raises:
            BundleError: the graph is unreadable, refers to other files, or uses operators that onnxruntime lacks.
        """
        return check_whole(self.folder / "campplus.onnx")

    @property
    def speech_tokenizer(self) -> Path:
        """ONNX graph of the speech tokenizer: log-mel f32 [B,128,T], length i32 [B] to ids i32 [B,ceil(T/4)].

        Raises as `campplus`.
        """
        return check_whole(self.folder / self.description.bundle.speech_tokenizer)

    @property
    def tokenizer(self) -> Path:
        """Folder with vocab.json and merges.txt of the text tokenizer."""
        return self.folder / QWEN

    def text_tokenizer(self) -> Tokenizer:
        """Load the text tokenizer.

        Raises:
            BundleError: one of its files is malformed.
        """
        return read_tokenizer(self.folder, self.description)

    def llm(self) -> StateDict:
        """``llm.pt`` without the unused ``llm.model.lm_head``: contiguous float32, keys and shapes checked.

        Raises:
            BundleError: the file is unreadable, or its keys or shapes differ from those that the YAML implies.
        """
        state = _load_state(self.folder / "llm.pt")
        state.pop("llm.model.lm_head.weight", None)
        return self._checked("llm", state)

    def flow(self) -> StateDict:
        """``flow.pt``: contiguous float32, keys and shapes checked. Raises as `llm`."""
        return self._checked("flow", _load_state(self.folder / "flow.pt"))

    def hift(self) -> StateDict:
        """``hift.pt`` with ``generator.`` cut from the keys and weight norm folded. Raises as `llm`."""
        raw = {key.replace("generator.", ""): value for key, value in _load_state(self.folder / "hift.pt").items()}
        return self._checked("hift", fold_weight_norm(raw))

    def spk2info(self) -> dict[str, dict[str, NDArray[Any] | str]]:
        """Stored speakers with upstream's keys and numpy arrays; empty if the bundle has no spk2info.pt."""
        import torch

        path = self.folder / "spk2info.pt"
        if not path.exists():
            return {}
        speakers: dict[str, dict[str, NDArray[Any] | str]] = {}
        for name, info in _load(path).items():
            if not isinstance(info, dict):
                raise BundleError(f"{path.name}: {name}: expected a dict of tensors, found {type(info).__name__}")
            speakers[name] = {
                key: np.ascontiguousarray(value.numpy()) if isinstance(value, torch.Tensor) else str(value)
                for key, value in info.items()
            }
        return speakers

    def _checked(self, part: str, state: StateDict) -> StateDict:
        expected = expected_shapes(self.config, part)
        found = {key: tuple(value.shape) for key, value in state.items()}
        wrong = [
            f"{key} expected {_shape(expected.get(key))}, found {_shape(found.get(key))}"
            for key in sorted(expected.keys() | found.keys())
            if expected.get(key) != found.get(key)
        ]
        if wrong:
            more = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
            raise BundleError(f"{part}.pt: {len(wrong)} tensors differ: {'; '.join(wrong[:LISTED])}{more}")
        return _own(state)


def fold_weight_norm(state: StateDict) -> StateDict:
    """Replace gain and direction by the weight ``g * v / |v|``, norm over all dimensions but the first.

    Accepts torch's parametrization names, the older ``weight_g`` / ``weight_v``, and plain weights.
    """
    folded = dict(state)
    for gain, direction in (
        (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        (".weight_g", ".weight_v"),
    ):
        for name in [key.removesuffix(gain) for key in state if key.endswith(gain)]:
            if name + direction in state:
                g, v = folded.pop(name + gain).float(), folded.pop(name + direction).float()
                norm = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.dim() - 1))
                folded[f"{name}.weight"] = v * (g.reshape(norm.shape) / norm)  # exact where the gain is the norm
    return folded


def _load_state(path: Path) -> StateDict:
    import torch

    state = _load(path)
    strange = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise BundleError(f"{path.name}: not a plain state dict: {', '.join(strange[:LISTED])} are not tensors")
    return state


def _load(path: Path) -> dict[str, Any]:
    """Load the dict in a checkpoint; tensors are memory-mapped where its format allows."""
    import torch

    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # torch cannot map the old format, which is not a zip file
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, pickle.UnpicklingError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise BundleError(f"{path.name}: unreadable: {reason}") from problem
    if not isinstance(state, dict):
        raise BundleError(f"{path.name}: expected a dict, found {type(state).__name__}")
    return state


def _own(state: StateDict) -> StateDict:
    """Make tensors contiguous float32, no two in shared memory. Copies views and tied tensors; others stay mapped."""
    seen: set[int] = set()
    owned: StateDict = {}
    for key, value in state.items():
        tensor = value.float().contiguous()
        shared = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        if shared or tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        owned[key] = tensor
    return owned


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))
