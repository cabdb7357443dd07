"""Programs of the containers on a real Triton: entrypoint, probe, drain, and the server's end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from dummy_server import DummyServer
from live import PATIENCE, Live, alive, free_port, wait_until

from cosyserve.limits import READY_SECONDS
from cosyserve_client import Client, Speech, Unavailable

DOCKER = Path(__file__).parents[2] / "docker"
TEXT = "This one began before the drain, and it is spoken to its end, whatever happens to those who come too late."


@dataclass
class Container:
    """Server as the image starts it: no home, another folder, a drain file left by an earlier server."""

    process: subprocess.Popen[bytes]
    live: Live
    environ: dict[str, str]
    confined: bool

    @property
    def drain_file(self) -> Path:
        return Path(self.environ["COSYSERVE_DRAIN_FILE"])

    def drain(self, seconds: float) -> subprocess.Popen[str]:
        command = script("drain.py", "--metrics", self.live.metrics_url, "--seconds", str(seconds))
        return subprocess.Popen(command, env=self.environ, stderr=subprocess.PIPE, text=True)


def script(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(DOCKER / name), *arguments]


def probe(url: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    command = script("probe.py", "--url", url, "--seconds", str(seconds))
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE)


def environment(weights: Path, scratch: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": "/nonexistent",
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
        "TMPDIR": str(scratch),
        # The checkout may be there too, with the programs under test.
        "EXEC": "exec" if Path(sys.executable).is_relative_to("/tmp") else "noexec",
        "COSYSERVE_WEIGHTS": str(weights),
        "COSYSERVE_DRAIN_FILE": str(scratch / "draining"),
        "COSYSERVE_MAX_STREAMS": "2",
    }


CONFINED = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount --bind /tmp /tmp && mount -o remount,bind,$EXEC /tmp"
    " && mount --bind $TMPDIR $TMPDIR && mount -o remount,bind,$EXEC $TMPDIR && mount -o remount,bind,ro /"
    " && mount -t tmpfs -o size=1g tmpfs /dev/shm"
    ' && exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all "$@"',
    "sh",
)
"""Runs a command like a pod, without capabilities: it can only write to /tmp (where Triton makes a folder in spite of
TMPDIR), its scratch folder and shared memory, and cannot execute programs there."""


def can_confine() -> bool:
    """Return whether this machine allows it: it needs root, and private mounts."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def container(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    scratch = tmp_path_factory.mktemp("container")
    environ = environment(demo_weights, scratch)
    (scratch / "draining").touch()
    ports = [free_port(), free_port()]
    confined = can_confine()
    command = [*(CONFINED if confined else ()), *script("entrypoint.py"), "--host", "127.0.0.1", "--log", "-"]
    command += ["--grpc-port", str(ports[0]), "--metrics-port", str(ports[1])]
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, cwd="/", stdout=log, stderr=log)
    live = Live(f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}/metrics", demo_weights, scratch / "log")
    try:
        with Client(live.url) as client:
            # Like the startup probe: the metrics port opens only when every model is loaded.
            deadline = time.monotonic() + READY_SECONDS
            while not _answers(live.metrics_url):
                assert process.poll() is None, (scratch / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert client.ready(), (scratch / "log").read_text()
        yield Container(process, live, environ, confined)
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=PATIENCE).close()
    except urllib.error.URLError:
        return False
    return True


def test_damaged_weights_are_named_before_anything_starts(demo_weights: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(demo_weights, tmp_path / "damaged")
    path = next(path for path in sorted(damaged.iterdir()) if path.name != "manifest.json")
    path.write_bytes(path.read_bytes()[:-1])
    environ = environment(damaged, tmp_path)
    command = script("entrypoint.py")
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {path.name} differs from its checksum")
    assert ended.stderr.count("\n") == 1


def test_the_probe_passes_while_the_server_speaks(container: Container) -> None:
    ended = probe(container.live.url)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_it_needs_no_capability_and_no_writable_root(container: Container) -> None:
    if not container.confined:
        pytest.skip("this machine lets nobody make mounts of their own")
    process = Path(f"/proc/{container.process.pid}")
    assert re.search(r"^CapEff:\s+0+$", (process / "status").read_text(), re.M)
    assert re.search(r"^NoNewPrivs:\s+1$", (process / "status").read_text(), re.M)
    root = [line.split() for line in (process / "mounts").read_text().splitlines() if line.split()[1] == "/"]
    assert root[-1][3].split(",")[0] == "ro"


def test_the_probe_passes_when_the_server_is_full(container: Container) -> None:
    with Client(container.live.url) as client:
        streams = [client.stream(TEXT, seed=seed) for seed in range(2)]
        for stream in streams:
            next(stream)
        assert probe(container.live.url).returncode == 0
        for stream in streams:
            stream.close()
    container.live.wait_idle()


def test_the_probe_fails_when_an_answer_takes_too_long() -> None:
    with DummyServer(first_audio=PATIENCE) as hanging:
        ended = probe(hanging.url, seconds=1)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: DEADLINE_EXCEEDED")


def test_the_probe_fails_without_a_server() -> None:
    ended = probe(f"127.0.0.1:{free_port()}")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: cannot reach a server")


def test_a_drain_that_runs_out_of_time_says_so(container: Container) -> None:
    with Client(container.live.url) as client, client.stream(TEXT, seed=3) as stream:
        next(stream)
        drain = container.drain(seconds=0.1)
        _, errors = drain.communicate(timeout=PATIENCE)
        assert (drain.returncode, errors) == (1, "error: utterances still run after 0.1 s\n")
        container.drain_file.unlink()
    container.live.wait_idle()


def test_a_drain_lets_the_running_finish_and_refuses_the_new_and_sigterm_ends_it(container: Container) -> None:
    with Client(container.live.url, stream_timeout=120) as client:
        whole = client.synthesize(TEXT, seed=1).pcm
        with client.session(seed=1) as session:
            session.push(TEXT)
            session.end()
            written = Speech.join(list(session)).pcm
        with client.session(seed=1) as session:
            chunks = [next(running := client.stream(TEXT, seed=1))]
            session.push(TEXT)
            drain = container.drain(seconds=120)
            wait_until(container.drain_file.exists, lambda: "no drain")
            with pytest.raises(Unavailable, match="about to stop"):
                client.synthesize("Too late.")
            assert probe(container.live.url).returncode == 0
            assert drain.poll() is None
            chunks += running
            session.end()
            spoken = list(session)
        drain.communicate(timeout=PATIENCE)
        assert drain.returncode == 0
    np.testing.assert_array_equal(Speech.join(chunks).pcm, whole)
    np.testing.assert_array_equal(Speech.join(spoken).pcm, written)
    below = psutil.Process(container.process.pid).children(recursive=True)
    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(timeout=PATIENCE) == 128 + signal.SIGINT
    assert alive(below) == []
