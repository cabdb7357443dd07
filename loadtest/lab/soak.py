"""Soak test: many short utterances, a third of them cancelled at random times; memory must not grow or leak.

    python loadtest/lab/soak.py --weights .cache/demo-weights

The exit code is 1 if an utterance fails, a process grows, a gauge does not return to zero, the same seed gives other
samples at the end than at the beginning, or the server leaves shared memory.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from measure import model_name
from rich.progress import track

from cosyserve.metrics import ACTIVE_STREAMS, FLOW_SEQUENCES, HIFT_SEQUENCES, LLM_SEQUENCES
from cosyserve.serve import Server, free_port
from cosyserve_client import AsyncClient

TEXTS = ("Good morning.", "It is what it was.", "He waited.", "今天天气真不错。")
GAUGES = (ACTIVE_STREAMS, LLM_SEQUENCES, FLOW_SEQUENCES, HIFT_SEQUENCES)
GROWTH = 2.0  # KiB per utterance: 4 MiB over 2,000, which is noise of allocators


@dataclass
class Memory:
    """Samples of the private memory of every process of the server."""

    server: psutil.Process
    utterances: list[int] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def sample(self, done: int) -> None:
        """Record unique set sizes after `done` utterances."""
        self.utterances.append(done)
        for process in [self.server, *self.server.children(recursive=True)]:
            used = process.memory_full_info().uss / 1024
            self.samples.setdefault(model_name(process), []).append(used)

    def slopes(self) -> dict[str, float]:
        """Fit KiB per utterance of each process over the second half, when caches and pools are full."""
        half = len(self.utterances) // 2
        return {
            name: float(np.polyfit(self.utterances[half:], values[half:], 1)[0])
            for name, values in self.samples.items()
        }

    def growing(self) -> dict[str, float]:
        """Return the slopes of processes whose last sample exceeds all of the first half.

        A slope alone may come from pages that the kernel took from an idle process and gave back.
        """
        half = len(self.utterances) // 2
        return {
            name: slope
            for name, slope in self.slopes().items()
            if slope > GROWTH and self.samples[name][-1] > max(self.samples[name][:half])
        }


@dataclass
class Soak:
    """Utterances on one server."""

    client: AsyncClient
    chance: random.Random
    cut: int = 0
    errors: list[str] = field(default_factory=list)

    async def utter(self, seed: int) -> None:
        """Speak one text; cancel one in three at a random time."""
        text = self.chance.choice(TEXTS)
        leave = self.chance.uniform(0, 1.5) if self.chance.random() < 1 / 3 else None
        try:
            async with asyncio.timeout(leave):
                async with self.client.stream(text, seed=seed) as chunks:
                    async for _ in chunks:
                        pass
        except TimeoutError:
            self.cut += 1
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    async def reference(self) -> bytes:
        """Return the samples of a fixed text and seed."""
        return (await self.client.synthesize(TEXTS[0], seed=7)).pcm.tobytes()


async def soak(server: Server, process: psutil.Process, utterances: int, at_once: int) -> list[str]:
    """Run all utterances, and return the failures."""
    memory = Memory(process)
    async with AsyncClient(f"{server.host}:{server.grpc_port}") as client:
        run = Soak(client, random.Random(0))
        before = await run.reference()
        rounds = utterances // at_once
        for index in track(range(rounds), description="utterances", disable=not sys.stderr.isatty()):
            await asyncio.gather(*(run.utter(index * at_once + i) for i in range(at_once)))
            if index % max(1, rounds // 40) == 0:
                memory.sample(index * at_once)
        wrong = [] if await run.reference() == before else ["the same seed gives other samples than before"]
    left = await _gauges(server)
    slopes = memory.slopes()
    print(f"{utterances} utterances, {run.cut} cancelled, {len(run.errors)} failed")
    for name, slope in slopes.items():
        first, last = memory.samples[name][0] / 1024, memory.samples[name][-1] / 1024
        print(f"memory of {name}: {first:.1f} to {last:.1f} MiB, {slope:+.2f} KiB per utterance in the second half")
    print("gauges: " + ", ".join(f"{name} {value:g}" for name, value in left.items()))
    wrong += run.errors[:5]
    wrong += [f"{name} grows by {slope:.2f} KiB per utterance" for name, slope in memory.growing().items()]
    wrong += [f"gauge {name} is {value:g}" for name, value in left.items() if value]
    return wrong


def read_metrics(url: str, seconds: float) -> dict[str, float]:
    """Read a server's metrics by name, summed over labels.

    Args:
        seconds: maximum wait for the answer.
    """
    with urllib.request.urlopen(url, timeout=seconds) as page:
        text = page.read().decode()
    values: dict[str, float] = defaultdict(float)
    for name, value in re.findall(r"^(\w+)(?:{.*})? (\S+)$", text, re.M):
        values[name] += float(value)
    return values


async def _gauges(server: Server) -> dict[str, float]:
    """Read the gauges after they have stopped falling."""
    url = f"http://{server.host}:{server.metrics_port}/metrics"
    deadline = time.monotonic() + 10
    while True:
        found = await asyncio.to_thread(read_metrics, url, 5)
        values = {gauge.name: found[gauge.name] for gauge in GAUGES}
        if not any(values.values()) or time.monotonic() > deadline:
            return values
        await asyncio.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--utterances", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=8)
    options = parser.parse_args()
    shared = set(Path("/dev/shm").iterdir())
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        server = Server(options.weights, grpc_port=free_port(), metrics_port=free_port(), log=Path(log.name))
        with server.running() as process:
            wrong = asyncio.run(soak(server, psutil.Process(process.pid), options.utterances, options.at_once))
    left = sorted(path.name for path in set(Path("/dev/shm").iterdir()) - shared)
    wrong += [f"left in shared memory: {', '.join(left)}"] if left else []
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
