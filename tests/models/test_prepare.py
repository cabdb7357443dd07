"""Preparing a bundle is atomic."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cosyserve import versions
from cosyserve.errors import BundleError, WeightsError
from cosyserve.limits import MAX_NOISE_FRAMES
from cosyserve.voices import Voice, VoiceStore
from cosyserve.weights import Weights, map_tensors, sha256
from cosyserve_build import export
from cosyserve_build.bundles.bundle import read
from cosyserve_build.prepare import TOOLS, prepare

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"
BUNDLE = TINY / "bundle"
GRAPHS = ["llm", "flow_encoder", "flow_estimator", "hift_f0", "hift_source", "hift_decoder"]


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes most of the time and has tests of its own."""

    def none(*_: object) -> Iterator[export.Spec]:
        return iter(())

    monkeypatch.setattr(export, "graphs", none)


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return content


def test_the_manifest_lists_every_file_but_voices_with_its_checksum(weights: Path) -> None:
    files = {p.relative_to(weights).as_posix(): p for p in weights.iterdir() if p.is_file()}
    del files["manifest.json"]
    assert manifest(weights)["files"] == {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()
    }


def test_the_manifest_holds_model_tools_and_graphs(weights: Path) -> None:
    found = manifest(weights)
    assert versions.model_config(found["model"]) == read(BUNDLE).config
    assert sorted(found["tools"]) == sorted(TOOLS)
    assert all(found["tools"].values())
    assert list(found["graphs"]) == GRAPHS
    assert Weights(weights).random is False  # the recorded bundle is not marked as random


def test_every_file_can_be_read_by_others(weights: Path) -> None:
    assert {oct(path.stat().st_mode & 0o444) for path in weights.rglob("*") if path.is_file()} == {"0o444"}


def test_the_noise_is_the_original_s(weights: Path) -> None:
    noise = load_file(weights / "flow.safetensors")["noise"]
    assert noise.shape == (80, MAX_NOISE_FRAMES)
    with np.load(TINY / "vectors" / "flow.npz") as recorded:
        expected = recorded["noise"][0]
    np.testing.assert_array_equal(noise[:, : expected.shape[1]], expected)


def test_the_embedding_tables_are_the_bundle_s(weights: Path) -> None:
    tables, state = map_tensors(weights / "llm.safetensors"), read(BUNDLE).llm()
    np.testing.assert_array_equal(tables["speech"], state["speech_embedding.weight"].numpy())
    np.testing.assert_array_equal(tables["special"], state["llm_embedding.weight"].numpy())
    np.testing.assert_array_equal(tables["text"], state["llm.model.model.embed_tokens.weight"].numpy())


def test_the_onnx_files_of_the_bundle_are_copied_as_they_are(weights: Path) -> None:
    assert sha256(weights / "campplus.onnx") == sha256(BUNDLE / "campplus.onnx")
    assert sha256(weights / "speech_tokenizer.onnx") == sha256(BUNDLE / "speech_tokenizer_v2.onnx")


def test_the_stored_speakers_become_voices(weights: Path) -> None:
    store = VoiceStore(weights / "voices")
    assert store.list() == ["spk_tiny"]
    voice, speaker = store.get("spk_tiny"), read(BUNDLE).spk2info()["spk_tiny"]
    np.testing.assert_array_equal(voice.flow_prompt_tokens, np.ravel(speaker["flow_prompt_speech_token"]))
    np.testing.assert_array_equal(voice.prompt_mel, np.reshape(speaker["prompt_speech_feat"], (-1, 80)))


@pytest.mark.usefixtures("without_graphs")
def test_each_part_is_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    prepare(BUNDLE, tmp_path / "out", lines.append)
    assert any("tokenizer" in line for line in lines)
    assert any("voice spk_tiny" in line for line in lines)


@pytest.mark.usefixtures("without_graphs")
def test_earlier_weights_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    prepare(BUNDLE, out)
    (out / "stale.bin").write_bytes(b"old")
    prepare(BUNDLE, out)
    assert not (out / "stale.bin").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.usefixtures("without_graphs")
def test_voices_that_users_registered_outlive_a_second_prepare(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(BUNDLE, out)
    store = VoiceStore(out / "voices")
    (bundled,) = store.list()
    mine = replace(store.get(bundled), name="mine", prompt_text="What I say.")
    store.save(mine, consent="I agree.", created="2026-01-02T03:04:05Z")
    card = store.card("mine")
    prepare(BUNDLE, out)
    kept = VoiceStore(out / "voices")
    assert kept.list() == sorted([bundled, "mine"])
    assert kept.card("mine") == card
    assert kept.get("mine").digest == mine.digest


def test_voices_registered_with_another_version_are_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "out"
    VoiceStore(out / "voices").save(Voice("mine", np.ones(192, np.float32)), created="2026-01-02T03:04:05Z")
    (out / "manifest.json").write_text(json.dumps({"format": 2, "model": {"version": 3}}))
    with pytest.raises(BundleError, match="another CosyVoice version"):
        prepare(BUNDLE, out)
    assert VoiceStore(out / "voices").list() == ["mine"]


@pytest.mark.usefixtures("without_graphs")
def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare(BUNDLE, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="holds files other than prepared weights"):
        prepare(BUNDLE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failure_leaves_earlier_weights_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text('{"from": "before"}')

    def fail(*_: object) -> dict[str, Any]:
        raise BundleError("llm.onnx: differs")

    monkeypatch.setattr(export, "export", fail)
    with pytest.raises(BundleError, match=r"^llm\.onnx: differs$"):
        prepare(BUNDLE, out)
    assert manifest(out) == {"from": "before"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_incomplete_bundle_makes_nothing(tmp_path: Path) -> None:
    shutil.copytree(BUNDLE, tmp_path / "bundle", copy_function=shutil.copyfile)
    (tmp_path / "bundle" / "flow.pt").unlink()
    with pytest.raises(BundleError, match=r"flow\.pt"):
        prepare(tmp_path / "bundle", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_graphs")
@pytest.mark.parametrize("said", [True, False])
def test_random_bundles_make_random_weights(said: bool, tmp_path: Path) -> None:
    shutil.copytree(BUNDLE, tmp_path / "bundle", copy_function=shutil.copyfile)
    (tmp_path / "bundle" / "configuration.json").write_text(json.dumps({"random_weights": said}))
    prepare(tmp_path / "bundle", tmp_path / "out")
    assert Weights(tmp_path / "out").random is said


@pytest.mark.usefixtures("without_graphs")
def test_the_manifest_names_the_precision(weights: Path, tmp_path: Path) -> None:
    assert manifest(weights)["precision"] == "fp32"
    prepare(BUNDLE, tmp_path / "out", precision="int8")
    assert manifest(tmp_path / "out")["precision"] == "int8"


def test_a_precision_without_graphs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^precision int8 applies to ONNX graphs only: prepare with --runtime onnx$"):
        prepare(BUNDLE, tmp_path / "out", runtimes=["torch"], precision="int8")
    assert not (tmp_path / "out").exists()


def test_weights_for_torch_hold_the_networks_and_no_graph(torch_weights: Weights) -> None:
    assert torch_weights.manifest["graphs"] == {}
    assert not list(torch_weights.folder.glob("*.onnx.data"))
    found = {name: load_file(torch_weights.file(f"{name}.torch.safetensors")) for name in ("llm", "flow", "hift")}
    bundle = read(BUNDLE)
    for name, state in {"llm": bundle.llm(), "flow": bundle.flow(), "hift": bundle.hift()}.items():
        for key, value in found[name].items():
            np.testing.assert_array_equal(value, state[key].numpy())
    # The embedding tables have a file of their own, for every runtime.
    assert not any("embed" in name for name in found["llm"])
    with pytest.raises(WeightsError, match=r"^hift_f0\.onnx is not .*--runtime onnx`$"):
        torch_weights.graph("hift_f0")
