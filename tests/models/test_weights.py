"""Prepared weights are checked before they are used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cosyserve.errors import WeightsError
from cosyserve.load.flow import load_flow_networks
from cosyserve.load.frontend import load_frontend
from cosyserve.load.hift import load_hift_networks
from cosyserve.load.llm import load_decoder
from cosyserve.load.tts import load_chunk_grid
from cosyserve.settings import Settings
from cosyserve.text.normalize import _inflect, _wetext
from cosyserve.weights import FORMAT, Weights, map_tensors, sha256


@pytest.fixture(scope="module")
def shared_copy(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(weights, tmp_path_factory.mktemp("spoilt") / "weights")


@pytest.fixture
def copy(weights: Path, shared_copy: Path) -> Iterator[Path]:
    """Weights to spoil. They are large, so one copy is repaired after each test."""
    yield shared_copy
    for path in [path for path in shared_copy.rglob("*") if path.is_file()]:
        original = weights / path.relative_to(shared_copy)
        if not original.exists():
            path.unlink()
    for original in [path for path in weights.rglob("*") if path.is_file()]:
        path = shared_copy / original.relative_to(weights)
        if not path.exists() or path.stat().st_mtime_ns != original.stat().st_mtime_ns:
            shutil.copy2(original, path)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def load_everything(folder: Path) -> None:
    settings = Settings(weights=str(folder))
    load_chunk_grid(settings)
    load_frontend(settings)
    load_decoder(settings)
    load_flow_networks(settings)
    load_hift_networks(settings)


def test_good_weights_load(weights: Path) -> None:
    load_everything(weights)


def test_a_loaded_frontend_has_the_number_grammars(settings: Settings) -> None:
    for grammar in (_wetext, _inflect):
        grammar.cache_clear()
    load_frontend(settings)
    assert _wetext.cache_info().currsize == _inflect.cache_info().currsize == 1


def test_the_grid_is_the_model_s(weights: Path) -> None:
    grid = load_chunk_grid(Settings(weights=str(weights), first_hop=30, max_hop=60))
    assert (grid.chunk, grid.lookahead, grid.samples_per_token) == (25, 3, 960)
    assert (grid.first_hop, grid.max_hop) == (30, 60)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no manifest\.json.*cosyserve-build prepare"):
        Weights(tmp_path)


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": ')
    with pytest.raises(WeightsError, match="not JSON"):
        Weights(tmp_path)


@pytest.mark.parametrize("found", [FORMAT + 1, 0, None, "1"])
def test_another_format_is_refused(copy: Path, found: object) -> None:
    edit(copy, lambda manifest: manifest.update(format=found))
    with pytest.raises(WeightsError, match=f"format {found}, this version reads {FORMAT}"):
        Weights(copy)


def test_every_listed_file_passes_its_check(weights: Path) -> None:
    opened = Weights(weights)
    for name in opened.manifest["files"]:
        assert opened.file(name).is_file()


def names(pattern: str) -> list[str]:
    graphs = ["llm", "flow_encoder", "flow_estimator", "hift_f0", "hift_source", "hift_decoder"]
    return [pattern.format(graph) for graph in graphs]


@pytest.mark.parametrize(
    "name",
    [
        *names("{}.onnx"),
        *names("{}.onnx.data"),
        "llm.safetensors",
        "flow.safetensors",
        "campplus.onnx",
        "speech_tokenizer.onnx",
        "tokenizer.json",
    ],
)
def test_a_changed_byte_of_any_file_stops_loading(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"^{name} differs from its checksum"):
        load_everything(copy)


def test_a_file_of_another_size_is_refused(copy: Path) -> None:
    with (copy / "tokenizer.json").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(WeightsError, match=r"^tokenizer\.json differs"):
        Weights(copy).file("tokenizer.json")


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "hift_f0.onnx.data").unlink()
    with pytest.raises(WeightsError, match=r"^hift_f0\.onnx\.data is missing"):
        Weights(copy).graph("hift_f0")


def test_a_file_that_is_not_listed_is_refused(copy: Path) -> None:
    (copy / "extra.onnx").write_bytes(b"anything")
    with pytest.raises(WeightsError, match=r"^extra\.onnx is not in manifest\.json$"):
        Weights(copy).file("extra.onnx")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "voices/demo.json"])
def test_a_manifest_that_leads_elsewhere_is_refused(copy: Path, name: str) -> None:
    outside = copy.parent / "outside"
    outside.write_bytes(b"anything")
    listed = {"bytes": 8, "sha256": sha256(outside)}
    edit(copy, lambda manifest: manifest["files"].update({name: listed}))
    with pytest.raises(WeightsError, match=r"^manifest\.json: .* is no file of this folder$"):
        Weights(copy).file(name)


@pytest.mark.parametrize("random", [True, False])
def test_random_weights_say_so(copy: Path, random: bool) -> None:
    edit(copy, lambda manifest: manifest.update(random=random))
    assert Weights(copy).random is random


def test_mapped_tensors_equal_what_was_saved(tmp_path: Path) -> None:
    values = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32),
    }
    save_file(values, tmp_path / "t.safetensors", metadata={"note": "ignored"})
    mapped = map_tensors(tmp_path / "t.safetensors")
    assert mapped.keys() == values.keys()
    for name, value in values.items():
        assert isinstance(mapped[name], np.memmap)
        np.testing.assert_array_equal(mapped[name], value)


def test_mapping_refuses_other_types(tmp_path: Path) -> None:
    save_file({"half": np.zeros(2, np.float16)}, tmp_path / "t.safetensors")
    with pytest.raises(WeightsError, match=r"t\.safetensors: half is F16, expected F32"):
        map_tensors(tmp_path / "t.safetensors")
