"""The exported Qwen2 checkpoint in transformers reproduces the tensors recorded from the original."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cosyserve.errors import BundleError
from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.bundles.bundle import read
from cosyserve_build.export_hf import SHIFT, export_hf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of transformers' own imports
    from transformers import AutoModelForCausalLM, AutoTokenizer

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"
BUNDLE = TINY / "bundle"
STEPS = 20  # recorded after the prefill


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "checkpoint"
    export_hf(BUNDLE, out, "float32")
    return out


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)


@pytest.fixture(scope="module")
def text() -> Tokenizer:
    return Tokenizer.from_bundle(read(BUNDLE).tokenizer, 2)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def prompt(text: Tokenizer) -> list[int]:
    """The recorded prompt in the merged vocabulary: sos, texts, task, speech."""
    with np.load(TINY / "vectors" / "frontend.npz") as record:
        texts = [*record["prompt_text_ids"][0].tolist(), *record["tts_text_ids"][0].tolist()]
        speech = record["speech_token"][0].tolist()
    start, controls = len(text), len(text) + read(BUNDLE).config.llm.speech_vocab
    return [controls, *texts, controls + 1, *(start + i for i in speech)]


def biases(checkpoint: Path) -> dict[int, float]:
    table = json.loads((checkpoint / "generation_config.json").read_text("utf-8"))["sequence_bias"]
    return {ids[0]: bias for ids, bias in table}


def test_logits_with_the_biases_are_the_recorded_ones(
    checkpoint: Path, model: Any, text: Tokenizer, prompt: list[int]
) -> None:
    with np.load(TINY / "vectors" / "llm.npz") as record:
        expected, greedy = record["logits"], record["greedy_tokens"][:STEPS].tolist()
    bias = np.array(list(biases(checkpoint).values())) - SHIFT
    start = len(text)
    logits = model(torch.tensor([[*prompt, *(start + token for token in greedy)]])).logits[0, len(prompt) - 1 :]
    found = logits[:, start : start + expected.shape[1]].double().numpy() + bias
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_generate_follows_the_original_and_needs_no_help_to_avoid_text(
    model: Any, text: Tokenizer, prompt: list[int]
) -> None:
    """Greedy, with the biases applied by transformers itself."""
    with np.load(TINY / "vectors" / "llm.npz") as record:
        greedy = record["greedy_tokens"][:STEPS].tolist()
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, top_p=None, top_k=None, max_new_tokens=STEPS
    )
    assert [i - len(text) for i in out[0, len(prompt) :].tolist()] == greedy


def test_text_has_no_share_of_the_distribution(checkpoint: Path, model: Any, text: Tokenizer) -> None:
    logits = model(torch.tensor([[len(text)]])).logits[0, -1].double()
    for i, bias in biases(checkpoint).items():
        logits[i] += bias
    speech = torch.tensor(list(biases(checkpoint)))
    assert 1 - logits.softmax(0)[speech].sum() < 1e-12


def test_the_chat_template_lays_a_prompt_out_as_the_server_does(tokenizer: Any, text: Tokenizer) -> None:
    spoken = "Hello there, [breath] you. <strong>很好</strong>!"
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": spoken}, {"role": "assistant", "content": "<|s_0|><|s_7|><|s_6560|>"}],
        return_dict=False,
    )
    start = len(text)
    assert ids == [start + 6564, *text.encode(spoken), start + 6565, start, start + 7, start + 6560]


def test_answers_keep_speech_and_lose_stop_tokens(tokenizer: Any, text: Tokenizer) -> None:
    start = len(text)
    assert tokenizer.decode([start, start + 6560, start + 6561], skip_special_tokens=True) == "<|s_0|><|s_6560|>"


def test_generation_stops_at_each_of_the_three_ends(checkpoint: Path, model: Any, text: Tokenizer) -> None:
    assert model.generation_config.eos_token_id == [len(text) + 6561 + i for i in range(3)]
    assert model.config.eos_token_id == len(text) + 6561


def test_the_default_is_bfloat16_under_qwen2_names(tmp_path: Path, model: Any) -> None:
    export_hf(BUNDLE, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert file.get_tensor("lm_head.weight").shape[0] % 128 == 0


def test_an_earlier_export_is_replaced_and_anything_else_is_kept(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "out"
    export_hf(BUNDLE, out, "float32")
    (out / "stale").touch()
    export_hf(BUNDLE, out, "float32")
    assert {path.name for path in out.iterdir()} == {path.name for path in checkpoint.iterdir()}
    with pytest.raises(BundleError, match="name another folder"):
        export_hf(BUNDLE, BUNDLE / "CosyVoice-BlankEN")
    notes = tmp_path / "notes"
    notes.write_text("mine")
    with pytest.raises(BundleError, match="name another folder"):
        export_hf(BUNDLE, notes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "out"]


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        export_hf(tmp_path / "none", tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []
