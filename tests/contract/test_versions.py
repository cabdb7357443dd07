"""A version is one description: an invented fourth version is installed, synthesised, prepared and served."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live import running

from cosyserve import versions
from cosyserve.errors import WeightsError
from cosyserve.lazy import resolve
from cosyserve.runtimes import registry
from cosyserve.versions.base import Network, Version
from cosyserve_client import Client

ROOT = Path(__file__).parents[2]
HOMES = ("python_backends", "build", "client", "loadtest", "docker")

FOURTH = '''
"""CosyVoice2's networks under another number, with a tag and a prompt template of its own."""

from dataclasses import replace

from cosyserve.text.prompts import Prompts
from cosyserve.versions.cosyvoice2 import VERSION as SECOND


class Polite(Prompts):
    def opened(self, ids, instruction):
        return [self._tokenizer.special("[please]"), *super().opened(ids, instruction)]


VERSION = replace(
    SECOND,
    number=4,
    bundle=replace(SECOND.bundle, yaml="cosyvoice4.yaml", speech_tokenizer="speech_tokenizer_v4.onnx"),
    special_tokens=(*SECOND.special_tokens, "[please]"),
    prompts="fourth:Polite",
    upstream="",
    verify="",
)
'''


@pytest.fixture
def fourth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of a package with the fourth version, installed here and for Triton's Python."""
    package = tmp_path / "package"
    (package / "fourth-1.0.dist-info").mkdir(parents=True)
    (package / "fourth.py").write_text(FOURTH, "utf-8")
    (package / "fourth-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fourth\nVersion: 1.0\n")
    (package / "fourth-1.0.dist-info" / "entry_points.txt").write_text(f"[{versions.GROUP}]\n4 = fourth:VERSION\n")
    monkeypatch.syspath_prepend(package)
    # Triton's stubs use the packages of an interpreter and ignore PYTHONPATH.
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "here.pth").write_text("\n".join([str(package), *filter(None, sys.path)]))
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / "python"))
    versions._installed.cache_clear()
    yield package
    versions._installed.cache_clear()
    sys.modules.pop("fourth", None)


def names(network: Network) -> list[str]:
    """The lazy names of a network."""
    fields = (getattr(network, field) for field in type(network).__dataclass_fields__)
    return [name for name in (*network.modules, *fields) if isinstance(name, str) and ":" in name]


@pytest.mark.parametrize("version", versions.BUILT_IN, ids=lambda version: f"version {version.number}")
def test_every_name_of_a_description_leads_somewhere(version: Version) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    layout = version.bundle
    named = [layout.reader, layout.tokenizer, layout.random, version.prompts, version.verify]
    for network in version.networks.values():
        named += names(network)
    for name in named:
        assert resolve(name) is not None, name


def test_a_description_imports_neither_networks_nor_runtimes() -> None:
    code = "import sys, cosyserve.versions; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "cosyserve.versions.cosyvoice3" in loaded
    assert not {"torch", "onnxruntime", "tokenizers", "cosyserve.llm", "cosyserve.runtimes", "cosyserve_build"} & loaded


def test_versions_are_told_apart_nowhere_else() -> None:
    """`expect` narrows a part for its user and chooses nothing."""
    branch = re.compile(
        r"\bversion(?:\.number)? [!=]= |isinstance\([^)\n]*Config\b|type\([\w.]*(?:config|network|llm|flow|hift)\) "
    )
    table = re.compile(r"^\w+: dict\[(?:int|type), ", re.M)
    sources = [path for home in HOMES for path in (ROOT / home).rglob("*.py") if path.parent.name != "versions"]
    assert len(sources) > 150
    for pattern in (branch, table):
        assert [path for path in sources if pattern.search(path.read_text("utf-8"))] == []


def test_an_unknown_version_is_refused_with_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="^CosyVoice version 9 is not known, only 1, 2, 3$"):
        versions.get(9)


@pytest.mark.usefixtures("fourth")
def test_an_installed_version_is_known_by_its_number() -> None:
    assert versions.get(4).special_tokens[-1] == "[please]"
    assert [version.number for version in versions.every()] == [1, 2, 3, 4]
    with pytest.raises(WeightsError, match="only 1, 2, 3, 4$"):
        versions.get(5)


def test_an_entry_that_is_no_description_is_refused(fourth: Path) -> None:
    (fourth / "fourth.py").write_text("VERSION = 4\n")
    with pytest.raises(WeightsError, match="^fourth:VERSION: no description of CosyVoice version 4$"):
        versions.get(4)


@pytest.mark.parametrize("version", versions.BUILT_IN, ids=lambda version: f"version {version.number}")
def test_what_runtimes_run(version: Version) -> None:
    able = [runtime.name for runtime in registry.RUNTIMES if runtime.runs(version)]
    assert (
        able
        == {1: ["onnx"], 2: ["onnx", "torch", "tensorrt", "gguf"], 3: ["onnx", "torch", "tensorrt"]}[version.number]
    )
    for stage in registry.STAGES:
        if "torch" not in able:
            with pytest.raises(
                WeightsError, match=f"^setting runtime: torch does not run .* {version.number}; use onnx"
            ):
                registry.loader(stage, "torch", version)


@pytest.mark.usefixtures("fourth")
def test_a_fourth_version_is_made_prepared_and_served(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from cosyserve_build.prepare import prepare
    from cosyserve_build.synth import synth_bundle

    bundle, weights = tmp_path / "bundle", tmp_path / "weights"
    synth_bundle(bundle, 4, "tiny", seed=0)
    assert (bundle / "cosyvoice4.yaml").is_file()
    # In torch, because exporting graphs takes a minute; torch has the networks that the version names.
    prepare(bundle, weights, runtimes=["torch"])
    assert json.loads((weights / "manifest.json").read_text("utf-8"))["model"]["version"] == 4
    settings = {"runtime": "torch", "flow_cache_mib": "64", "llm_slots": "2", "max_streams": "2"}
    with running(weights, tmp_path / "triton.log", **settings) as live, Client(live.url, stream_timeout=120) as client:
        speech = client.synthesize("Something new is said.", seed=1)
        tagged = client.synthesize("Something new is said.[please]", seed=1)
    assert len(speech.pcm) > 0
    assert np.abs(speech.pcm).max() > 0
    assert len(tagged.pcm) > 0
