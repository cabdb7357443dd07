"""``cosyserve-build judge``: recognised words, and the figures from them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from dummy_server import CHUNK, SAMPLE_RATE, DummyServer
from typer.testing import CliRunner, Result

from cosyserve_build.cli import app
from cosyserve_build.judge import command
from cosyserve_build.judge.language import bigrams
from cosyserve_build.judge.recogniser import Recogniser, word_errors
from cosyserve_build.judge.sentences import TAUGHT, held_out, sentences, words
from cosyserve_build.judge.speech import Speech
from cosyserve_build.judge.verdict import Finding, Verdict

Run = Callable[..., Result]
SPEECH = Path(__file__).parents[1] / "data" / "speech"
SAID = {name: (SPEECH / f"{name}.txt").read_text("utf-8").strip() for name in ("slt", "rms")}


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser()


@pytest.fixture
def server() -> Iterator[DummyServer]:
    with DummyServer() as running:
        yield running


@pytest.fixture
def run(server: DummyServer, recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(command, "Recogniser", lambda: recogniser)
    return lambda *options: judge("--url", server.url, *options)


def judge(*options: str) -> Result:
    return CliRunner().invoke(app, ["judge", *options])


def spoken(name: str) -> Speech:
    samples, rate = soundfile.read(SPEECH / f"{name}.flac", dtype="int16")
    return Speech(SAID[name], samples, rate)


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a x c", 1),
        ("a b c", "a c", 1),
        ("a b c", "a b b c", 1),
        ("a b c", "b c a", 2),
        ("a b c", "", 3),
        ("", "a", 1),
    ],
)
def test_word_errors_are_the_fewest_changes(said: str, heard: str, errors: int) -> None:
    assert word_errors(said.split(), heard.split()) == errors


def test_bigrams_of_each_word_sum_to_one() -> None:
    text = bigrams([["good", "day"], ["good", "night"], ["good", "day", "sir"]])
    single, _, pairs = text.partition("\\2-grams:")
    chance, backoff = {}, {}
    for line in single.splitlines():
        if line.count("\t"):
            logarithm, word, *rest = line.split("\t")
            chance[word], backoff[word] = 10 ** float(logarithm), 10 ** float(*rest or ["0"])
    seen = {
        tuple(line.split("\t")[1].split()): 10 ** float(line.split("\t")[0])
        for line in pairs.splitlines()
        if "\t" in line
    }
    assert f"ngram 2={len(seen)}" in text
    followers = [word for word in chance if word != "<s>"]
    for first in ("<s>", "good", "day"):
        total = sum(seen.get((first, second), backoff[first] * chance[second]) for second in followers)
        assert total == pytest.approx(1, abs=1e-3)
    assert seen["good", "day"] > seen["good", "night"]


@pytest.mark.parametrize("name", SAID)
def test_speech_is_heard_word_for_word(recogniser: Recogniser, name: str) -> None:
    finding = Finding.of(spoken(name), recogniser)
    assert finding.heard == words(SAID[name])
    assert finding.errors == 0


def test_other_words_are_not_heard_into_it(recogniser: Recogniser) -> None:
    speech = spoken("slt")
    finding = Finding.of(Speech(SAID["rms"], speech.pcm, speech.rate), recogniser)
    assert finding.errors >= len(finding.said)


def test_nothing_has_no_words(recogniser: Recogniser) -> None:
    for samples in (0, 1, 100):
        assert recogniser.hear(np.zeros(samples, np.float32), 24_000) == []


def test_the_rate_is_of_all_words_and_its_interval_holds_it(recogniser: Recogniser) -> None:
    right = Finding.of(spoken("slt"), recogniser)
    wrong = Finding.of(Speech("Please open the door.", spoken("rms").pcm, 16_000), recogniser)
    verdict = Verdict([right] * 9 + [wrong])
    assert verdict.wer == wrong.errors / (9 * 9 + 4)
    low, high = verdict.interval()
    assert low == 0 < verdict.wer < high < 0.5


def test_held_out_sentences_were_not_taught() -> None:
    taught = {text.lower() for text, _ in zip(sentences(0), range(TAUGHT), strict=False)}
    said = held_out(50)
    assert len(set(said)) == 50
    assert not {text.lower() for text in said} & taught
    assert held_out(20) == said[:20]


def test_json_has_the_documented_figures(run: Run, server: DummyServer) -> None:
    result = run("--sentences", "3", "--json", "--voice", "anna", "--seed", "7")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [row["said"] for row in document["rows"]] == [" ".join(words(text)) for text in held_out(3)]
    assert document["sentences"] == 3
    assert document["seconds"] == pytest.approx(3 * 5 * CHUNK / SAMPLE_RATE)
    assert document["joins"] == document["voiced_joins"] == 12
    assert (document["clicks"], document["breaks"], document["clipped"], document["silent"]) == (0, 0, 0, 0)
    assert document["wer"] > 0.5  # a tone has no words
    assert document["wer_low"] <= document["wer"] <= document["wer_high"]
    assert document["first_audio_ms"] > 0
    documented = Verdict.figures.__doc__ or ""
    assert [name for name in document if f"``{name}``" not in documented] == ["rows"]
    requests = {inputs["text"].item().decode(): inputs for inputs in server.requests}
    assert [requests[text]["seed"].item() for text in held_out(3)] == [7, 8, 9]
    assert {inputs["voice"].item() for inputs in server.requests} == {b"anna"}
    assert all(inputs["stream"].item() for inputs in server.requests)


def test_a_table_shows_the_rate_and_the_worst_sentences(run: Run, server: DummyServer) -> None:
    result = run("--sentences", "2", "--full")
    assert result.exit_code == 0, result.stderr
    for shown in ("word error rate", "clicks / joins", "worst sentences", "said", "heard", words(held_out(1)[0])[0]):
        assert shown in result.stdout
    assert not any(inputs["stream"].item() for inputs in server.requests)


@pytest.mark.parametrize(("bound", "code"), [("20", 1), ("1000", 0)])
def test_the_exit_code_tells_of_a_rate_beyond_the_bound(run: Run, bound: str, code: int) -> None:
    result = run("--sentences", "1", "--max-wer", bound)
    assert result.exit_code == code
    assert result.stderr.startswith("failed: word error rate 1" if code else "")


def test_what_the_server_refuses_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "held_out", lambda count: ["NOT_FOUND voice: there is no anna"] * count)
    result = run("--sentences", "4")
    assert (result.exit_code, result.stderr) == (1, "error: NOT_FOUND voice: there is no anna\n")


def test_no_server_is_one_line() -> None:
    result = judge("--url", "127.0.0.1:1", "--sentences", "1")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot reach a server")


def test_a_missing_recogniser_names_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("cosyserve_build.judge")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    result = judge("--sentences", "1")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: pocketsphinx is not installed: pip install 'cosyserve[judge]'\n",
    )


def test_without_what_makes_the_source_voice_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wave = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny" / "prompt.wav"
    flite = tmp_path / "flite"  # the machine may have none
    flite.write_text(f'#!/bin/sh\ncp {wave} "$7"\necho pau:0.10 hh:0.50 ay:1.00 pau:1.50\n')
    flite.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delitem(sys.modules, "cosyserve_build.demo_voice.source", raising=False)
    monkeypatch.setitem(sys.modules, "pyworld", None)
    result = judge("--source", "slt", "--sentences", "1")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: source: pyworld is missing: pip install 'cosyserve[voice]'\n",
    )
