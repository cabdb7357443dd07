"""The language model on a device: results of one pass over the whole sequence, with independent rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cosyserve.config import LlmConfig
from cosyserve.errors import InvalidInput
from cosyserve.llm.decoder import Decoder, VocabLayout
from cosyserve.llm.scores import top
from cosyserve.networks.qwen2 import SpeechLM
from cosyserve.runtimes.torch.cuda_graphs import CudaGraphs
from cosyserve.runtimes.torch.llm import CAPACITIES, TorchDecoder, TorchScores, load_decoder
from cosyserve.runtimes.torch.modules import load_module
from cosyserve.settings import Settings
from cosyserve.weights import Weights, map_tensors

Float = NDArray[np.float32]
Ints = NDArray[np.int64]
NOBODY = np.zeros(1, np.bool_)
ROWS = 5


def load(weights: Weights, precision: str = "fp32") -> TorchDecoder:
    return load_decoder(weights, Settings(runtime="torch", llm_precision=precision, llm_slots=ROWS))


@pytest.fixture
def decoder(torch_weights: Weights) -> TorchDecoder:
    return load(torch_weights)


@pytest.fixture(scope="module")
def torch_weights(any_torch_weights: Weights) -> Weights:
    return any_torch_weights


@pytest.fixture(scope="module")
def config(torch_weights: Weights) -> LlmConfig:
    return torch_weights.config.llm


def sequence(config: LlmConfig, length: int, seed: int) -> Ints:
    """Start, some text, task, then speech, in the merged numbering."""
    random = np.random.default_rng(seed)
    layout = VocabLayout(config)
    text, speech = random.integers(0, config.vocab, 7), config.vocab + random.integers(0, config.speech_tokens, length)
    return np.concatenate([[layout.start], text, [layout.task], speech])[:length]


def one_pass(weights: Weights, ids: Ints) -> Float:
    """Logits after the last id, from the network alone."""
    config, tables = weights.config.llm, map_tensors(weights.file("llm.safetensors"))
    module = load_module(lambda: SpeechLM(config), weights, "llm", torch.device("cpu"))
    merged = np.concatenate([tables[name] for name in ("text", "speech", "special") if name in tables])
    empty = [torch.zeros(1, config.kv_heads, 1, config.head_dim)] * config.layers
    logits, *_ = module(torch.from_numpy(merged[ids])[None], torch.zeros(1, dtype=torch.int64), empty, empty)
    found: Float = logits[0].numpy()
    return found


def scores(decoder: TorchDecoder, logits: torch.Tensor) -> TorchScores:
    return TorchScores(logits, len(logits), CudaGraphs(decoder.run_top, torch.device("cpu")))


def close(found: Float, expected: Float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_it_is_a_decoder(decoder: TorchDecoder) -> None:
    promised: Decoder = decoder
    assert promised is decoder


@pytest.mark.parametrize("cuts", [[], [1], [8, 16], [30, 31]])
def test_a_prefill_in_pieces_says_what_one_pass_says(
    decoder: TorchDecoder, torch_weights: Weights, config: LlmConfig, cuts: list[int]
) -> None:
    ids = sequence(config, 80, 0)
    for start, piece in zip([0, *cuts], np.split(ids, cuts), strict=True):
        scores = decoder.prefill(3, start, piece)
    close(scores.row(0), one_pass(torch_weights, ids))


def test_prompts_fed_together_get_what_each_gets_alone(
    decoder: TorchDecoder, torch_weights: Weights, config: LlmConfig
) -> None:
    prompts = [sequence(config, length, length) for length in (12, 40, 270)]
    decoder.prefill(2, 0, prompts[2][:200])
    scores = decoder.prefill_together([4, 0, 2], [0, 0, 200], [prompts[0], prompts[1], prompts[2][200:]])
    for index, ids in enumerate(prompts):
        close(scores.row(index), one_pass(torch_weights, ids))
    ids, _ = scores.top(3, np.zeros(3, np.bool_))
    assert ids.shape == (3, 3)
    close(decoder.prefill(2, 270, prompts[0]).row(0), one_pass(torch_weights, np.concatenate([prompts[2], prompts[0]])))


def test_rows_of_any_length_step_together(decoder: TorchDecoder, torch_weights: Weights, config: LlmConfig) -> None:
    rows = [sequence(config, length, length) for length in (12, 40, 270)]
    for row, ids in enumerate(rows):
        decoder.prefill(row, 0, ids[:-2])
    lengths = np.asarray([len(ids) - 2 for ids in rows])
    decoder.step(np.asarray([ids[-2] for ids in rows]), lengths)
    scores = decoder.step(np.asarray([ids[-1] for ids in rows]), lengths + 1)
    for row, ids in enumerate(rows):
        close(scores.row(row), one_pass(torch_weights, ids))


def test_a_step_leaves_the_rows_behind_it_alone(
    decoder: TorchDecoder, torch_weights: Weights, config: LlmConfig
) -> None:
    # Three rows are filled up to four; row 3 is in the middle of its prefill.
    ids = sequence(config, 30, 0)
    decoder.prefill(3, 0, ids[:20])
    for row in range(3):
        decoder.prefill(row, 0, ids[:9])
    decoder.step(ids[9:12], np.full(3, 9))
    close(decoder.prefill(3, 20, ids[20:]).row(0), one_pass(torch_weights, ids))


def test_a_moved_row_goes_on_and_an_erased_one_starts_afresh(
    decoder: TorchDecoder, torch_weights: Weights, config: LlmConfig
) -> None:
    ids = sequence(config, 30, 0)
    decoder.prefill(4, 0, ids[:29])
    decoder.move(4, 0, 29)
    decoder.release(4)
    close(decoder.step(ids[29:], np.asarray([29])).row(0), one_pass(torch_weights, ids))
    close(decoder.prefill(4, 0, ids).row(0), one_pass(torch_weights, ids))


def test_scores_stay_when_the_next_step_has_run(decoder: TorchDecoder, config: LlmConfig) -> None:
    ids = sequence(config, 30, 0)
    scores = decoder.prefill(0, 0, ids)
    before = scores.row(0).copy()
    decoder.step(ids[:1], np.asarray([30]))
    np.testing.assert_array_equal(scores.row(0), before)


def test_a_full_row_is_refused(decoder: TorchDecoder, config: LlmConfig) -> None:
    with pytest.raises(InvalidInput, match="^text: .*4096"):
        decoder.prefill(0, CAPACITIES[-1] - 4, sequence(config, 5, 0))
    with pytest.raises(InvalidInput, match="^text: .*4096"):
        decoder.step(sequence(config, 1, 0), np.asarray([CAPACITIES[-1]]))


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.3), ("fp16", 0.05)])
def test_half_precision_stays_close(torch_weights: Weights, config: LlmConfig, precision: str, error: float) -> None:
    ids = sequence(config, 80, 0)
    scores = load(torch_weights, precision).prefill(0, 0, ids)
    np.testing.assert_allclose(scores.row(0), one_pass(torch_weights, ids), rtol=0, atol=error)


@pytest.mark.parametrize("hold", [False, True])
def test_the_likeliest_are_those_of_the_sampler(decoder: TorchDecoder, config: LlmConfig, hold: bool) -> None:
    # A few levels make many ties; the stop ids are among the likeliest.
    logits = np.random.default_rng(0).integers(0, 5, (3, config.speech_vocab)).astype(np.float32)
    logits[:, config.end :] = 4
    held = np.asarray([hold, not hold, hold])
    ids, probabilities = scores(decoder, torch.from_numpy(logits)).top(25, held)
    for row in range(3):
        if held[row]:
            logits[row, config.end :] = -np.inf
    expected_ids, expected = top(logits, 25)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_row_without_finite_scores_says_so_and_its_neighbour_does_not(
    decoder: TorchDecoder, config: LlmConfig, poison: float
) -> None:
    logits = np.zeros((2, config.speech_vocab), np.float32)
    logits[0, 7] = poison
    _, probabilities = scores(decoder, torch.from_numpy(logits)).top(3, np.zeros(2, np.bool_))
    assert np.isnan(probabilities[0]).all()
    assert np.isfinite(probabilities[1]).all()


def test_a_row_of_minus_infinity_has_no_finite_score(decoder: TorchDecoder, config: LlmConfig) -> None:
    logits = torch.full((1, config.speech_vocab), float("-inf"))
    assert np.isnan(scores(decoder, logits).top(3, NOBODY)[1]).all()
