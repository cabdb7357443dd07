"""``make quality``: a table with the quality of each setting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from quality import forms

ROOT = Path(__file__).parents[2]


def test_each_setting_of_each_folder_is_a_row(weights: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "loadtest" / "lab" / "quality.py"),
        "--weights",
        str(weights),
        "--sentences",
        "2",
    ]
    command += ["--first-hops", "10", "--json", str(tmp_path / "rows.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["mode"], row["first_hop"]) for row in rows] == [("full", None), ("stream", 10)]
    full, stream = rows
    assert full["sentences"] == stream["sentences"] == 2
    assert full["joins"] == 0 < stream["joins"]
    assert full["first_audio_ms"] > 0
    assert f"{weights.name}, onnx" in ended.stdout
    assert "word error rate" in ended.stdout


@pytest.mark.parametrize(
    ("graphs", "files", "names"),
    [
        ({"llm": {}}, (), ["w, onnx"]),
        ({}, ("llm.torch.safetensors",), ["w, torch"]),
        ({"llm": {}}, ("llm.torch.safetensors", "llm.gguf"), ["w, onnx", "w, torch", "w, gguf"]),
    ],
)
def test_weights_are_judged_on_each_runtime_they_were_prepared_for(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    graphs: object,
    files: tuple[str, ...],
    names: list[str],
) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    manifest = json.loads((weights / "manifest.json").read_text())
    manifest |= {"graphs": graphs, "files": dict.fromkeys(files)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "llama_cpp")
    assert [form.name for form in forms(folder)] == names


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "loadtest" / "lab" / "quality.py"), "--weights", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
