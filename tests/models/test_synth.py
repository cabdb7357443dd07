"""Random bundles: official layout and sizes, and audio with the statistics of speech."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from cosyserve.config import CosyVoice3LlmConfig, ModelConfig
from cosyserve.errors import WeightsError
from cosyserve.flow.stream import FlowVoice
from cosyserve.llm.engine import Engine
from cosyserve.llm.graph_decoder import GraphDecoder
from cosyserve.llm.sequence import GenerationRequest
from cosyserve.runtimes.onnx.graph import OnnxGraph
from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.bundles.bundle import Bundle, read
from cosyserve_build.bundles.layout import read_config, version_of
from cosyserve_build.bundles.shapes import expected_shapes
from cosyserve_build.probes import FlowProbe, HiftProbe, LlmProbe
from cosyserve_build.probes1 import RelativeLlmProbe, WindowProbe
from cosyserve_build.synth import synth_bundle
from cosyserve_build.synth_recipe import sizes, write_recipe


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("synth")
    synth_bundle(folder, 2, "tiny", seed=3)
    return read(folder)


@pytest.fixture(scope="module")
def bundle1(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("synth1")
    synth_bundle(folder, 1, "tiny", seed=3)
    return read(folder)


@pytest.fixture(scope="module")
def bundle3(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("synth3")
    synth_bundle(folder, 3, "tiny", seed=3)
    return read(folder)


@pytest.fixture(params=["bundle", "bundle3"])
def either(request: pytest.FixtureRequest) -> Bundle:
    found: Bundle = request.getfixturevalue(request.param)
    return found


def full_size(folder: Path, version: int) -> ModelConfig:
    """The recipe of a bundle of the official dimensions, which has no weights."""
    write_recipe(folder, version, sizes(version, "full"))
    return read_config(folder, version_of(folder))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    opened = read(folder)
    return {**opened.llm(), **opened.flow(), **opened.hift()}


def test_the_seed_decides_the_weights(bundle: Bundle, tmp_path: Path) -> None:
    synth_bundle(tmp_path / "same", 2, "tiny", seed=3)
    synth_bundle(tmp_path / "other", 2, "tiny", seed=4)
    first, same, other = weights(bundle.folder), weights(tmp_path / "same"), weights(tmp_path / "other")
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["encoder_proj.weight"], other["encoder_proj.weight"])
    for name in ("campplus.onnx", "speech_tokenizer_v2.onnx", "CosyVoice-BlankEN/merges.txt"):
        assert (bundle.folder / name).read_bytes() == (tmp_path / "same" / name).read_bytes()


def test_the_bundle_says_that_its_weights_are_random(bundle: Bundle) -> None:
    assert json.loads((bundle.folder / "configuration.json").read_text())["random_weights"] is True


@pytest.mark.parametrize(
    ("version", "tensors", "millions"),
    [
        (1, {"llm": 401, "flow": 1185}, {"llm": (310.718, 0.001), "flow": (104.875, 0.001), "hift": (20.4606, 0.02)}),
        (2, {}, {"llm": (505.8, 0.1), "flow": (112.549, 0.001), "hift": (20.8213, 0.02)}),
        # Upstream's counts; lm_head is tied and dropped, 82 weight-normed tensors are folded from two into one.
        (
            3,
            {"llm": 292, "flow": 330, "hift": 328 - 82},
            {"llm": (506.1, 0.1), "flow": (332.257, 0.001), "hift": (20.7799, 0.02)},
        ),
    ],
)
def test_full_size_has_the_official_dimensions(
    version: int, tensors: dict[str, int], millions: dict[str, tuple[float, float]], tmp_path: Path
) -> None:
    config = full_size(tmp_path, version)
    shapes = {part: expected_shapes(config, part) for part in ("llm", "flow", "hift")}
    assert {part: len(shapes[part]) for part in tensors} == tensors
    for part, (wanted, off) in millions.items():
        assert sum(map(math.prod, shapes[part].values())) == pytest.approx(wanted * 1e6, abs=off * 1e6)


def test_full_size_has_the_official_special_tokens(tmp_path: Path) -> None:
    full_size(tmp_path, 2)
    tokenizer = Tokenizer.from_bundle(tmp_path / "CosyVoice-BlankEN", 2)
    assert tokenizer.special("<|endoftext|>") == 151643
    assert tokenizer.special("<|endofprompt|>") == 151646
    assert max(tokenizer.encode("The quiet lake, 今天的天气")) < 656


def test_full_size_of_version_3_has_the_official_vocabulary(tmp_path: Path) -> None:
    llm = full_size(tmp_path, 3).llm
    assert isinstance(llm, CosyVoice3LlmConfig)
    assert (llm.end_of_prompt, llm.vocab) == (151646, 151936)


def test_every_byte_has_a_token_and_merges_are_used(bundle: Bundle) -> None:
    tokenizer = Tokenizer.from_bundle(bundle.tokenizer, 2)
    vocab = json.loads((bundle.tokenizer / "vocab.json").read_text("utf-8"))
    assert sum(len(piece) == 1 for piece in vocab) == 256
    assert len(tokenizer) <= bundle.config.llm.vocab
    rare = "\x00\x7fé한😀𝄞"
    assert len(tokenizer.encode(rare)) == len(rare.encode("utf-8"))
    assert len(tokenizer.encode("the train to the harbor")) < 15


def test_utterances_end_and_vary(either: Bundle) -> None:
    config = either.config.llm
    cut: list[None] = []
    decoder = GraphDecoder(LlmProbe(config, either.llm()).networks, rows=10)
    engine = Engine(decoder, config, slots=10, on_cut=lambda: cut.append(None))
    texts, spoken, none = 20, [], np.zeros(0, np.int32)
    for seed in range(10):
        emitted: list[int | None] = []
        text = np.arange(seed, seed + texts, dtype=np.int32)
        engine.admit(GenerationRequest(seed, text, none, none, seed, emitted.append, pytest.fail))
        spoken.append(emitted)
    while engine.busy:
        engine.step()
    assert 5 < np.mean([len(emitted) - 1 for emitted in spoken]) / texts < 14
    assert len(cut) <= 3
    assert len({token for emitted in spoken for token in emitted}) > 800


def test_the_sound_is_voiced_and_neither_silent_nor_clipped(either: Bundle) -> None:
    voice = either.spk2info()["demo"]
    prompt, mel, embedding = (
        voice[key] for key in ("flow_prompt_speech_token", "prompt_speech_feat", "flow_embedding")
    )
    tokens = np.random.default_rng(0).integers(0, 6561, 100)
    flow = FlowProbe(either.config, either.flow(), FlowVoice(prompt[0], mel[0], embedding[0]))
    new_mel = flow.run(tokens, streaming=True, finalize=True).mel
    assert new_mel.shape == (1, 80, 200)
    hift = HiftProbe(either.config.hift, either.hift())
    f0 = hift.f0(new_mel)
    noise = np.random.default_rng(0).standard_normal((1, 200 * 480, 9), np.float32)
    wave = hift.wave(new_mel, hift.source(f0, noise))
    assert 0.5 < float(new_mel.std()) < 4
    assert f0.min() > 60
    assert f0.max() < 320
    assert 0.03 < float(np.sqrt(np.mean(wave**2))) < 0.15
    assert float(np.abs(wave).max()) < 0.99


def test_the_voice_is_a_stored_zero_shot_speaker(bundle: Bundle) -> None:
    voice = bundle.spk2info()["demo"]
    count = voice["flow_prompt_speech_token"].shape[1]
    assert 50 <= count <= 75
    assert voice["prompt_speech_feat"].shape == (1, 2 * count, 80)
    assert voice["prompt_text_len"][0] == voice["prompt_text"].shape[1]
    assert voice["embedding"].shape == (1, 192)
    tokenizer = Tokenizer.from_bundle(bundle.tokenizer, 2)
    assert tokenizer.encode("The small boat drifted slowly across the quiet lake.") == list(voice["prompt_text"][0])


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 100, 375])
def test_speech_tokenizer_graph(bundle: Bundle, frames: int) -> None:
    session = onnxruntime.InferenceSession(bundle.speech_tokenizer, providers=["CPUExecutionProvider"])
    feats = np.random.default_rng(frames).standard_normal((2, 128, frames), dtype=np.float32)
    (ids,) = session.run(None, {"feats": feats, "feats_length": np.array([frames, frames], np.int32)})
    assert ids.dtype == np.int32
    assert ids.shape == (2, math.ceil(frames / 4))
    assert 0 <= ids.min() <= ids.max() <= 6560
    assert not np.array_equal(ids[0], ids[1])
    (short,) = session.run(None, {"feats": feats, "feats_length": np.array([0, frames], np.int32)})
    assert len(set(short[0])) == 1
    assert np.array_equal(short[1], ids[1])


def test_speaker_graph(bundle: Bundle) -> None:
    session = onnxruntime.InferenceSession(bundle.campplus, providers=["CPUExecutionProvider"])
    feats = np.random.default_rng(0).standard_normal((2, 120, 80), dtype=np.float32)
    (vectors,) = session.run(None, {"input": feats})
    assert vectors.shape == (2, 192)
    assert np.linalg.norm(vectors[0] - vectors[1]) > 0.1 * np.linalg.norm(vectors[0])


def test_utterances_of_version_1_end_and_vary(bundle1: Bundle) -> None:
    model = RelativeLlmProbe(bundle1.config.llm, bundle1.llm())
    text = list(range(100, 110))
    tokens, logits = model.greedy(model.opening([], text, [], np.ones(192, np.float32)), len(text), limit=40)
    assert len(set(tokens)) > 5
    likeliest = np.sort(logits[-1])[::-1]
    assert likeliest[24] < logits[-1][bundle1.config.llm.end] < likeliest[0] + 1


def test_the_sound_of_version_1_is_voiced_and_neither_silent_nor_clipped(bundle1: Bundle) -> None:
    voice = bundle1.spk2info()["demo"]
    prompt, mel, embedding = (
        np.asarray(voice[key]) for key in ("flow_prompt_speech_token", "prompt_speech_feat", "flow_embedding")
    )
    assert mel.shape[1] == int(prompt.shape[1] / 50 * 22050 / 256)
    noise = np.random.default_rng(0).standard_normal((80, 400), np.float32)
    flow = WindowProbe(bundle1.config.flow, bundle1.flow(), FlowVoice(prompt[0], mel[0], embedding[0]), noise)
    (run,) = flow.run(np.random.default_rng(0).integers(0, 4096, 100), streaming=False)
    hift = HiftProbe(bundle1.config.hift, bundle1.hift())
    f0 = hift.f0(run.mel)
    wave = hift.wave(run.mel, hift.source(f0))
    assert 0.3 < float(run.mel.std()) < 4
    assert 60 < f0.min() <= f0.max() < 320
    assert 0.02 < float(np.sqrt(np.mean(wave**2))) < 0.2
    assert float(np.abs(wave).max()) < 0.99


def test_the_speech_tokenizer_of_version_1_says_fifty_tokens_a_second(bundle1: Bundle) -> None:
    feats = np.random.default_rng(0).standard_normal((1, 128, 101), dtype=np.float32)
    ids = OnnxGraph(bundle1.speech_tokenizer).first(feats, np.array([101], np.int32))
    assert ids.shape == (1, 51)
    assert 0 <= ids.min() <= ids.max() < 4096


def test_other_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="version 4"):
        synth_bundle(tmp_path, 4, "tiny", seed=0)
