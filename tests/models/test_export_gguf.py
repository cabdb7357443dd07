"""The exported GGUF file, and the same file in llama.cpp where that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

from cosyserve.errors import BundleError
from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.bundles.bundle import read
from cosyserve_build.export_gguf import NEVER, export_gguf
from cosyserve_build.merged import MergedLm, merge
from cosyserve_build.synth import synth_bundle

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"
BUNDLE = TINY / "bundle"
STEPS = 20  # recorded after the prefill


@pytest.fixture(scope="module")
def merged() -> MergedLm:
    return merge(read(BUNDLE))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export_gguf(BUNDLE, out, "f32")
    return out


def tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}


def test_only_speech_has_a_bias_that_lets_it_be_sampled(file: Path, merged: MergedLm) -> None:
    bias = tensors(file)["output.bias"]
    stop = merged.offset + merged.config.speech_vocab
    np.testing.assert_array_equal(bias[merged.offset : stop], merged.bias)
    np.testing.assert_array_equal(np.delete(bias, np.s_[merged.offset : stop]), np.float32(NEVER))


def test_the_vocabulary_is_the_one_of_the_tokenizer(file: Path, merged: MergedLm) -> None:
    fields = GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(set(tokens)) == len(tokens) == merged.rows
    assert {token: i for i, token in enumerate(tokens) if not token.startswith("[PAD")} == merged.ids
    stops = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot", "eom")]
    assert [tokens[i] for i in stops] == ["<|eos1|>", "<|eos2|>", "<|eos3|>"]


@pytest.mark.parametrize(("quantise", "error"), [("f16", 1e-3), ("q8_0", 1e-2), ("q4_0", 0.15)])
def test_matrices_are_rounded_as_asked_and_vectors_are_not(tmp_path: Path, quantise: Any, error: float) -> None:
    """`error` is relative to the largest weight of a matrix."""
    synth_bundle(tmp_path / "bundle", 2, "small", 0)
    export_gguf(tmp_path / "bundle", tmp_path / "exact.gguf", "f32")
    export_gguf(tmp_path / "bundle", tmp_path / "rounded.gguf", quantise)
    exact, rounded = tensors(tmp_path / "exact.gguf"), tensors(tmp_path / "rounded.gguf")
    assert exact.keys() == rounded.keys()
    for name, expected in exact.items():
        if expected.ndim == 1:
            np.testing.assert_array_equal(rounded[name], expected)
        else:
            assert 0 < np.abs(rounded[name] - expected).max() <= error * np.abs(expected).max(), name


def test_a_width_that_does_not_divide_into_blocks_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"q_proj.*rows of 48.*q8_0"):
        export_gguf(BUNDLE, tmp_path / "out.gguf", "q8_0")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "mine.gguf"
    out.write_text("mine")
    with pytest.raises(BundleError, match="exists"):
        export_gguf(BUNDLE, out, "f32")
    assert out.read_text() == "mine"


# --- in llama.cpp ---


@pytest.fixture(scope="module")
def prompt(merged: MergedLm) -> list[int]:
    """The recorded prompt in the merged vocabulary."""
    with np.load(TINY / "vectors" / "frontend.npz") as record:
        texts = [*record["prompt_text_ids"][0].tolist(), *record["tts_text_ids"][0].tolist()]
        speech = [merged.offset + i for i in record["speech_token"][0].tolist()]
    return [merged.ids["<|sos|>"], *texts, merged.ids["<|task_id|>"], *speech]


@pytest.fixture(scope="module")
def recorded() -> dict[str, NDArray[Any]]:
    with np.load(TINY / "vectors" / "llm.npz") as record:
        return {"logits": record["logits"], "tokens": record["greedy_tokens"][:STEPS]}


@pytest.fixture
def llama(file: Path) -> Iterator[Any]:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the gguf extra is not installed")
    opened = llama_cpp.Llama(str(file), n_ctx=1024, n_threads=1, logits_all=True, verbose=False)
    yield opened
    opened.close()


def test_llama_cpp_computes_the_recorded_logits(
    llama: Any, prompt: list[int], merged: MergedLm, recorded: dict[str, NDArray[Any]]
) -> None:
    llama.eval([*prompt, *(merged.offset + int(token) for token in recorded["tokens"])])
    speech = slice(merged.offset, merged.offset + merged.config.speech_vocab)
    found = llama.scores[len(prompt) - 1 : len(prompt) + STEPS, speech]
    # llama.cpp's KV cache is float16 by default.
    np.testing.assert_allclose(found, recorded["logits"], rtol=0, atol=0.03)


def test_llama_cpp_splits_text_as_our_tokenizer_does(llama: Any) -> None:
    ours = Tokenizer.from_bundle(read(BUNDLE).tokenizer, 2)
    for text in ("Hello there, [breath] you.", "<strong>很好</strong> 123 o'clock", "a  b\n\nc"):
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == ours.encode(text)
