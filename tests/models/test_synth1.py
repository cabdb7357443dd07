"""Random bundles of CosyVoice 1."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cosyserve.flow.stream import FlowVoice
from cosyserve.runtimes.onnx.graph import OnnxGraph
from cosyserve_build.bundles.bundle import Bundle, read
from cosyserve_build.bundles.layout import read_config, version_of
from cosyserve_build.bundles.shapes import expected_shapes
from cosyserve_build.probes import HiftProbe
from cosyserve_build.probes1 import RelativeLlmProbe, WindowProbe
from cosyserve_build.synth import synth_bundle
from cosyserve_build.synth_recipe import sizes, write_recipe


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("synth1")
    synth_bundle(folder, 1, "tiny", seed=3)
    return read(folder)


def test_full_size_has_the_official_dimensions(tmp_path: Path) -> None:
    write_recipe(tmp_path, 1, sizes(1, "full"))
    config = read_config(tmp_path, version_of(tmp_path))
    shapes = {part: expected_shapes(config, part) for part in ("llm", "flow", "hift")}
    parameters = {part: sum(map(math.prod, of.values())) for part, of in shapes.items()}
    assert (len(shapes["llm"]), len(shapes["flow"])) == (401, 1185)
    assert parameters["llm"] == pytest.approx(310.718e6, abs=0.001e6)
    assert parameters["flow"] == pytest.approx(104.875e6, abs=0.001e6)
    assert parameters["hift"] == pytest.approx(20.4606e6, abs=0.02e6)


def test_the_end_is_likely_enough_and_speech_varied(bundle: Bundle) -> None:
    model = RelativeLlmProbe(bundle.config.llm, bundle.llm())
    text = list(range(100, 110))
    tokens, logits = model.greedy(model.opening([], text, [], np.ones(192, np.float32)), len(text), limit=40)
    assert len(set(tokens)) > 5
    likeliest = np.sort(logits[-1])[::-1]
    assert likeliest[24] < logits[-1][bundle.config.llm.end] < likeliest[0] + 1


def test_the_sound_is_voiced_and_neither_silent_nor_clipped(bundle: Bundle) -> None:
    voice = bundle.spk2info()["demo"]
    prompt, mel, embedding = (
        np.asarray(voice[key]) for key in ("flow_prompt_speech_token", "prompt_speech_feat", "flow_embedding")
    )
    assert mel.shape[1] == int(prompt.shape[1] / 50 * 22050 / 256)
    noise = np.random.default_rng(0).standard_normal((80, 400), np.float32)
    flow = WindowProbe(bundle.config.flow, bundle.flow(), FlowVoice(prompt[0], mel[0], embedding[0]), noise)
    (run,) = flow.run(np.random.default_rng(0).integers(0, 4096, 100), streaming=False)
    hift = HiftProbe(bundle.config.hift, bundle.hift())
    f0 = hift.f0(run.mel)
    wave = hift.wave(run.mel, hift.source(f0))
    assert 0.3 < float(run.mel.std()) < 4
    assert 60 < f0.min() <= f0.max() < 320
    assert 0.02 < float(np.sqrt(np.mean(wave**2))) < 0.2
    assert float(np.abs(wave).max()) < 0.99


def test_the_speech_tokenizer_says_fifty_tokens_a_second(bundle: Bundle) -> None:
    feats = np.random.default_rng(0).standard_normal((1, 128, 101), dtype=np.float32)
    ids = OnnxGraph(bundle.speech_tokenizer).first(feats, np.array([101], np.int32))
    assert ids.shape == (1, 51)
    assert 0 <= ids.min() <= ids.max() < 4096
