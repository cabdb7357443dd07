"""Servers with the other versions of CosyVoice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, running


@pytest.fixture(scope="session")
def server1(weights1: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with CosyVoice 1."""
    with running(weights1, tmp_path_factory.mktemp("server1") / "triton.log") as live:
        yield live


@pytest.fixture(scope="session")
def server3(weights3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with CosyVoice 3."""
    with running(weights3, tmp_path_factory.mktemp("server3") / "triton.log") as live:
        yield live
