"""The versions of CosyVoice: one description each; all other code asks here.

Other versions come from installed packages: an entry point of group `GROUP`, named by the version's number, that is a
`Version`. Every process of a server finds it, without a change here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from cosyserve.config import ModelConfig
from cosyserve.errors import WeightsError
from cosyserve.versions import cosyvoice1, cosyvoice2, cosyvoice3
from cosyserve.versions.base import Version

GROUP = "cosyserve.versions"

BUILT_IN = (cosyvoice1.VERSION, cosyvoice2.VERSION, cosyvoice3.VERSION)
"""In the order in which their bundles are looked for, as upstream does (cli/cosyvoice.py :: AutoModel)."""


def get(number: object) -> Version:
    """The description of a version.

    Raises:
        WeightsError: there is none.
    """
    for version in BUILT_IN:
        if version.number == number:
            return version
    for point in _installed():
        if point.name == str(number):
            return _loaded(point)
    known = [str(version.number) for version in BUILT_IN] + [point.name for point in _installed()]
    raise WeightsError(f"CosyVoice version {number} is not known, only {', '.join(known)}")


def of(config: ModelConfig) -> Version:
    """The description of a model's version."""
    return get(config.version)


def every() -> Iterator[Version]:
    """All versions; installed ones are only loaded when all others are not what was looked for."""
    yield from BUILT_IN
    yield from map(_loaded, _installed())


def model_config(data: dict[str, Any]) -> ModelConfig:
    """The inverse of `ModelConfig.to_dict`.

    Raises:
        WeightsError: the version is not known.
        TypeError: a missing or unknown key; it is named.
    """
    return ModelConfig.from_dict(data, get(data["version"]).parts)


@cache
def _installed() -> tuple[EntryPoint, ...]:
    # Looking through all installed packages takes longer than the rest of a start: only for a version not built in.
    return tuple(entry_points(group=GROUP))


def _loaded(point: EntryPoint) -> Version:
    version = point.load()
    if not isinstance(version, Version) or str(version.number) != point.name:
        raise WeightsError(f"{point.value}: no description of CosyVoice version {point.name}")
    return version
