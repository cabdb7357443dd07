"""Write the archive that `cosyserve.packed` reads, and extract the bundle from it."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cosyserve.packed import NETWORKS, RECIPE, extract
from cosyserve_build.bundles.bundle import StateDict, read
from cosyserve_build.demo_voice.checkpoints import write_checkpoints
from cosyserve_build.folder import replaced

_LEAST = 1024  # bytes of the smallest tensor that is shared between files
_LEFT_OUT = (".data", "llm.safetensors")
"""Suffixes of those files of prepared weights that contain the bundle's tensors."""


def pack(bundle: Path, weights: Path, archive: Path) -> None:
    """Pack a bundle with weights of float16 precision, and its prepared weights."""
    opened = read(bundle)
    states = {"llm": opened.llm(), "flow": opened.flow(), "hift": opened.hift()}
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(archive, "w:xz", preset=9) as packed:
        for network, state in states.items():
            path = Path(scratch, f"{network}.safetensors")
            save_file({name: value.half().contiguous() for name, value in state.items()}, path)
            packed.add(path, f"bundle/{path.name}", filter=_plain)
        pieces = _pieces(states)
        recipe: dict[str, Any] = {}
        for folder, name in ((bundle, "bundle"), (weights, "weights")):
            for path in sorted(folder.rglob("*")):
                inner = path.relative_to(folder).as_posix()
                if inner in {f"{network}.pt" for network in NETWORKS} or path.is_dir():
                    continue
                if name == "weights" and inner.endswith(_LEFT_OUT):
                    recipe[inner] = _recipe(path.read_bytes(), pieces)
                else:
                    packed.add(path, f"{name}/{inner}", filter=_plain)
        path = Path(scratch, RECIPE)
        path.write_text(json.dumps(recipe), "utf-8")
        packed.add(path, f"weights/{RECIPE}", filter=_plain)


def unpack_bundle(archive: Path, out: Path) -> None:
    """Extract the bundle in the official layout, with checkpoints in float16.

    Raises:
        WeightsError: the archive is missing or damaged.
    """
    with tempfile.TemporaryDirectory() as scratch, replaced(out) as folder:
        extract(archive, Path(scratch))
        for path in Path(scratch, "bundle").iterdir():
            path.rename(folder / path.name)
        paths = {network: folder / f"{network}.safetensors" for network in NETWORKS}
        write_checkpoints(folder, {network: load_file(path) for network, path in paths.items()})
        for path in paths.values():
            path.unlink()


def _pieces(states: dict[str, StateDict]) -> list[tuple[str, bool, bytes]]:
    """Return name, whether transposed, and float32 bytes of every tensor of at least `_LEAST` bytes."""
    pieces = []
    for network, state in states.items():
        for name, value in state.items():
            forms = [(False, value), (True, value.T)] if value.dim() == 2 else [(False, value)]
            pieces += [(f"{network}:{name}", transposed, _bytes(form)) for transposed, form in forms]
    return [piece for piece in pieces if len(piece[2]) >= _LEAST]


def _bytes(value: torch.Tensor) -> bytes:
    return np.ascontiguousarray(value.numpy(), np.float32).tobytes()


def _recipe(data: bytes, pieces: list[tuple[str, bool, bytes]]) -> dict[str, Any]:
    found = sorted(
        (at, len(value), name, transposed) for name, transposed, value in pieces for at in _places(data, value)
    )
    tensors, rest, end = [], [], 0
    for at, length, name, transposed in [*found, (len(data), 0, "", False)]:
        if at < end:
            continue
        if any(data[end:at]):
            rest.append([end, data[end:at].hex()])
        if name:
            tensors.append([name, transposed, at])
        end = at + length
    return {"bytes": len(data), "tensors": tensors, "rest": rest}


def _places(data: bytes, value: bytes) -> Iterator[int]:
    at = data.find(value)
    while at >= 0:
        yield at
        at = data.find(value, at + len(value))


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove owner and time, so that equal weights make an equal archive."""
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info
