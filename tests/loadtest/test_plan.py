"""``cosyserve plan`` on given figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_bench_figures import utterance
from typer.testing import CliRunner

from cosyserve.cli import app
from cosyserve_client.bench.report import document
from cosyserve_client.bench.results import REFUSED, LoadResult, Result

GOOD = utterance(0.2, 0.25)
SLOW = utterance(1.5, 1.55)
BROKEN = utterance(0.2, 0.9)
FAILED = utterance(outcome="INTERNAL")
FULL = utterance(outcome=REFUSED)


def measured(concurrency: int, *utterances: Result) -> LoadResult:
    return LoadResult(("concurrency", concurrency), 2.0, 0.1, list(utterances))


def planned(tmp_path: Path, levels: list[LoadResult], *options: str) -> Any:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(document(levels, {})), "utf-8")
    return CliRunner().invoke(app, ["plan", str(path), *options])


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (SLOW, "at 32: first audio after 1.4"),
        (BROKEN, "at 32: 50% gapless"),
        (FAILED, "at 32: 1 of 2 utterances failed"),
        (FULL, "at 32: 1 of 2 utterances failed"),
    ],
)
def test_servers_are_planned_with_a_share_of_what_one_holds(tmp_path: Path, spoilt: Result, reason: str) -> None:
    levels = [measured(16, GOOD, GOOD), measured(4, GOOD), measured(32, GOOD, spoilt), measured(64, GOOD)]
    done = planned(tmp_path, levels, "--streams", "200")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].split()[4] == "16"
    assert reason in lines[0]
    # 65 % of 16 are 10 streams, and 200 of them take 20 servers.
    assert lines[1].split()[4] == "10"
    assert lines[2].split()[1] == "20"
    assert lines[3] == "set COSYSERVE_MAX_STREAMS=16, and the threshold of active-streams to 10"


def test_the_goal_can_be_another(tmp_path: Path) -> None:
    levels = [measured(4, GOOD), measured(8, SLOW, BROKEN)]
    done = planned(tmp_path, levels, "--streams", "9", "--first-audio", "2", "--gapless", "0.5", "--load", "1")
    assert "8   the highest load measured" in done.stdout
    assert "2   for 9 streams" in done.stdout


def test_one_stream_is_planned_at_least(tmp_path: Path) -> None:
    assert "3   for 3 streams" in planned(tmp_path, [measured(1, GOOD)], "--streams", "3").stdout


def test_a_server_that_is_too_slow_for_one_is_reported(tmp_path: Path) -> None:
    done = planned(tmp_path, [measured(1, SLOW)], "--streams", "3")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: at 1: first audio after 1.50 s; no lower load was measured\n"


@pytest.mark.parametrize("text", ["", "[]", '{"levels": 3}', "{}"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    done = CliRunner().invoke(app, ["plan", str(path), "--streams", "3"])
    assert (done.exit_code, done.stderr) == (1, f"error: {path} is not a report of `cosyserve bench --json`\n")


def test_a_report_of_open_loops_alone_is_refused(tmp_path: Path) -> None:
    done = planned(tmp_path, [LoadResult(("rate", 2.0), 2.0, 0.1, [GOOD])], "--streams", "3")
    assert (done.exit_code, done.stderr.endswith("has no closed loop: measure with --concurrency\n")) == (1, True)
