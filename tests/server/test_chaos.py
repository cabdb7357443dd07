"""Short forms of ``make chaos``: after each fault the next utterance is right."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from chaos import (
    STAGES,
    Case,
    Scene,
    Supervised,
    cancels,
    crowd,
    drained,
    duplicates,
    killed,
    paused,
    silent,
    slow,
    stopped,
    terminated,
    unread,
)

CASES: dict[str, Case] = {
    "slow": partial(slow, pause=0.3),
    "unread": partial(unread, callers=3),
    "silent": partial(silent, connections=100),
    "duplicates": duplicates,
    "cancels": partial(cancels, count=200),
    **{f"kill-{model}": partial(killed, model=model) for model in STAGES},
    "pause-flow": partial(paused, model="flow"),
    "crowd": partial(crowd, connections=60, held=4, refusals=50, sentences=20),
    "stop-llm": partial(stopped, model="llm"),
    "drain": drained,
    "sigterm": terminated,
}


@pytest.fixture(scope="module")
def first(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Server with the samples of its first utterances."""
    server = Supervised(demo_weights, tmp_path_factory.mktemp("chaos"))
    server.start()
    try:
        yield asyncio.run(Scene.open(server))
    finally:
        server.kill()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_all_is_well_after(first: Scene, case: Case) -> None:
    scene, _ = await first.play(case)
    assert scene.wrong == []
