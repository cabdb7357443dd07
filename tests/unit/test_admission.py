"""The limit on concurrent utterances."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosyserve.errors import Draining, Overloaded
from cosyserve.pipeline.admission import Admission


def test_places_are_counted_and_given_back() -> None:
    admission = Admission(limit=2)
    with admission.slot():
        assert admission.active == 1
        with admission.slot():
            assert admission.active == 2
        assert admission.active == 1
    assert admission.active == 0


def test_beyond_the_limit_is_refused_without_taking_a_place() -> None:
    admission = Admission(limit=1)
    with admission.slot():
        with pytest.raises(Overloaded, match="all 1 streams are in use"), admission.slot():
            pytest.fail("admitted beyond the limit")
        assert admission.active == 1
    with admission.slot():
        assert admission.active == 1


def test_a_failure_gives_its_place_back() -> None:
    admission = Admission(limit=1)
    with pytest.raises(RuntimeError, match="broken"), admission.slot():
        raise RuntimeError("broken")
    assert admission.active == 0


def test_while_it_drains_none_begins_and_the_running_go_on(tmp_path: Path) -> None:
    file = tmp_path / "draining"
    admission = Admission(limit=2, drain_file=file)
    with admission.slot():
        file.touch()
        with pytest.raises(Draining, match="about to stop"), admission.slot():
            pytest.fail("admitted while draining")
        assert admission.active == 1
    file.unlink()
    with admission.slot():
        assert admission.active == 1


def test_every_change_is_told_at_once() -> None:
    told: list[int] = []
    admission = Admission(limit=2, changed=told.append)
    with admission.slot():
        assert told == [1]
    assert told == [1, 0]
