"""Report on the GPU runtimes of this machine: correctness, time of each network, profile, and load tests on Triton.

    python loadtest/gpu_report.py --out report            # CosyVoice 2 and 3, full size, random weights, on the GPU
    python loadtest/gpu_report.py --out report --runtimes torch,tensorrt
    python loadtest/gpu_report.py --out report --size tiny --device cpu

Writes ``report.md`` and ``report.json``, without network access. A part that cannot run here is skipped, and the report
has the reason; the exit code is 1 if a part fails. Not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile

from cosyserve.errors import CosyServeError
from cosyserve.flow.networks import SolveJob
from cosyserve.flow.stream import FlowStream, FlowVoice
from cosyserve.hift.stream import HiftNetworks, HiftStream
from cosyserve.runtimes.registry import PRECISIONS
from cosyserve.runtimes.torch.flow import TorchFlow, load_flow
from cosyserve.runtimes.torch.hift import load_hift
from cosyserve.runtimes.torch.llm import TorchDecoder, load_decoder
from cosyserve.serve import Server, free_port
from cosyserve.settings import Settings
from cosyserve.voices import VoiceStore
from cosyserve.weights import VOICES_FOLDER, Weights

Row = dict[str, Any]
Float = NDArray[np.float32]
SPEECH = 100  # tokens of the comparison: 4 s
CHUNKS = 12  # chunks in the KV cache of a timed solver call: about a long sentence and its prompt
POSITIONS = 200  # positions in the KV cache of a timed LLM step
WINDOW = 96  # mel frames in a timed call of the vocoder
KERNELS = 12  # rows of the profile
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
FAILED = "failed"
SUMMARY = "Summary"
HEARD = "what listeners hear"


@dataclass(frozen=True)
class Networks:
    """The three networks of a weights folder for given settings, each loaded on first access."""

    settings: Settings

    @cached_property
    def weights(self) -> Weights:
        return Weights(self.settings.folder)

    @cached_property
    def flow(self) -> TorchFlow:
        return load_flow(self.weights, self.settings)

    @cached_property
    def hift(self) -> HiftNetworks:
        return load_hift(self.weights, self.settings)

    @cached_property
    def llm(self) -> TorchDecoder:
        return load_decoder(self.weights, self.settings)

    @cached_property
    def voice(self) -> FlowVoice:
        store = VoiceStore(self.weights.folder / VOICES_FOLDER)
        first = store.get(store.list()[0])
        return FlowVoice(first.flow_prompt_tokens, first.prompt_mel, first.speaker_embedding)

    def mel(self) -> Float:
        tokens = np.random.default_rng(0).integers(0, self.flow.config.tokens, SPEECH).astype(np.int32)
        return FlowStream(self.flow, self.voice).step(tokens, final=True)

    def audio(self, mel: Float) -> Float:
        return HiftStream(self.hift, seed=0).step(mel, final=True)

    def logits(self) -> Float:
        config = self.weights.config.llm
        ids = config.vocab + np.random.default_rng(0).integers(0, config.speech_tokens, 40)
        found = [self.llm.prefill(0, 0, ids[:30]).row(0)]
        found += [self.llm.step(ids[at : at + 1], np.asarray([at])).row(0) for at in range(30, 40)]
        return np.stack(found)


def errors(found: Networks, expected: Networks) -> Iterator[Row]:
    """Compute relative differences from the CPU in float32 (Euclidean norms)."""
    mel = expected.mel()
    pairs = (
        ("flow: mel", found.mel(), mel),
        ("hift: audio", found.audio(mel), expected.audio(mel)),
        ("llm: logits", found.logits(), expected.logits()),
    )
    for name, value, reference in pairs:
        difference = np.linalg.norm(value - reference) / np.linalg.norm(reference)
        yield {"output": name, "relative error": float(difference), "finite": bool(np.isfinite(value).all())}


def calls(networks: Networks, streams: int) -> dict[str, Callable[[], object]]:
    """Make one call of each network for this many streams; all end with a copy to the host."""
    flow, hift, llm = networks.flow, networks.hift, networks.llm
    random = np.random.default_rng(0)
    chunk = random.standard_normal((flow.config.mels, flow.config.frame_chunk), dtype=np.float32)
    jobs = [SolveJob(flow.open(), chunk, chunk, networks.voice.embedding, chunk) for _ in range(streams)]
    for _ in range(CHUNKS):
        flow.solve(jobs)

    def solve() -> None:
        late = [SolveJob(job.cache.fork(), chunk, chunk, job.embedding, chunk) for job in jobs]
        flow.solve(late)

    config, frame = networks.weights.config, networks.weights.config.hift.frame
    ids, lengths = np.full(streams, config.llm.vocab), np.full(streams, POSITIONS)
    mel = random.standard_normal((streams, config.hift.mels, WINDOW), dtype=np.float32)
    source = 0.1 * random.standard_normal((streams, 1, WINDOW * frame), dtype=np.float32)
    return {
        f"flow solve, chunk {CHUNKS + 1}": solve,
        "hift f0": lambda: hift.f0({"mel": mel}),
        f"hift decoder, {WINDOW} frames": lambda: hift.decoder({"mel": mel, "source": source}),
        "llm step": lambda: llm.step(ids, lengths).top(config.llm.top_k, np.zeros(streams, np.bool_)),
    }


def times(networks: Networks, streams: Sequence[int], runs: int) -> Iterator[Row]:
    """Measure median milliseconds of each call, by number of streams."""
    measured: dict[str, Row] = {}
    for count in streams:
        for name, call in calls(networks, count).items():
            measured.setdefault(name, {"call": name})[f"{count} streams, ms"] = _milliseconds(call, runs)
    yield from measured.values()


def kernels(networks: Networks, streams: int) -> Iterator[Row]:
    """Profile the device time of each call."""
    on_gpu = networks.settings.device == "cuda"
    for name, call in calls(networks, streams).items():
        call()
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as recorded:
            call()
        if on_gpu:
            waits = sum(event.count for event in recorded.key_averages() if event.key in WAITS)
            yield {"call": name, "kernel": "(waits of the host)", "launches": waits, "ms": 0.0, "share": ""}
        spent = {
            event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
            for event in recorded.key_averages()
        }
        total = sum(microseconds for microseconds, _ in spent.values()) or 1
        for kernel, (microseconds, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:KERNELS]:
            share = f"{microseconds / total:.0%}"
            yield {"call": name, "kernel": kernel[:80], "launches": count, "ms": microseconds / 1000, "share": share}


def heard(settings: Settings, streams: Sequence[int], rates: Sequence[float], requests: int) -> list[Row]:
    """Run `cosyserve bench` against a real server, and return a row for each load.

    Args:
        streams: utterances in progress, of closed loops.
        rates: utterances a second at random times, of open loops.
        requests: utterances of each load.

    Raises:
        CosyServeError: the server or the bench cannot run here; the message has the reason.
    """
    for module in ("tritonclient", "soxr", "kaldi_native_fbank"):
        if importlib.util.find_spec(module) is None:
            raise CosyServeError(f"the Python package {module} is not installed")
    names = ("device", "runtime", "precision", "llm_precision", "flow_cache_mib", "max_streams", "llm_slots")
    given = {name: str(getattr(settings, name)) for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(
            settings.folder,
            profile="gpu" if settings.device == "cuda" else "cpu",
            grpc_port=free_port(),
            metrics_port=free_port(),
            settings=given,
            log=Path(scratch) / "triton.log",
        )
        with server.running():
            command = ["bench", "--url", f"{server.host}:{server.grpc_port}", "--requests", str(requests), "--json"]
            command += ["--concurrency", ",".join(map(str, streams))]
            command += ["--rate", ",".join(map(str, rates))] if rates else []
            bench = subprocess.run(
                [sys.executable, "-c", "from cosyserve.cli import app; app()", *command],
                capture_output=True,
                text=True,
                check=False,
            )
    if not bench.stdout.startswith("{"):
        raise CosyServeError(f"cosyserve bench: {(bench.stderr.strip().splitlines() or ['no output'])[-1]}")
    return [_level(level) for level in json.loads(bench.stdout)["levels"]]


def _level(level: Row) -> Row:
    first = level["first_audio_ms"] or {"p50": None, "p95": None}
    load = f"{level['rate']:g} a second" if "rate" in level else f"{level['concurrency']} streams"
    return {
        "load": load,
        "first audio p50, ms": first["p50"],
        "first audio p95, ms": first["p95"],
        "audio-seconds/s": level["audio_seconds_per_second"],
        "gapless": level["gapless"],
        "errors": sum(level["errors"].values()),
    }


def machine(device: str) -> Row:
    """Describe the machine of the figures."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    return {"gpu": gpu, "processor": platform.machine(), "torch": torch.__version__, "cuda": torch.version.cuda}


def make_weights(version: int, size: str, folder: Path, plans: str = "") -> Path:
    """Make random weights of this size for the torch runtime; with `plans`, TensorRT plans of that precision too."""
    from cosyserve_build.prepare import prepare
    from cosyserve_build.synth import synth_bundle

    bundle, weights = folder / f"bundle{version}", folder / f"weights{version}"
    synth_bundle(bundle, version, size, seed=0)  # type: ignore[arg-type]
    prepare(bundle, weights, runtimes=["torch", *(["onnx"] if plans else [])])
    shutil.rmtree(bundle)
    if plans:
        from cosyserve_build.engines import engines

        engines(weights, plans, ["flow_estimator", "hift_decoder"], report=print)
    return weights


def report(options: argparse.Namespace, folders: Sequence[Path]) -> dict[str, Any]:
    """Run all parts; the result of one that cannot run is a line with the reason."""
    done: dict[str, Any] = {"machine": machine(options.device), "settings": vars(options), SUMMARY: []}
    for weights in folders:
        for runtime in options.runtimes.split(","):
            name = f"CosyVoice{Weights(weights).version.number}, {runtime}"
            parts = of_runtime(options, weights, runtime)
            done |= {f"{name}: {part}": rows for part, rows in parts.items()}
            rows = parts[HEARD]
            done[SUMMARY] += [{"served": name, **row} for row in rows] if isinstance(rows, list) else []
    done[SUMMARY] = done[SUMMARY] or "skipped: no server could be heard"
    return done


def of_runtime(options: argparse.Namespace, weights: Path, runtime: str) -> dict[str, Any]:
    """Run all parts with these weights on one runtime."""
    streams = [int(count) for count in options.streams.split(",")]
    rates = [float(rate) for rate in options.rates.split(",") if rate]
    common = {"weights": str(weights), "threads": options.threads}
    settings = Settings(
        **common,
        runtime=runtime,
        device=options.device,
        precision=options.precision,
        max_streams=max(streams),
        llm_slots=max(streams),
        flow_cache_mib=options.flow_cache_mib,
    )
    reference = Settings(**common, runtime="torch", max_streams=1, llm_slots=1, flow_cache_mib=4096)
    done = in_this_process(Networks(settings), Networks(reference), streams, options.runs)
    gc.collect()
    torch.cuda.empty_cache()  # the server needs this memory
    done[HEARD] = tried(lambda: heard(settings, streams, rates, options.requests))
    return done


def in_this_process(networks: Networks, reference: Networks, streams: Sequence[int], runs: int) -> dict[str, Any]:
    """Run the parts that need no server."""
    busy = min(16, max(streams))
    return {
        "difference from the CPU in float32": tried(lambda: list(errors(networks, reference))),
        "time of one call": tried(lambda: list(times(networks, streams, runs))),
        f"where it goes with {busy} streams": tried(lambda: list(kernels(networks, busy))),
    }


def tried(part: Callable[[], list[Row]]) -> list[Row] | str:
    """Return the rows of a part, or the reason why it cannot run."""
    try:
        return part()
    except CosyServeError as error:
        return f"skipped: {error}"
    except RuntimeError as error:
        return f"{FAILED}: {error}"


def markdown(done: dict[str, Any]) -> str:
    """Format the report as Markdown."""
    lines = ["# The GPU runtimes on this machine", ""]
    for name, part in done.items():
        lines += [f"## {name}", ""]
        rows = [part] if isinstance(part, dict) else part
        if isinstance(rows, str):
            lines += [rows, ""]
            continue
        columns = list(rows[0])
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in rows] + [""]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _milliseconds(call: Callable[[], object], runs: int) -> float:
    call()
    spent = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        spent.append(1000 * (time.perf_counter() - began))
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for report.md and report.json")
    parser.add_argument("--weights", type=Path, help="weights prepared with --runtime torch; random ones if absent")
    parser.add_argument("--versions", default="2,3", help="CosyVoice versions of random weights")
    parser.add_argument("--size", choices=("tiny", "small", "full"), default="full", help="size of random weights")
    parser.add_argument("--runtimes", default="torch", help="such as torch,tensorrt; plans take minutes to build")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="of the flow")
    parser.add_argument("--streams", default="1,4,16,32", help="closed loops")
    parser.add_argument("--rates", default="1,4,10,20", help="open loops, utterances a second")
    parser.add_argument("--threads", type=int, default=8, help="cores for the comparison on the CPU")
    parser.add_argument("--runs", type=int, default=10, help="runs of each timed call")
    parser.add_argument("--requests", type=int, default=64, help="utterances at each load")
    parser.add_argument("--flow-cache-mib", type=int, default=0, help="0: what the GPU can spare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        plans = options.precision if "tensorrt" in options.runtimes else ""
        versions = [int(version) for version in options.versions.split(",")]
        folders = (
            [options.weights]
            if options.weights
            else [make_weights(version, options.size, Path(scratch), plans) for version in versions]
        )
        print(f"weights: {time.perf_counter() - began:.0f} s", flush=True)
        done = report(options, folders)
    options.out.mkdir(parents=True, exist_ok=True)
    plain = json.dumps(done, indent=1, default=str)
    (options.out / "report.json").write_text(plain + "\n", "utf-8")
    text = markdown(done)
    (options.out / "report.md").write_text(text, "utf-8")
    print(text)
    if any(isinstance(part, str) and part.startswith(FAILED) for part in done.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
