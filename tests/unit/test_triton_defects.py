"""The list of Triton's defects is consistent, and workarounds that need no Triton work."""

from __future__ import annotations

import ast
import asyncio
import re
import time
from pathlib import Path

import pytest

from cosyserve.triton_defects import CALL_SECONDS, DEFECTS, Defect, asks_for_status, outlast

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_each_is_held_by_a_test_that_exists(defect: Defect) -> None:
    path, _, name = defect.test.partition("::")
    assert (ROOT / path).is_file(), path
    defined = [node.name for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))) if hasattr(node, "name")]
    assert name in defined


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_what_a_workaround_names_exists(defect: Defect) -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "python_backends").rglob("*.py"))
    for name in re.findall(r"`([A-Za-z_.]+)`", defect.workaround):
        last = name.rpartition(".")[2]
        assert re.search(rf"(def |class |^|\"){last}\b", sources, re.M), name


def test_versions_are_named() -> None:
    assert all(re.fullmatch(r"2\.\d+(, 2\.\d+)*", defect.versions) for defect in DEFECTS)


async def test_a_call_outlasts_its_answers() -> None:
    events = []

    async def answer() -> None:
        events.append("answered")

    began = time.monotonic()
    call = asyncio.create_task(outlast([answer()]))
    events.append("called")
    await asyncio.sleep(0)
    assert events == ["called"]  # nothing is sent before the call awaits
    await call
    assert events == ["called", "answered"]
    assert time.monotonic() - began >= CALL_SECONDS


@pytest.mark.parametrize(
    ("parameters", "asks"),
    [
        ({}, False),
        ({"triton_grpc_error": "true"}, True),
        ({"triton_grpc_error": "True"}, True),
        ({"triton_grpc_error": True}, True),
        ({"triton_grpc_error": "false"}, False),
    ],
)
def test_who_asks_for_statuses(parameters: dict[str, object], asks: bool) -> None:
    assert asks_for_status(parameters) is asks
