"""Prepared weights: a folder with a manifest, checked before anything in it is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve import versions
from cosyserve.errors import WeightsError
from cosyserve.versions.base import Version

FORMAT = 2
"""Version of the folder's layout; a server refuses any other."""

MANIFEST = "manifest.json"

VOICES_FOLDER = "voices"
"""Of the registered voices, which come and go while the rest stays as it was prepared."""


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Weights:
    """A folder written by ``cosyserve-build prepare``.

    Args:
        folder: where ``manifest.json`` lies.

    Raises:
        WeightsError: the manifest is missing, unreadable or of another format or of an unknown version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        except FileNotFoundError:
            if not folder.exists():
                raise WeightsError(f"{folder} does not exist") from None
            raise WeightsError(f"{folder} holds no {MANIFEST}: make it with `cosyserve-build prepare`") from None
        except NotADirectoryError:
            raise WeightsError(f"{folder} is not a folder") from None
        except OSError as error:
            raise WeightsError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise WeightsError(f"{MANIFEST} is not JSON: {error}") from None
        found = self.manifest.get("format")
        if found != FORMAT:
            raise WeightsError(f"{MANIFEST}: format {found}, this version reads {FORMAT}; prepare the bundle again")
        self.config = versions.model_config(self.manifest["model"])

    @property
    def version(self) -> Version:
        """The description of their CosyVoice version."""
        return versions.of(self.config)

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that what they say is noise."""
        return bool(self.manifest["random"])

    def file(self, name: str) -> Path:
        """A file of the folder, after checking size and SHA-256 against the manifest.

        Raises:
            WeightsError: not listed, elsewhere, missing, or changed since it was prepared.
        """
        listed = self.manifest["files"].get(name)
        if listed is None:
            raise WeightsError(f"{name} is not in {MANIFEST}")
        if Path(name).name != name:
            raise WeightsError(f"{MANIFEST}: {name!r} is no file of this folder")
        path = self.folder / name
        if not path.is_file():
            raise WeightsError(f"{name} is missing from the weights folder")
        if path.stat().st_size != listed["bytes"] or sha256(path) != listed["sha256"]:
            raise WeightsError(f"{name} differs from its checksum in {MANIFEST}; prepare the bundle again")
        return path

    def check(self) -> None:
        """Check every file that is listed.

        Raises:
            WeightsError: as for `file`.
        """
        for name in self.manifest["files"]:
            self.file(name)

    def graph(self, name: str) -> Path:
        """The ``.onnx`` file of a graph, it and its external data checked.

        Raises:
            WeightsError: as for `file`, or the weights were prepared for another runtime alone.
        """
        if name not in self.manifest["graphs"]:
            raise WeightsError(f"{name}.onnx is not in the weights folder: prepare the bundle with `--runtime onnx`")
        paths = [self.file(part) for part in self.manifest["graphs"][name]["files"]]
        return paths[0]


def map_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """The float32 tensors of a safetensors file, memory-mapped: a row is read from disk when it is used.

    Layout: 8 bytes of header length, a JSON header with types, shapes and offsets, then the data.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    mapped: dict[str, NDArray[np.float32]] = {}
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            raise WeightsError(f"{path.name}: {name} is {entry['dtype']}, expected F32")
        start = 8 + length + entry["data_offsets"][0]
        mapped[name] = np.memmap(path, np.float32, "r", start, tuple(entry["shape"]))
    return mapped
