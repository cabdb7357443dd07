"""``cosyserve say``, in process and, for Ctrl-C, as a process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from dummy_server import SAMPLE_RATE, SINE, DummyServer
from typer.testing import CliRunner

from cosyserve_client.cli import say

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"
PATIENCE = 30.0
"""Seconds after which something hangs."""

app = typer.Typer()
app.command()(say)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.wav"


def test_it_writes_a_wav_and_sums_up(server: DummyServer, out: Path) -> None:
    result = CliRunner().invoke(app, ["hello", "-o", str(out), "--url", server.url])
    assert result.exit_code == 0, result.output
    samples, rate = soundfile.read(out, dtype="int16")
    assert rate == SAMPLE_RATE
    np.testing.assert_array_equal(samples, SINE)
    summary = r"(.*): 0\.50 s of audio, first audio \d+ ms, real-time factor \d+\.\d\d\n"
    match = re.fullmatch(summary, result.stdout)
    assert match
    assert match[1] == str(out)
    assert result.stderr == ""


def test_options_become_inputs(server: DummyServer, out: Path) -> None:
    arguments = ["--prompt-wav", str(TINY / "prompt.wav"), "--prompt-text", "three two one", "--instruct", "calm"]
    arguments += ["--voice", "anna", "--seed", "7", "--speed", "1.5", "--sample-rate", "8000"]
    arguments += ["--no-stream", "--timestamps"]
    result = CliRunner().invoke(app, ["hello", *arguments, "-o", str(out), "--url", server.url])
    assert result.exit_code == 0, result.output
    inputs = server.requests[0]
    samples, rate = soundfile.read(TINY / "prompt.wav", dtype="float32")
    np.testing.assert_array_equal(inputs.pop("prompt_audio"), samples)
    assert {name: array.item() for name, array in inputs.items()} == {
        "text": b"hello",
        "voice": b"anna",
        "prompt_sample_rate": rate,
        "prompt_text": b"three two one",
        "instruct": b"calm",
        "seed": 7,
        "speed": 1.5,
        "sample_rate": 8000,
        "stream": False,
        "timestamps": True,
    }


def test_a_source_goes_instead_of_a_text(server: DummyServer, out: Path) -> None:
    arguments = ["--source-wav", str(TINY / "prompt.wav"), "--voice", "anna", "-o", str(out), "--url", server.url]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    samples, rate = soundfile.read(TINY / "prompt.wav", dtype="float32")
    np.testing.assert_array_equal(server.requests[0].pop("source_audio"), samples)
    assert {name: array.item() for name, array in server.requests[0].items()} == {
        "voice": b"anna",
        "source_sample_rate": rate,
        "stream": True,
    }


def test_timestamps_print_the_words(server: DummyServer, out: Path) -> None:
    result = CliRunner().invoke(app, ["hello there", "--timestamps", "-o", str(out), "--url", server.url])
    assert result.stdout.splitlines()[:2] == ["    0.05 hello", "    0.15 there"]


def test_dashes_are_standard_input_and_raw_pcm(server: DummyServer) -> None:
    result = CliRunner().invoke(app, ["-", "-o", "-", "--url", server.url], input="from a pipe")
    assert result.exit_code == 0
    assert server.requests[0]["text"].item() == b"from a pipe"
    assert result.stdout_bytes == SINE.astype("<i2").tobytes()
    assert "real-time factor" in result.stderr


def test_input_that_is_not_utf8_is_refused(server: DummyServer) -> None:
    result = CliRunner().invoke(app, ["-", "--url", server.url], input=b"caf\xe9")
    assert result.exit_code == 1
    assert result.stderr == "error: INVALID_ARGUMENT text: standard input is not UTF-8\n"
    assert not server.calls


def test_an_error_is_one_line_and_leaves_the_file_alone(server: DummyServer, out: Path) -> None:
    out.write_bytes(b"precious")
    result = CliRunner().invoke(app, ["INVALID_ARGUMENT text: is empty", "-o", str(out), "--url", server.url])
    assert result.exit_code == 1
    assert result.stderr == "error: INVALID_ARGUMENT text: is empty\n"
    assert result.stdout == ""
    assert out.read_bytes() == b"precious"


def test_a_truncated_stream_is_an_error(server: DummyServer, out: Path) -> None:
    result = CliRunner().invoke(app, ["truncate", "-o", str(out), "--url", server.url])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the stream ended after")


def test_no_server_is_an_error(out: Path) -> None:
    result = CliRunner().invoke(app, ["hello", "-o", str(out), "--url", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot reach a server: ")
    assert result.stderr.count("\n") == 1


def test_an_unwritable_file_is_an_error_and_frees_the_server(server: DummyServer, tmp_path: Path) -> None:
    out = tmp_path / "no_such_folder" / "out.wav"
    result = CliRunner().invoke(app, ["slow", "-o", str(out), "--url", server.url])
    assert result.exit_code == 1
    assert "no_such_folder" in result.stderr
    assert server.cancelled.acquire(timeout=PATIENCE)


def test_ctrl_c_frees_the_server_and_keeps_what_was_heard(server: DummyServer, out: Path) -> None:
    program = "import typer; from cosyserve_client.cli import say; typer.run(say)"
    arguments = [sys.executable, "-c", program, "slow", "-o", str(out), "--url", server.url]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        while not out.exists() or out.stat().st_size < 10_000:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert server.cancelled.acquire(timeout=PATIENCE)
    samples, _ = soundfile.read(out, dtype="int16")
    assert len(samples) >= 2400
