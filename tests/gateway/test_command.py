"""The command: settings from options and the environment, metrics, and a shutdown that waits for running utterances."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx2
from dummy_server import SINE, DummyServer
from gateways import Gateway
from live import PATIENCE, wait_until

from cosyserve.serve import free_port

COMMAND = [sys.executable, "-m", "cosyserve_gateway"]


def test_settings_come_from_the_environment_and_the_end_waits_for_listeners() -> None:
    port = free_port()
    environ = {
        "COSYSERVE_GATEWAY_PORT": str(port),
        "COSYSERVE_GATEWAY_API_KEY": "one two",
        "COSYSERVE_GATEWAY_STREAMS_PER_CLIENT": "1",
    }
    with DummyServer(pace=0.3) as dummy:
        command = [*COMMAND, "--url", dummy.url]
        with subprocess.Popen(command, env=os.environ | environ, stdout=subprocess.PIPE, text=True) as process:
            gateway = Gateway(f"http://127.0.0.1:{port}")
            gateway.wait_ready()
            assert gateway.post().status_code == 401
            heard: list[bytes] = []
            key = {"authorization": "Bearer two"}
            listener = threading.Thread(target=lambda: heard.append(gateway.post(key).content))
            listener.start()
            wait_until(lambda: dummy.active == 1, lambda: "it does not begin")
            assert gateway.post(key).status_code == 429
            process.send_signal(signal.SIGTERM)
            listener.join(PATIENCE)
            assert heard == [SINE.tobytes()]
            out, _ = process.communicate(timeout=PATIENCE)
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[0]["event"] == "ready"
    assert lines[0]["url"] == gateway.url
    assert [line["status"] for line in lines if line.get("route") == "/v1/audio/speech"] == [429, 200]
    assert {line["client"] for line in lines if line.get("route") == "/v1/audio/speech"} == {"key-3fc4ccfe"}


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [*COMMAND, "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert ended.returncode == 3  # uvicorn's exit code when it cannot start
    assert "address already in use" in ended.stdout


def test_metrics(before_dummy: Gateway) -> None:
    def values() -> dict[str, float]:
        names = (
            'requests_total{route="/v1/audio/speech",status="200"}',
            'requests_total{route="/v1/audio/speech",status="400"}',
            'utterances_total{outcome="complete"}',
            "first_audio_seconds_count",
            "audio_seconds_total",
        )
        return {name: before_dummy.metric(f"cosyserve_gateway_{name}") for name in names}

    before = values()
    assert before_dummy.post().is_success
    assert before_dummy.post(speed="fast").status_code == 400
    counted = [round(now - then, 3) for now, then in zip(values().values(), before.values(), strict=True)]
    assert counted == [1, 1, 1, 1, 0.5]
    assert httpx2.get(f"{before_dummy.url}/metrics").headers["content-type"].startswith("text/plain; version=")
