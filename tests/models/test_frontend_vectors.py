"""Frontend and sampler against the recorded tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import soundfile

from cosyserve.audio.features import fbank, log_mel_128, prompt_mel, resample, subtract_mean
from cosyserve.frontend import Frontend, Request
from cosyserve.llm.sampling import draw_inverse_cdf, draw_race, nucleus, ras
from cosyserve.llm.scores import top
from cosyserve.text.tokenizer import Tokenizer
from cosyserve.voices import VoiceStore
from cosyserve_build.bundles.bundle import read

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"
MANIFEST = json.loads((TINY / "manifest.json").read_text(encoding="utf-8"))
CONFIG = read(TINY / "bundle").config

# A float64 evaluation of the filter bank is 1.7e-4 from the recorded float32 one: quiet bins are rounding noise.
FBANK = 3e-4


def recorded(name: str) -> Mapping[str, np.ndarray]:
    with np.load(TINY / "vectors" / f"{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def vectors() -> Mapping[str, np.ndarray]:
    return recorded("frontend")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bundle(TINY / "bundle" / "CosyVoice-BlankEN", 2)


def test_token_ids(vectors: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> None:
    cases = MANIFEST["cases"]["token_cases"]
    assert cases
    for i, case in enumerate(cases):
        assert tokenizer.encode(case["text"]) == vectors[f"text_ids_{i:02d}"].tolist()
    texts = MANIFEST["cases"]["texts"]
    assert tokenizer.encode_user(texts["prompt_text"]) == vectors["prompt_text_ids"][0].tolist()
    assert tokenizer.encode_user(texts["tts_text"]) == vectors["tts_text_ids"][0].tolist()


FEATURES: dict[str, tuple[Callable[[Any], Any], float]] = {
    "fbank_raw": (lambda v: fbank(v["wav_16k"][0]), FBANK),
    "fbank_cmn": (lambda v: subtract_mean(fbank(v["wav_16k"][0])), FBANK),
    "logmel128": (lambda v: log_mel_128(v["wav_16k"][0])[None], 1e-4),
    "speech_feat_full": (lambda v: prompt_mel(v["wav_24k"][0], CONFIG.mel)[None], 1e-4),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features(name: str, vectors: Mapping[str, np.ndarray]) -> None:
    compute, tolerance = FEATURES[name]
    feature = compute(vectors)
    assert feature.dtype == np.float32
    assert feature.shape == vectors[name].shape
    np.testing.assert_allclose(feature, vectors[name], rtol=0, atol=tolerance)


def test_resampling_differs_from_the_record_by_its_low_pass_filter_only(vectors: Mapping[str, np.ndarray]) -> None:
    recorded_wave = vectors["wav_24k"][0]
    wave = resample(vectors["wav_16k"][0], 16000, 24000)
    assert wave.shape == recorded_wave.shape
    difference, spectrum = np.abs(np.fft.rfft(wave - recorded_wave)), np.abs(np.fft.rfft(recorded_wave))
    hz = np.arange(len(spectrum)) * 24000 / len(recorded_wave)
    speech = (hz > 50) & (hz < 7000)
    assert np.linalg.norm(difference[speech]) < 5e-3 * np.linalg.norm(spectrum[speech])


def test_requests_with_the_recorded_prompt(
    vectors: Mapping[str, np.ndarray], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    speaker = onnxruntime.InferenceSession(TINY / "bundle" / "campplus.onnx")
    tokens = onnxruntime.InferenceSession(TINY / "bundle" / "speech_tokenizer_v2.onnx")
    frontend = Frontend(
        CONFIG,
        tokenizer,
        lambda energies: speaker.run(None, {"input": energies})[0],
        lambda feats, length: tokens.run(None, {"feats": feats, "feats_length": length})[0],
        VoiceStore(tmp_path),
    )
    samples, rate = soundfile.read(TINY / "prompt.wav", dtype="float32")
    texts, modes = MANIFEST["cases"]["texts"], MANIFEST["cases"]["modes"]
    fields = {
        "zero_shot": {"prompt_text": texts["prompt_text"]},
        "cross_lingual": {},
        "instruct2": {"instruct": texts["instruct_text"]},
    }
    for mode, extra in fields.items():
        heard = frontend(Request(texts["tts_text"], prompt_audio=samples, prompt_sample_rate=rate, **extra))
        np.testing.assert_array_equal(np.concatenate(heard.segments), vectors["tts_text_ids"][0])
        np.testing.assert_array_equal(heard.flow_prompt_tokens, vectors["speech_token"][0])
        # Bins up to 7 kHz; above them soxr's low-pass filter is another than the original's.
        np.testing.assert_allclose(heard.prompt_mel[:, :64], vectors["speech_feat"][0, :, :64], rtol=0, atol=1e-2)
        np.testing.assert_allclose(heard.speaker_embedding, vectors["spk_embedding"][0], rtol=0, atol=1e-3)
        shapes = modes[mode]
        assert len(heard.prompt_text_tokens) == shapes.get("prompt_text", [1, 0])[1]
        assert len(heard.llm_prompt_tokens) == shapes.get("llm_prompt_speech_token", [1, 0])[1]
        assert [1, *heard.prompt_mel.shape] == shapes["prompt_speech_feat"]
        if mode == "zero_shot":
            np.testing.assert_array_equal(heard.prompt_text_tokens, vectors["prompt_text_ids"][0])


@pytest.mark.parametrize("i", range(len(MANIFEST["cases"]["ras_cases"])), ids=MANIFEST["cases"]["ras_cases"])
def test_repetition_aware_sampling(i: int) -> None:
    case = {name: array[i] for name, array in recorded("ras").items()}
    logits = case["logp"].copy()
    if case["ignore_eos"]:
        logits[6561] = -np.inf
    history = case["history"][: case["history_len"]].tolist()[-CONFIG.llm.win_size :]
    wanted = case["nucleus_ids"][case["nucleus_ids"] >= 0]
    (ids,), (probs,) = top(logits[None], CONFIG.llm.top_k)
    kept = nucleus(probs, CONFIG.llm.top_p)
    assert ids[:kept].tolist() == wanted.tolist()
    np.testing.assert_allclose(probs[:kept], case["nucleus_probs"][: len(wanted)], rtol=0, atol=1e-5)

    draws = []

    def race(p: np.ndarray, again: bool) -> int:
        draws.append(again)
        return draw_race(p, case["race_q_full"] if again else case["race_q_nucleus"][: len(p)])

    assert ras(ids, probs, lambda: logits, history, race, CONFIG.llm) == case["race_token"]
    assert draws == [False, True] if case["fallback_used"] else draws == [False]

    def inverse_cdf(p: np.ndarray, again: bool) -> int:
        return draw_inverse_cdf(p, case["cdf_u"][int(again)])

    assert ras(ids, probs, lambda: logits, history, inverse_cdf, CONFIG.llm) == case["cdf_token"]
