"""Running server for tests."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from cosyserve.metrics import ACTIVE_STREAMS, FLOW_SEQUENCES, HIFT_SEQUENCES, LLM_SEQUENCES, Metric
from cosyserve.serve import Server, free_port
from cosyserve.tritonserver import fetch, locate

PATIENCE = 30.0
"""Maximum seconds for what takes a fraction of a second on idle cores."""

GAUGES = (ACTIVE_STREAMS, LLM_SEQUENCES, FLOW_SEQUENCES, HIFT_SEQUENCES)


@dataclass(frozen=True)
class Live:
    """Addresses of a running server, with its metrics and log."""

    url: str
    metrics_url: str
    weights: Path
    log: Path

    def metric(self, metric: Metric, **labels: str) -> float:
        """The value of a metric, which must be there: summed over labels that are not given; a histogram's count."""
        name = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        found = [value for series, has, value in self._series() if series == name and wanted <= has]
        assert found, f"no {name} with {labels}"
        return sum(found)

    def held(self) -> dict[str, float]:
        """Read what each stage holds for utterances in progress."""
        series = self._series()
        return {gauge.name: sum(value for name, _, value in series if name == gauge.name) for gauge in GAUGES}

    def logged(self, **fields: object) -> list[dict[str, Any]]:
        """The lines of JSON in the log with these fields, once there are any."""

        def found() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in self.log.read_text("utf-8").splitlines() if line.startswith("{")]
            return [line for line in lines if fields.items() <= line.items()]

        wait_until(lambda: bool(found()), lambda: f"no line in the log has {fields}")
        return found()

    def wait_idle(self) -> None:
        """Wait until no stage holds anything."""
        wait_until(lambda: not any(self.held().values()), lambda: f"still held: {self.held()}")

    def _series(self) -> list[tuple[str, set[str], float]]:
        """Name, labels and value of each of ours."""
        with urllib.request.urlopen(self.metrics_url, timeout=PATIENCE) as page:
            lines = page.read().decode().splitlines()
        found = []
        for series, value in (line.split() for line in lines if line.startswith("cosyserve_")):
            name, _, labels = series.rstrip("}").partition("{")
            found.append((name, set(labels.split(",")), float(value)))
        return found


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """List running processes; zombies do not count."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextmanager
def running(weights: Path, log: Path, **settings: str) -> Iterator[Live]:
    """A server on free ports."""
    server = Server(weights, grpc_port=free_port(), metrics_port=free_port(), settings=settings, log=log)
    with server.running():
        yield Live(f"127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.metrics_port}/metrics", weights, log)


@contextmanager
def bare_triton(folder: Path, *flags: str, **environ: str) -> Iterator[str]:
    """The address of a tritonserver that serves ``folder/models`` without the launcher, once it is ready."""
    triton, port, scratch, log = locate() or fetch(print), free_port(), folder / "lib", folder / "log"
    scratch.mkdir()
    own = [f"--model-repository={folder / 'models'}", f"--grpc-port={port}", "--allow-http=false"]
    command = triton.arguments([*own, "--allow-metrics=false", *flags])
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**triton.environ(scratch), **environ}, stdout=file, stderr=file)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with InferenceServerClient(f"127.0.0.1:{port}") as client:
                return bool(client.is_server_ready())
        except InferenceServerException:
            return False

    try:
        wait_until(ready, log.read_text)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def wait_until(condition: Callable[[], bool], report: Callable[[], str]) -> None:
    """Wait until `condition` is true; fail with `report` if it is not in time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, report()
        time.sleep(0.01)
