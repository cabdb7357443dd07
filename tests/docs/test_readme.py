"""Every command of the README runs as it is written there, but on free ports."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from readme_commands import COMMANDS, README, ROOT, TINY, environment, run

from cosyserve.cli import app
from cosyserve.serve import free_port

PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)

ELSEWHERE = {
    "make test": "this test is part of it",
    "make check": "`make test` starts with it",
}
URL = "127.0.0.1:8001"
INSTALL = re.compile(r"pip install -e '\.\[(.*)\]'")


@dataclass(frozen=True)
class Served:
    """The README's server, in the folder of its user."""

    folder: Path
    grpc_port: int
    metrics_port: int

    def there(self, text: str) -> str:
        """Return a command or code of the README, changed only in the server's address."""
        url = f"127.0.0.1:{self.grpc_port}"
        text = re.sub(r"^cosyserve (say|bench|voice \w+)", rf"\g<0> --url {url}", text)
        ports = f"--grpc-port {self.grpc_port} --metrics-port {self.metrics_port}"
        text = re.sub("^cosyserve serve", rf"\g<0> {ports}", text)
        return re.sub("^locust", rf"\g<0> --host {url}", text).replace(URL, url)

    def run(self, command: str) -> str:
        """Run a command in that folder, and return its output."""
        return run(self.there(command), self.folder)


def seconds(path: Path, rate: int = 24_000) -> float:
    with wave.open(str(path)) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (rate, 1, 2)
        return wav.getnframes() / wav.getframerate()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a user after the download: the bundle, and a recording of their voice."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(TINY / "bundle", folder / "CosyVoice2-0.5B")
    shutil.copy(TINY / "prompt.wav", folder / "me.wav")
    return folder


@pytest.fixture(scope="module")
def served(desk: Path) -> Iterator[Served]:
    """The README's `prepare` and `serve`, up to the ready line."""
    pytest.importorskip("torch", reason="torch is not installed")
    prepare = next(c for c in COMMANDS if c.startswith("cosyserve-build prepare"))
    (serve,) = (c for c in COMMANDS if c.startswith("cosyserve serve"))
    run(prepare, desk)
    here = Served(desk, free_port(), free_port())
    command = here.there(serve).split()
    process = subprocess.Popen(command, cwd=desk, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith(f"ready: gRPC on 127.0.0.1:{here.grpc_port}")
        yield here
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        process.stdout.close()


def test_make_demo_writes_a_wave_file_and_says_what_is_heard_in_it() -> None:
    (ROOT / "demo.wav").unlink(missing_ok=True)
    done = subprocess.run(["make", "demo"], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "a recogniser heard: hello how are you today" in done.stdout
    assert re.search(r"demo\.wav: [\d.]+ s of audio, first audio \d+ ms, real-time factor [\d.]+", done.stdout)
    assert seconds(ROOT / "demo.wav") > 1


def test_the_servers_default_ports_are_those_that_the_readme_names() -> None:
    """They are also the defaults of the commands and the code of the README."""
    assert f"gRPC on {URL}, Prometheus metrics on 127.0.0.1:8002." in README
    group: Any = typer.main.get_command(app)
    defaults = {option.name: option.default for option in group.commands["serve"].params}
    assert f"127.0.0.1:{defaults['grpc_port']}" == URL
    assert defaults["metrics_port"] == 8002
    voice = group.commands["voice"].commands
    for command in (group.commands["say"], group.commands["bench"], *(voice[name] for name in ("add", "list", "rm"))):
        assert {option.default for option in command.params if option.name == "url"} == {URL}, command.name
    # Read, because Locust patches the interpreter when it is imported.
    assert f'    host = "{URL}"' in (ROOT / "loadtest" / "voice_users.py").read_text("utf-8")


def test_say_and_voice_in_the_order_of_the_readme(served: Served) -> None:
    for command in (c for c in COMMANDS if c.startswith(("cosyserve say", "cosyserve voice"))):
        printed = served.run(command)
        if found := re.search(r" -o (\S+)", command):
            rate = re.search(r"--sample-rate (\d+)", command)
            assert seconds(served.folder / found[1], int(rate[1]) if rate else 24_000) > 0.5
        if command == "cosyserve voice list":
            assert "anna" in printed


def test_bench(served: Served) -> None:
    (bench,) = (c for c in COMMANDS if c.startswith("cosyserve bench"))
    served.run(bench)
    levels = json.loads((served.folder / "bench.json").read_text())["levels"]
    assert [level["succeeded"] for level in levels] == [8, 8, 8]
    assert (served.folder / "bench.png").stat().st_size


def test_locust(served: Served) -> None:
    (locust,) = (c for c in COMMANDS if c.startswith("locust"))
    run(served.there(locust), ROOT)


@pytest.mark.parametrize("code", PYTHON)
def test_python(served: Served, code: str) -> None:
    printed = served.run(f"{sys.executable} - <<'END'\n{code}END").splitlines()
    offsets = [int(line.split()[0]) for line in printed]
    assert len(offsets) > 2
    assert offsets == sorted(offsets)


def test_the_environment_is_made_and_entered(tmp_path: Path) -> None:
    (command,) = (c for c in COMMANDS if c.startswith("python3 -m venv"))
    entered = run(f"{command} && command -v python", tmp_path)
    assert entered.strip() == str(tmp_path / ".venv" / "bin" / "python")


def test_the_download_is_understood_as_far_as_the_network() -> None:
    (command,) = (c for c in COMMANDS if c.startswith("hf "))
    environ = {**environment(), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, shell=True, env=environ, capture_output=True, text=True, timeout=60)
    assert "offline mode is enabled" in done.stderr
    assert "Usage:" not in done.stderr


def test_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = [extra for c in COMMANDS if (m := INSTALL.fullmatch(c)) for extra in m[1].split(",")]
    assert named
    assert set(named) <= set(extras)


def test_every_command_is_run_somewhere() -> None:
    here = ("make demo", "cosyserve-build prepare", "cosyserve serve", "cosyserve say", "cosyserve voice")
    here += ("cosyserve-build verify", "cosyserve bench", "locust", "hf download", "python3 -m venv")
    left = [c for c in COMMANDS if not c.startswith(here) and not INSTALL.fullmatch(c)]
    assert set(left) == set(ELSEWHERE)


def test_ci_runs_what_the_readme_says() -> None:
    assert "make test" in COMMANDS
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_links_to_files_resolve() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
