"""The language model in llama.cpp: results of the float32 graph, with independent rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve.config import LlmConfig
from cosyserve.errors import BundleError, InvalidInput, WeightsError
from cosyserve.llm.decoder import Ids, VocabLayout
from cosyserve.llm.embeddings import Embeddings
from cosyserve.llm.engine import Engine
from cosyserve.llm.graph_decoder import GraphDecoder, LlmNetworks
from cosyserve.llm.sequence import GenerationRequest
from cosyserve.load.llm import load_decoder
from cosyserve.settings import Settings
from cosyserve.weights import Weights, sha256
from cosyserve_build.prepare import prepare

if TYPE_CHECKING:
    from cosyserve.runtimes.gguf import GgufDecoder

BUNDLE = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny" / "bundle"
ROWS, CAPACITY = 4, 256


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("gguf") / "weights"
    prepare(BUNDLE, folder, runtimes=[], llm_gguf="f32")
    return Weights(folder)


@pytest.fixture
def decoder(prepared: Weights) -> Iterator[GgufDecoder]:
    pytest.importorskip("llama_cpp", reason="the gguf extra is not installed")
    from cosyserve.runtimes.gguf import GgufDecoder

    opened = GgufDecoder(prepared.file("llm.gguf"), Embeddings.load(prepared), ROWS, 1, CAPACITY)
    yield opened
    opened.close()


@pytest.fixture
def config(prepared: Weights) -> LlmConfig:
    return prepared.config.llm


def sequence(config: LlmConfig, length: int, seed: int = 0) -> Ids:
    """Start, some text, task, then speech."""
    random, numbers = np.random.default_rng(seed), VocabLayout(config)
    speech = numbers.speech + random.integers(0, config.speech_tokens, length)
    ids = np.concatenate([[numbers.start], random.integers(0, config.vocab, 7), [numbers.task], speech])
    return ids[:length].astype(np.int64)


def expected(networks: LlmNetworks, ids: Ids) -> NDArray[np.float32]:
    """Logits after the last id, from the graph."""
    return GraphDecoder(networks, 1).prefill(0, 0, ids).row(0)


def close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_the_manifest_lists_the_file(prepared: Weights) -> None:
    assert prepared.manifest["files"]["llm.gguf"]["sha256"] == sha256(prepared.folder / "llm.gguf")


def test_a_type_that_does_not_fit_the_sizes_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"rows of 48.*q8_0"):
        prepare(BUNDLE, tmp_path / "out", runtimes=[], llm_gguf="q8_0")
    assert list(tmp_path.iterdir()) == []


def test_prefill_in_parts_and_steps_say_what_the_graph_says(
    decoder: GgufDecoder, llm_networks: LlmNetworks, config: LlmConfig
) -> None:
    one, two = sequence(config, 60, 1), sequence(config, 30, 2)
    decoder.prefill(0, 0, one[:20])
    close(decoder.prefill(0, 20, one[20:50]).row(0), expected(llm_networks, one[:50]))
    close(decoder.prefill(1, 0, two[:20]).row(0), expected(llm_networks, two[:20]))
    for i in range(10):
        scores = decoder.step(np.asarray([one[50 + i], two[20 + i]]), np.asarray([50 + i, 20 + i]))
    close(scores.row(0), expected(llm_networks, one))
    close(scores.row(1), expected(llm_networks, two))


def test_a_moved_row_goes_on_and_an_erased_one_starts_afresh(
    decoder: GgufDecoder, llm_networks: LlmNetworks, config: LlmConfig
) -> None:
    ids = sequence(config, 30)
    decoder.prefill(3, 0, ids[:29])
    decoder.move(3, 0, 29)
    decoder.release(3)
    decoder.prefill(3, 0, sequence(config, 40, 5))
    close(decoder.step(ids[29:], np.asarray([29])).row(0), expected(llm_networks, ids))
    decoder.release(3)
    close(decoder.prefill(3, 0, ids).row(0), expected(llm_networks, ids))


def test_a_nan_does_not_outlive_its_row(
    decoder: GgufDecoder, llm_networks: LlmNetworks, config: LlmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = sequence(config, 30)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_embed", lambda ids: np.full((len(ids), config.hidden), np.nan, np.float32))
        assert np.isnan(decoder.prefill(2, 0, ids).row(0)).all()
    decoder.move(2, 1, len(ids))
    for row in (2, 1):
        decoder.release(row)
        # Fewer positions than were broken, so that they do not all get new values.
        close(decoder.prefill(row, 0, ids[:10]).row(0), expected(llm_networks, ids[:10]))


def test_scores_stay_when_the_next_step_has_run(decoder: GgufDecoder, config: LlmConfig) -> None:
    ids = sequence(config, 30)
    scores = decoder.prefill(0, 0, ids)
    before = scores.row(0).copy()
    decoder.step(ids[:1], np.asarray([30]))
    np.testing.assert_array_equal(scores.row(0), before)


def test_a_full_row_is_refused_and_its_neighbour_unharmed(
    decoder: GgufDecoder, llm_networks: LlmNetworks, config: LlmConfig
) -> None:
    ids, long = sequence(config, 30), sequence(config, CAPACITY, 1)
    decoder.prefill(0, 0, ids[:29])
    decoder.prefill(1, 0, long)
    with pytest.raises(InvalidInput, match=f"^text: .*{CAPACITY}"):
        decoder.step(np.asarray([ids[29], long[0]]), np.asarray([29, CAPACITY]))
    close(decoder.step(ids[29:], np.asarray([29])).row(0), expected(llm_networks, ids))


def test_the_engine_speaks_the_same_tokens_as_with_the_graph(
    decoder: GgufDecoder, llm_networks: LlmNetworks, config: LlmConfig
) -> None:
    """More sequences than rows, so that they end, move and follow each other."""
    told: list[dict[int, list[int | None]]] = []
    for engine in (Engine(decoder, config, ROWS), Engine(GraphDecoder(llm_networks, ROWS), config, ROWS)):
        tokens: dict[int, list[int | None]] = {id: [] for id in range(ROWS + 2)}
        for id, spoken in tokens.items():
            text = np.random.default_rng(id).integers(0, config.vocab, 2 + id % 3).astype(np.int32)
            nothing = np.zeros(0, np.int32)
            engine.admit(GenerationRequest(id, text, nothing, nothing, id, spoken.append, pytest.fail))
        while engine.busy:
            engine.step()
        told.append(tokens)
    assert told[0] == told[1]
    assert all(spoken[-1] is None for spoken in told[0].values())


def test_weights_without_the_file_name_the_command(weights: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the gguf extra is not installed")
    with pytest.raises(WeightsError, match=r"^llm\.gguf is not .*--llm-gguf q8_0`$"):
        load_decoder(Settings(weights=str(weights), llm_runtime="gguf"))


def test_without_llama_cpp_the_error_names_the_extra(prepared: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.delitem(sys.modules, "cosyserve.runtimes.gguf", raising=False)
    with pytest.raises(WeightsError, match=r"llm_runtime: .*pip install 'cosyserve\[gguf\]'`$"):
        load_decoder(Settings(weights=str(prepared.folder), llm_runtime="gguf"))


def test_a_file_that_is_no_gguf_is_one_clear_error(decoder: GgufDecoder, prepared: Weights, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match=r"broken\.gguf"):
        type(decoder)(tmp_path / "broken.gguf", Embeddings.load(prepared), 1, 1)
