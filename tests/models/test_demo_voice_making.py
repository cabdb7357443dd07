"""Training of the demo voice: sentences, tokens, sequences, resumed runs, and the archive."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cosyserve.errors import WeightsError
from cosyserve.packed import unpack
from cosyserve_build.bundles import bundle
from cosyserve_build.demo_voice.codebook import FIRST, PHONES, spread, token_ids, used_ids
from cosyserve_build.demo_voice.language_model import Said, Sequences
from cosyserve_build.demo_voice.packing import unpack_bundle
from cosyserve_build.demo_voice.training import Run, train
from cosyserve_build.judge.sentences import SEED, TEMPLATES, VOCABULARY, held_out, sentences, words

ARCHIVE = Path(__file__).parents[2] / "demo" / "voice.tar.xz"
TAUGHT = list(itertools.islice(sentences(SEED), 2_000))


def test_sentences_are_made_of_known_words_and_come_once() -> None:
    assert len(set(TAUGHT)) == len(TAUGHT)
    known = {part for word in VOCABULARY for part in words(word)}
    assert {word for text in TAUGHT for word in words(text)} <= known


def test_a_first_word_of_one_letter_stands_apart() -> None:
    assert any(text.startswith("I ") for text in TAUGHT)
    assert any(text.startswith("A ") for text in TAUGHT)


def test_each_template_is_taught_first() -> None:
    assert "hello." in {text.lower() for text in TAUGHT[: len(TEMPLATES)]}


def test_what_is_held_out_was_not_taught() -> None:
    taught = {text.lower() for text in TAUGHT}
    assert not taught & {text.lower() for text in held_out(50)}


@given(st.lists(st.floats(0.001, 0.4), min_size=1, max_size=30), st.integers(0, 10))
def test_every_phone_gets_tokens_and_none_is_left(lengths: list[float], more: int) -> None:
    ends = list(itertools.accumulate(lengths))
    count = max(round(ends[-1] * 25), len(ends)) + more
    counts = spread(ends, count)
    assert sum(counts) == count
    assert min(counts) >= 1


def test_tokens_are_ids_of_the_quantiser() -> None:
    used = used_ids()
    assert len(np.unique(used)) == len(PHONES) * 9
    assert used.min() >= 0
    assert used.max() < 3**8
    assert token_ids(np.array([2]), np.array([FIRST]), np.array([1]))[0] % 81 == 2


CONFIG = bundle.read(Path(__file__).parents[1] / "data" / "cosyvoice2-tiny" / "bundle").config.llm


def test_a_sequence_is_text_then_speech_then_the_end() -> None:
    said = Said(np.arange(3), np.arange(10, 13), used_ids()[:4])
    sequences = Sequences(CONFIG, [([said], 1.0)])
    ids, targets = sequences.draw(np.random.default_rng(0), 100, alone=True)
    text = CONFIG.speech_vocab + 2
    assert ids[0, :5].tolist() == [CONFIG.start_row, text, text + 1, text + 2, CONFIG.task_row]
    assert targets[0, :4].tolist() == [-1] * 4
    assert targets[0, 4:9].tolist() == [*used_ids()[:4].tolist(), CONFIG.eos]


def test_interleaved_text_asks_for_more_after_each_block() -> None:
    said = Said(np.arange(12), np.arange(12), np.resize(used_ids(), 40))
    sequences = Sequences(CONFIG, [([said], 1.0)])
    rng = np.random.default_rng(1)
    rows = [row.tolist() for _ in range(4) for row in sequences.draw(rng, 400, alone=False)[1]]
    asked = [[i for i, target in enumerate(row) if target == CONFIG.fill] for row in rows]
    # start, 4 of 5 texts, then 15 of speech after the fifth; and once more
    assert [20, 40] in asked
    assert all(row.count(CONFIG.eos) == 1 for row in rows)


def module() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def teach(folder: Path, steps: int, *, stop: int | None = None) -> nn.Linear:
    taught = module()

    def loss(rng: np.random.Generator, done: float) -> torch.Tensor:
        if stop is not None and done * steps >= stop:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.standard_normal((4, 3), np.float32))
        return (taught(x) - x.sum(1, keepdim=True)).square().mean()

    train(folder, Run("line", steps, 0.1, warmup=2), taught, loss)
    return taught


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through = teach(tmp_path / "through", 12)
    monkeypatch.setattr("cosyserve_build.demo_voice.training._SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path / "cut", 12, stop=7)
    resumed = teach(tmp_path / "cut", 12)
    torch.testing.assert_close(resumed.weight, through.weight, rtol=0, atol=0)
    assert not torch.equal(through.weight, module().weight)
    torch.testing.assert_close(teach(tmp_path / "cut", 12, stop=0).weight, through.weight, rtol=0, atol=0)


def test_the_archive_holds_the_bundle_in_the_official_layout(tmp_path: Path) -> None:
    unpack_bundle(ARCHIVE, tmp_path / "bundle")
    opened = bundle.read(tmp_path / "bundle")
    assert opened.version == 2
    assert opened.spk2info().keys() == {"slt", "rms"}
    for state in (opened.llm(), opened.flow(), opened.hift()):
        assert all(torch.equal(value, value.half().float()) for value in state.values())


def cut(archive: Path) -> None:
    archive.write_bytes(ARCHIVE.read_bytes()[:100_000])


def other(archive: Path) -> None:
    with tarfile.open(archive, "w:xz") as packed:
        packed.add(__file__, "weights/tensors.json")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (cut, "cannot be unpacked: "),
        (other, "cannot be unpacked: "),
        (lambda archive: archive.write_bytes(b"no archive"), "cannot be unpacked: "),
        (lambda archive: None, "does not exist$"),
    ],
)
def test_a_damaged_archive_is_named_and_replaces_nothing(
    tmp_path: Path, damage: Callable[[Path], object], problem: str
) -> None:
    archive, weights = tmp_path / "voice.tar.xz", tmp_path / "weights"
    damage(archive)
    weights.mkdir()
    with pytest.raises(WeightsError, match=rf"voice\.tar\.xz {problem}"):
        unpack(archive, weights)
    assert weights.is_dir()
