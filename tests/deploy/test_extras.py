"""The extras: none has two packages that overwrite each other. (`make check-extras` lets pip resolve them.)"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]
SAME_FILES = {"onnxruntime", "onnxruntime-gpu"}
"""Packages that both bring the module ``onnxruntime``."""


def requirements(extra: str) -> list[str]:
    """Requirements of an extra, with those of the extras that it includes."""
    found = []
    for requirement in EXTRAS[extra]:
        if own := re.fullmatch(r"cosyserve\[(.+)\]", requirement):
            found += [each for name in own[1].split(",") for each in requirements(name)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_no_extra_brings_two_packages_of_one_module(extra: str) -> None:
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements(extra)}
    assert len(names & SAME_FILES) <= 1


def test_what_serves_on_a_gpu_is_pinned() -> None:
    pinned = [each for each in requirements("gpu") if "==" in each]
    assert {re.split(r"[^\w-]", each)[0] for each in pinned} == {"onnxruntime-gpu", "tensorrt-cu13", "torch"}
