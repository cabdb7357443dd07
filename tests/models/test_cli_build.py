"""The command ``cosyserve-build``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cosyserve_build.prepare
import cosyserve_build.synth
import cosyserve_build.verify
from cosyserve.errors import BundleError
from cosyserve_build.cli import app
from cosyserve_build.verify import Report, Row


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failing(*_: object, **__: object) -> None:
    raise BundleError("flow.pt is missing")


def test_without_a_command_help_is_shown() -> None:
    shown = run().output
    for command in ("prepare", "verify", "synth-bundle", "configs"):
        assert command in shown


def test_prepare_reports_and_tells_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def prepare(
        source: Path,
        out: Path,
        report: Callable[[str], None],
        runtimes: list[str],
        llm_gguf: str | None,
        precision: str,
    ) -> None:
        report(f"{source.name} to {out.name} for {' and '.join(runtimes)}, gguf {llm_gguf}, {precision}")

    monkeypatch.setattr(cosyserve_build.prepare, "prepare", prepare)
    result = run("prepare", tmp_path / "b", tmp_path / "w")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "b to w for onnx, gguf None, fp32"
    assert f"try: cosyserve serve --weights {tmp_path / 'w'}" in result.stdout
    result = run("prepare", "b", "w", "--runtime", "torch")
    assert result.stdout.splitlines()[0] == "b to w for torch, gguf None, fp32"
    assert "try: COSYSERVE_RUNTIME=torch cosyserve serve --weights w" in result.stdout
    result = run("prepare", "b", "w", "--llm-gguf", "q8_0")
    assert result.stdout.splitlines()[0] == "b to w for onnx, gguf q8_0, fp32"
    assert "try: COSYSERVE_LLM_RUNTIME=gguf cosyserve serve --weights w" in result.stdout
    result = run("prepare", "b", "w", "--precision", "int8")
    assert result.stdout.splitlines()[0] == "b to w for onnx, gguf None, int8"


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        (cosyserve_build.prepare, "prepare", ["prepare", "b", "w"]),
        (cosyserve_build.verify, "verify", ["verify", "set"]),
        (cosyserve_build.synth, "synth_bundle", ["synth-bundle", "b"]),
    ],
)
def test_an_expected_error_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, arguments: list[str]
) -> None:
    monkeypatch.setattr(module, name, failing)
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr == "error: flow.pt is missing\n"
    assert result.stdout == ""


def test_a_bundle_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = run("prepare", tmp_path / "none", tmp_path / "w")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("missed", [False, True])
def test_verify_exits_1_on_a_miss(monkeypatch: pytest.MonkeyPatch, missed: bool) -> None:
    def verify(folder: Path, runtime: str, precision: str) -> Report:
        assert (runtime, precision) == ("", "fp32")
        return Report((Row("flow/mel", (1, 80), 0.5, 1.0, passed=not missed),), ())

    monkeypatch.setattr(cosyserve_build.verify, "verify", verify)
    shown = run("verify", "set")
    assert shown.exit_code == int(missed)
    assert "flow/mel" in shown.stdout
    machine = run("verify", "set", "--json")
    assert machine.exit_code == int(missed)
    report = json.loads(machine.stdout)
    assert report["misses"] == int(missed)
    assert [row["pass"] for row in report["rows"]] == [not missed]


def test_synth_bundle_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(cosyserve_build.synth, "synth_bundle", lambda *given: asked.append(given))
    assert run("synth-bundle", "b", "--version", 2, "--size", "small", "--seed", 7).exit_code == 0
    assert asked == [(Path("b"), 2, "small", 7)]


def test_synth_bundle_knows_its_sizes() -> None:
    assert run("synth-bundle", "b", "--size", "huge").exit_code == 2


def test_configs_are_written_and_checked(tmp_path: Path) -> None:
    stale = run("configs", tmp_path, "--check")
    assert stale.exit_code == 1
    assert "make configs" in stale.stderr
    assert str(tmp_path / "tts" / "config.pbtxt") in stale.stderr
    assert list(tmp_path.iterdir()) == []
    assert run("configs", tmp_path).exit_code == 0
    assert run("configs", tmp_path, "--check").exit_code == 0
    changed = tmp_path / "flow" / "config.pbtxt"
    changed.write_text(changed.read_text() + "# by hand\n")
    stale = run("configs", tmp_path, "--check")
    assert (stale.exit_code, stale.stderr) == (1, f"stale, run `make configs`: {changed}\n")
