"""Measure streaming on this machine: recomputation, cost of late chunks, long text, orchestration, memory.

    python loadtest/lab/measure.py --weights .cache/demo-weights

Most figures are ratios of two measurements of this run, so they are comparable between machines.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from cosyserve.flow.networks import FlowNetworks
from cosyserve.flow.stream import FlowStream, FlowVoice
from cosyserve.hift.stream import HiftNetworks, HiftStream
from cosyserve.load.flow import load_flow_networks
from cosyserve.load.hift import load_hift_networks
from cosyserve.metrics import COMPUTE
from cosyserve.serve import Server, free_port
from cosyserve.settings import Settings
from cosyserve.voices import VoiceStore
from cosyserve.weights import VOICES_FOLDER, Weights
from cosyserve_client import Client

SENTENCE = "The small boat drifted slowly across the quiet lake. "
HOP = 25  # tokens: one chunk of the model, so that all chunks are equal


@dataclass(frozen=True)
class Model:
    """Networks and first voice of a weights folder, loaded in this process."""

    flow: FlowNetworks
    hift: HiftNetworks
    voice: FlowVoice

    @classmethod
    def load(cls, folder: Path) -> Model:
        settings = Settings(weights=str(folder), threads=2)
        return cls(load_flow_networks(settings), load_hift_networks(settings), first_voice(folder))

    def chunk_seconds(self, tokens: int) -> tuple[list[float], float]:
        """Measure seconds of each equal chunk of a segment, and frames computed / frames needed."""
        speech = np.random.default_rng(0).integers(0, self.flow.config.tokens, tokens).astype(np.int32)
        flow, hift = FlowStream(self.flow, self.voice), HiftStream(self.hift, seed=0)
        prompt, ahead = len(self.voice.tokens), self.flow.config.lookahead
        first = -(-(prompt + HOP) // self.flow.config.chunk) * self.flow.config.chunk - prompt
        bounds = [0, *(end + ahead for end in range(first, tokens - ahead, HOP)), tokens]
        seconds = []
        for start, stop in itertools.pairwise(bounds):
            began = time.perf_counter()
            mel = flow.step(speech[start:stop], final=stop == tokens)
            hift.step(mel, final=stop == tokens)
            seconds.append(time.perf_counter() - began)
        needed = self.flow.config.ratio * (prompt + tokens)
        return seconds, flow.frames / needed


def first_voice(folder: Path) -> FlowVoice:
    """Load the first voice of a weights folder."""
    store = VoiceStore(folder / VOICES_FOLDER)
    stored = store.get(store.list()[0])
    return FlowVoice(stored.flow_prompt_tokens, stored.prompt_mel, stored.speaker_embedding)


def late_chunks(model: Model, runs: int) -> None:
    """Measure the time of the last full chunk / of the second, in a segment of 10 s with equal chunks."""
    ratios = []
    tokens = 10 * 25
    for _ in range(runs):
        seconds, recomputed = model.chunk_seconds(tokens)
        # The very last call has the remaining tokens and held-back frames, so it is not an equal chunk.
        ratios.append(seconds[-2] / seconds[1])
    print(f"flow frames computed / needed: {recomputed:.3f}")
    print(f"chunk times, ms: {' '.join(f'{1000 * s:.0f}' for s in seconds)}")
    print(f"last chunk / second chunk of a 10 s segment: {statistics.median(ratios):.2f} (median of {runs})")


def speak(client: Client, text: str, seed: int) -> tuple[float, float, list[float]]:
    """Speak a text; return seconds of audio, seconds of work, and arrival times of the chunks."""
    began, samples, arrivals = time.perf_counter(), 0, []
    for chunk in client.stream(text, seed=seed):
        if len(chunk.pcm):
            arrivals.append(time.perf_counter() - began)
            samples += len(chunk.pcm)
    return samples / client.sample_rate(), time.perf_counter() - began, arrivals


def long_text(client: Client, runs: int) -> None:
    """Measure the real-time factor of about 60 s of text / of about 10 s."""
    audio, _, _ = speak(client, SENTENCE, seed=1)
    factors: dict[int, list[float]] = {10: [], 60: []}
    for target, measured in factors.items():
        text = SENTENCE * max(1, round(target / audio))
        for run in range(runs):
            seconds, work, arrivals = speak(client, text, seed=run)
            measured.append(work / seconds)
            print(
                f"{target} s of text: {seconds:.1f} s of audio, first audio {1000 * arrivals[0]:.0f} ms, "
                f"real-time factor {work / seconds:.3f}"
            )
    ratio = statistics.median(factors[60]) / statistics.median(factors[10])
    print(f"real-time factor of 60 s / of 10 s: {ratio:.2f} (medians of {runs})")


def compute_seconds(metrics_url: str) -> float:
    """Read the compute seconds of `flow` and `hift` so far."""
    text = urllib.request.urlopen(metrics_url, timeout=5).read().decode()
    return sum(map(float, re.findall(rf'^{COMPUTE.name}{{model="(?:flow|hift)"}} (\S+)', text, re.M)))


def overhead(client: Client, metrics_url: str, runs: int) -> None:
    """Measure the time between equal chunks at the client, minus the compute time of flow and hift.

    It is the difference of a long and a short utterance, in which the first chunk cancels out.
    """
    spent = []
    for run in range(runs):
        rests, counts = [], []
        for sentences in (1, 8):
            before = compute_seconds(metrics_url)
            _, _, arrivals = speak(client, SENTENCE * sentences, seed=run)
            networks = compute_seconds(metrics_url) - before
            rests.append(arrivals[-1] - arrivals[0] - networks)
            counts.append(len(arrivals))
        spent.append((rests[1] - rests[0]) / (counts[1] - counts[0]))
        print(f"{counts[1]} chunks: {1000 * spent[-1]:.1f} ms a chunk outside flow and hift")
    print(f"orchestration: {1000 * statistics.median(spent):.1f} ms a chunk (median of {runs})")


def memory(server: psutil.Process) -> None:
    """Print the peak resident memory of every process of the server."""
    for process in [server, *server.children(recursive=True)]:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        print(f"peak memory of {model_name(process)}: {int(peak) / 1024:.0f} MiB")


def model_name(process: psutil.Process) -> str:
    """Return the name of the Triton model that a process of the server runs."""
    return next((word.split("/")[-3] for word in process.cmdline() if word.endswith("model.py")), "tritonserver")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if Weights(options.weights).random:
        print("random weights")
    late_chunks(Model.load(options.weights), options.runs)
    for hops in ({}, {"first_hop": str(HOP), "max_hop": str(HOP)}):
        with tempfile.NamedTemporaryFile(suffix=".log") as log:
            server = Server(
                options.weights, grpc_port=free_port(), metrics_port=free_port(), settings=hops, log=Path(log.name)
            )
            with server.running() as process, Client(f"{server.host}:{server.grpc_port}") as client:
                if hops:
                    overhead(client, f"http://{server.host}:{server.metrics_port}/metrics", options.runs)
                else:
                    long_text(client, options.runs)
                    memory(psutil.Process(process.pid))


if __name__ == "__main__":
    main()
