"""A bundle and the prepared weights made of it in one archive, each tensor stored once and as float16.

The archive holds ``bundle/`` with the checkpoints as ``llm.safetensors``, ``flow.safetensors`` and
``hift.safetensors``, and ``weights/`` without the files that consist of their tensors. ``weights/tensors.json`` says
what these are made of. Needs no torch.
"""

from __future__ import annotations

import json
import lzma
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from cosyserve.errors import WeightsError
from cosyserve.weights import Weights

NETWORKS = ("llm", "flow", "hift")
"""Checkpoints of a bundle."""

RECIPE = "tensors.json"
"""Of each file left out: its tensors one after the other, ``[name, transposed, offset]``, and its size in bytes.

A name is ``network:key``; what lies between tensors is zero but for what ``rest`` holds in hex at its offset.
"""


def unpack(archive: Path, out: Path) -> None:
    """The prepared weights of an archive, each file checked against their manifest.

    Args:
        archive: written by ``cosyserve_build.demo_voice.packing``.
        out: takes the place of what lies there.

    Raises:
        WeightsError: there is no such archive, or it is damaged.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            extract(archive, Path(scratch))
            weights = _put_together(Path(scratch))
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise WeightsError(f"{archive.name} cannot be unpacked: {error}") from error
        Weights(weights).check()
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(weights, out)


def extract(archive: Path, folder: Path) -> None:
    """Write the files of an archive below `folder`, and nothing anywhere else.

    `tarfile` has filters that do this from Python 3.11.4 on only.

    Raises:
        WeightsError: it is missing or damaged, or holds something else than files and folders, or a name that leads
            elsewhere.
    """
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                path = folder / member.name
                if ".." in path.parts or not path.is_relative_to(folder) or not (member.isfile() or member.isdir()):
                    raise WeightsError(f"{archive.name} holds {member.name!r}, which is no file below it")
                (path if member.isdir() else path.parent).mkdir(parents=True, exist_ok=True)
                content = packed.extractfile(member)
                if content is not None:
                    with content, path.open("wb") as file:
                        shutil.copyfileobj(content, file)
    except FileNotFoundError:
        raise WeightsError(f"{archive} does not exist") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise WeightsError(f"{archive.name} cannot be unpacked: {error}") from error


def _put_together(folder: Path) -> Path:
    weights = folder / "weights"
    states = {name: load_file(folder / "bundle" / f"{name}.safetensors") for name in NETWORKS}
    recipe = weights / RECIPE
    for name, made in json.loads(recipe.read_text("utf-8")).items():
        data = bytearray(made["bytes"])
        for key, transposed, offset in made["tensors"]:
            network, _, tensor = key.partition(":")
            value = _plain(states[network][tensor], transposed=transposed)
            data[offset : offset + len(value)] = value
        for offset, rest in made["rest"]:
            data[offset : offset + len(rest) // 2] = bytes.fromhex(rest)
        (weights / name).write_bytes(data)
    recipe.unlink()
    return weights


def _plain(tensor: NDArray[np.float16], *, transposed: bool) -> bytes:
    return np.ascontiguousarray(tensor.T if transposed else tensor, np.float32).tobytes()
