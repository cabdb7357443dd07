"""``cosyserve bench`` against the real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from live import Live

from cosyserve.repository import served
from cosyserve.weights import Weights


def test_bench_measures_a_real_server(server: Live) -> None:
    command = [str(Path(sys.executable).with_name("cosyserve")), "bench", "--url", server.url]
    command += ["--concurrency", "1,2", "--requests", "2", "--text", "Hello there.", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["server"]["name"] == "triton"
    assert set(document["server"]["models"]) == {model.name for model in served(Weights(server.weights).config)}
    assert [(level["concurrency"], level["succeeded"]) for level in document["levels"]] == [(1, 2), (2, 2)]
    for level in document["levels"]:
        assert 0 < level["first_audio_ms"]["p50"] <= level["first_audible_ms"]["p50"]
        assert level["real_time_factor"]["p50"] > 0
        assert level["audio_seconds_per_second"] > 0
    server.wait_idle()
