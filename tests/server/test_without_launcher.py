"""A repository that `cosyserve render-repository` wrote, served by tritonserver alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import PATIENCE, bare_triton
from raw import Input, call, words

from cosyserve.contracts import UPSTREAM
from cosyserve.repository import SAMPLE_RATE, render, source
from cosyserve_client import Client

COSYVOICE3 = next(model for model in UPSTREAM if model.name == "cosyvoice3")
COSYSERVE = str(Path(sys.executable).parent / "cosyserve")


@pytest.fixture(scope="module")
def url(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("alone")
    models = folder / "models"
    command = [COSYSERVE, "render-repository", str(models), "--weights", str(demo_weights), "--profile", "cpu"]
    subprocess.run(command, check=True, timeout=PATIENCE)
    # The repository of the source holds the models of both of upstream's contracts.
    shutil.copytree(source() / COSYVOICE3.name, models / COSYVOICE3.name)
    (models / COSYVOICE3.name / "config.pbtxt").write_text(render(COSYVOICE3, "cpu", SAMPLE_RATE), "utf-8")
    with bare_triton(folder, COSYSERVE_WEIGHTS=str(demo_weights)) as url:
        yield url


def test_it_speaks_and_tells_its_rate(url: str) -> None:
    with Client(url) as client:
        assert client.sample_rate() == 24_000
        assert len(client.synthesize("Hello there.", seed=1).pcm) > 12_000


def test_the_model_of_another_version_says_what_there_is(url: str) -> None:
    answer = call(
        url, Input("target_text", "BYTES", (1, 1), words("target_text", "Hi.").content), model=COSYVOICE3.name
    )
    assert answer.message == "cosyvoice3 cannot serve: the weights are of CosyVoice 2"


def test_a_folder_that_holds_something_is_refused(demo_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    command = [COSYSERVE, "render-repository", str(tmp_path), "--weights", str(demo_weights)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ended.returncode, ended.stderr) == (1, f"error: {tmp_path} is not an empty folder\n")
