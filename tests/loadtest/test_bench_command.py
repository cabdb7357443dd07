"""``cosyserve bench`` against a dummy server with the real protocol."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from dummy_server import CHUNK, SAMPLE_RATE, DummyServer
from typer.testing import CliRunner

from cosyserve_client import AsyncClient, SpeechRequest
from cosyserve_client.bench.command import TEXTS, bench
from cosyserve_client.bench.generator import Budget, Open
from cosyserve_client.bench.results import Result
from cosyserve_client.bench.speaker import Script, Speaker

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"

app = typer.Typer()
app.command()(bench)


@pytest.fixture
def server() -> Iterator[DummyServer]:
    with DummyServer(first_audio=0.02) as running:
        yield running


def run(server: DummyServer, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    result = CliRunner().invoke(app, ["--url", server.url, *arguments])
    return result.exit_code, result.stdout, result.stderr


def texts(server: DummyServer) -> list[str]:
    return [inputs["text"].item().decode() for inputs in server.requests]


def test_each_level_is_a_column(server: DummyServer) -> None:
    code, out, err = run(server, "--concurrency", "1,4", "--rate", "20", "--requests", "4")
    assert code == 0, err
    for label in ("concurrency 1", "concurrency 4", "rate 20", "first audio", "gapless", "audio s / s"):
        assert label in out
    assert err == ""


def test_json_has_the_figures_and_every_utterance(server: DummyServer) -> None:
    code, out, err = run(server, "--concurrency", "2", "--requests", "6", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["problems"] == []
    assert document["client"]["cores"] >= 1
    assert document["server"]["name"] == "dummy"
    assert document["server"]["models"]["tts"]["sample_rate"] == str(SAMPLE_RATE)
    (level,) = document["levels"]
    assert (level["concurrency"], level["utterances"], level["succeeded"], level["gapless"]) == (2, 6, 6, 1)
    assert level["first_audio_ms"]["p50"] >= 20
    assert [row["outcome"] for row in level["rows"]] == ["ok"] * 6
    for row in level["rows"]:
        assert [chunk["samples"] for chunk in row["chunks"]] == [CHUNK] * 5
        assert row["audio_s"] == pytest.approx(5 * CHUNK / SAMPLE_RATE)
        assert 0 < row["first_audio_s"] < row["seconds"]
    assert "concurrency 2" in err  # the table


def test_warm_up_is_spoken_but_not_counted(server: DummyServer) -> None:
    _, out, _ = run(server, "--concurrency", "2", "--requests", "4", "--warmup", "3", "--json")
    assert json.loads(out)["levels"][0]["utterances"] == 4
    assert len(server.requests) == 2 * 3 + 4


def test_every_level_says_the_same_with_the_same_seeds(server: DummyServer) -> None:
    run(server, "--concurrency", "1,2", "--requests", "4", "--warmup", "0", "--seed", "10")
    said = [(text, int(inputs["seed"].item())) for text, inputs in zip(texts(server), server.requests, strict=True)]
    assert said[:4] == [(TEXTS[n % len(TEXTS)], 10 + n) for n in range(4)]
    assert sorted(said[4:]) == sorted(said[:4])


def test_texts_come_from_a_file_and_the_voice_from_a_prompt(server: DummyServer, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("one\n\ntwo\n")
    prompt = ("--prompt-wav", str(TINY / "prompt.wav"), "--prompt-text", "three two one")
    code, _, err = run(server, "--texts", str(tmp_path / "texts"), "--requests", "2", "--warmup", "0", *prompt)
    assert code == 0, err
    assert texts(server) == ["one", "two"]
    assert all(inputs["prompt_text"].item() == b"three two one" for inputs in server.requests)


def test_a_run_with_a_failure_is_no_success(server: DummyServer) -> None:
    server.failures = 0.25
    code, out, err = run(server, "--concurrency", "2", "--requests", "8", "--warmup", "0", "--json")
    assert code == 1
    assert err.endswith("failed: concurrency 2: 2 of 8 utterances failed: 2 INTERNAL\n")
    document = json.loads(out)
    assert document["problems"]
    assert document["levels"][0]["errors"] == {"INTERNAL": 2}
    assert document["levels"][0]["succeeded"] == 6


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("truncate", "StreamTruncated"),
        ("bare", "CosyServeClientError"),
        ("late UNAVAILABLE gone", "UNAVAILABLE"),
        ("mute", "INAUDIBLE"),
    ],
)
def test_a_stream_that_breaks_or_is_silent_is_a_failure(server: DummyServer, text: str, outcome: str) -> None:
    code, _, err = run(server, "--text", text, "--requests", "1", "--warmup", "0")
    assert code == 1
    assert err == f"failed: concurrency 1: 1 of 1 utterances failed: 1 {outcome}\n"


def test_refusals_are_counted_apart(server: DummyServer) -> None:
    code, out, err = run(server, "--text", "full 2", "--requests", "5", "--warmup", "0", "--json")
    assert code == 0, err
    (level,) = json.loads(out)["levels"]
    assert (level["refused"], level["succeeded"], level["errors"]) == (2, 3, {})


def test_a_level_in_which_all_are_refused_is_a_failure(server: DummyServer) -> None:
    code, _, err = run(server, "--text", "full 99", "--requests", "2", "--warmup", "0")
    assert code == 1
    assert err == "failed: concurrency 1: none of 2 utterances succeeded, 2 refused\n"


def test_late_chunks_are_heard(server: DummyServer) -> None:
    server.pace = 0.15  # for 0.1 s of audio
    code, out, _ = run(server, "--requests", "1", "--warmup", "0", "--json")
    (level,) = json.loads(out)["levels"]
    assert code == 0
    assert level["gapless"] == 0
    assert level["worst_gap_ms"]["p50"] > 0


async def test_an_open_loop_counts_from_the_schedule_when_the_client_is_late(server: DummyServer) -> None:
    class Stalls(Speaker):
        async def speak(self, number: int, due: float) -> Result:
            if number == 0:
                # Nothing else can run meanwhile, so utterances due by then are late.
                time.sleep(0.2)  # noqa: ASYNC251
            return await super().speak(number, due)

    async with AsyncClient(server.url) as client:
        await client.sample_rate()
        speaker = Stalls([client], Script(SpeechRequest(text=""), ["hello"], seed=0))
        done = await Open(rate=100, seed=1).run(speaker, Budget(2))
    late = done[1]
    assert late.due < 0.1
    assert late.late >= 0.2 - late.due
    assert late.playback.first_audio is not None
    assert late.playback.first_audio >= late.late + server.first_audio


def test_a_picture(server: DummyServer, tmp_path: Path) -> None:
    png = tmp_path / "bench.png"
    code, _, err = run(server, "--concurrency", "1,2", "--rate", "20", "--requests", "2", "--png", str(png))
    assert code == 0, err
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_is_refused_before_the_run(
    server: DummyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "cosyserve_client.bench.plot", raising=False)
    code, _, err = run(server, "--png", "bench.png")
    assert code == 1
    assert err == "error: plotting needs: pip install 'cosyserve[loadtest]'\n"
    assert not server.requests


@pytest.mark.parametrize(
    "arguments",
    [
        ("--concurrency", "1,0"),
        ("--concurrency", "1.5"),
        ("--rate", "-1"),
        ("--rate", "inf"),
        ("--rate", "nan"),
        ("--requests", "2", "--duration", "1"),
        ("--requests", "2", "--concurrency", "3"),
        ("--text", "a", "--texts", "b"),
    ],
)
def test_wrong_options_are_named(server: DummyServer, arguments: tuple[str, ...]) -> None:
    code, _, err = run(server, *arguments)
    assert code == 2
    assert any(f"Invalid value for {option}" in err for option in arguments if option.startswith("--"))


def test_ctrl_c_ends_a_run_and_frees_the_server(server: DummyServer) -> None:
    program = "import typer; from cosyserve_client.bench.command import bench; typer.run(bench)"
    arguments = [sys.executable, "-c", program, "--url", server.url, "--text", "slow", "--concurrency", "2"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        while server.active < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert server.cancelled.acquire(timeout=5)


def test_no_server_is_an_error() -> None:
    result = CliRunner().invoke(app, ["--url", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot reach a server: ")
