"""Locust as a process, against a dummy server with the real protocol."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from dummy_server import DummyServer

ROOT = Path(__file__).parents[2]


def locust(server: DummyServer, *arguments: str) -> tuple[int, str]:
    """Run Locust; return its exit code and output."""
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--host", server.url]
    command += ["--spawn-rate", "100", "--run-time", "2s", "--only-summary", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return done.returncode, done.stdout


def test_users_speak_at_the_same_time_and_pass() -> None:
    with DummyServer(first_audio=0.3, pace=0.05) as server:
        options = ("--text", "Nothing but this.", "--max-p95-first-audio", "60000", "--min-gapless", "0.1")
        code, out = locust(server, "--users", "8", *options)
    assert code == 0, out
    assert server.most_active == 8
    for kind in ("KnownVoice", "ClonedVoice", "LongText", "TextIn", "BargeIn"):
        assert re.search(rf"{kind} +utterance", out)
    spoken = [set(inputs) for inputs in server.requests]
    assert {"text"} in spoken
    assert {"text", "prompt_audio", "prompt_sample_rate"} in spoken
    written = [inputs["text"][0] for inputs in server.requests if "text" in inputs]
    assert {b"Nothing ", b"but ", b"this. "} <= set(written)
    prompts = [inputs["prompt_audio"].tobytes() for inputs in server.requests if "prompt_audio" in inputs]
    assert len(set(prompts)) == len(prompts) > 2


@pytest.mark.parametrize(
    ("server", "threshold", "miss"),
    [
        ({"first_audio": 0.2}, ("--max-p95-first-audio", "100"), "KnownVoice: first audio p95"),
        ({"pace": 0.15}, ("--min-gapless", "0.9"), "KnownVoice: 0.0% of the streams gapless, at least 90.0%"),
        ({"failures": 0.5}, ("--max-errors", "0.1"), "of the utterances failed, at most 10.0%"),
        ({"failures": 1.0}, ("--max-errors", "1"), "KnownVoice: no audio at all"),
        ({"first_audio": 60.0}, (), "KnownVoice: no audio at all"),
    ],
)
def test_a_missed_threshold_fails(server: dict[str, float], threshold: tuple[str, ...], miss: str) -> None:
    with DummyServer(**server) as running:
        code, out = locust(running, "--users", "2", *threshold, "KnownVoice")
    assert code == 1
    assert miss in out


def test_refused_users_are_counted_apart() -> None:
    with DummyServer() as server:
        code, out = locust(server, "--users", "1", "--text", "full 3", "KnownVoice")
    assert code == 0, out
    assert "KnownVoice  refused" in out


def test_a_barge_in_frees_the_server() -> None:
    with DummyServer() as server:
        code, out = locust(server, "--users", "2", "--text", "slow ", "BargeIn")
        assert code == 0, out
        assert server.cancelled.acquire(timeout=5)
        assert len(server.requests) > 2
