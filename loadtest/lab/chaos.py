"""Fault injection: kill or stop model processes, send signals, misbehave as a caller; then check the next utterance.

    python loadtest/lab/chaos.py --weights .cache/demo-weights
    python loadtest/lab/chaos.py --weights .cache/demo-weights --case kill-flow --case crowd

Every case runs on ``cosyserve serve``, which is restarted after it ends, as a supervisor in production does. A case
passes if every caller gets all its samples or an error in time; a server that ended printed the reason and left no
process and no shared memory; gauges are zero, counters equal what callers received, and the next utterance has the same
samples as the first.

The exit code is 1 if a case fails; stderr has a line for each failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil
from measure import model_name
from rich.console import Console
from rich.table import Table
from soak import GAUGES, read_metrics
from tritonclient.grpc import service_pb2_grpc

from cosyserve.metrics import ACTIVE_STREAMS, AUDIO_SAMPLES, CANCELLED, REFUSED, Metric
from cosyserve.serve import free_port
from cosyserve_client import (
    AsyncClient,
    Client,
    CosyServeClientError,
    InvalidArgument,
    SpeechRequest,
    Unavailable,
    wire,
)

STAGES = ("frontend", "llm", "flow", "hift", "tts")
MODELS = (*STAGES, "voices", "cosyvoice2")

SHORT = "Good morning."
LONG = " ".join(f"Sentence number {word} is to be spoken while others come and go." for word in ("one", "two", "three"))
SEED = 7

PATIENCE = 30.0
"""Maximum seconds for what should happen at once."""

LATE = 90.0
"""Seconds after which a caller counts as hanging: every utterance here takes a few."""

AT_ONCE = 2.0
"""Maximum seconds until callers of a stopping server get an error: less than Triton's exit takes."""

ROOT = Path(__file__).parents[2]
COSYSERVE = str(Path(sys.executable).parent / "cosyserve")
DOCKER = ROOT / "docker"


class Supervised:
    """``cosyserve serve`` on free ports, with its supervisor.

    Args:
        weights: prepared weights.
        folder: for the server's log and drain file.
    """

    def __init__(self, weights: Path, folder: Path) -> None:
        self.weights = weights
        self.drain_file = folder / "draining"
        self.log = folder / "triton.log"
        self.url = ""
        self._prefix = ""
        self.below: list[psutil.Process] = []

    def start(self, **settings: str) -> None:
        """Start the server with these settings, and return when it is ready."""
        ports = free_port(), free_port()
        self.url, self.metrics_url = f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}/metrics"
        self.over, self.below = False, []
        arguments = ["serve", "--weights", str(self.weights), "--log", str(self.log)]
        values = {"drain_file": str(self.drain_file), **settings}
        self.process = subprocess.Popen(
            [COSYSERVE, *arguments, "--grpc-port", str(ports[0]), "--metrics-port", str(ports[1])],
            env={**os.environ, **{f"COSYSERVE_{name.upper()}": value for name, value in values.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if not self.process.stdout.readline().startswith("ready: "):
            raise RuntimeError(f"the server did not start: {self.end()[1]}")
        self.below = psutil.Process(self.process.pid).children(recursive=True)
        self.models = {model_name(process): process for process in self.below}
        regions = next(word for word in self.models["tts"].cmdline() if re.fullmatch(r"cosyserve-\w+-[\w-]+", word))
        self._prefix = "-".join(regions.split("-")[:2])

    @property
    def broken(self) -> bool:
        """Return whether the launcher, Triton or a model process has ended."""
        return self.process.poll() is not None or not all(_alive(process) for process in self.below)

    def end(self, sign: signal.Signals | None = None) -> tuple[int, str]:
        """Send `sign`, wait, and return exit code and last line on stderr; `TimeoutExpired` if the server goes on."""
        if sign is not None:
            self.process.send_signal(sign)
        _, errors = self.process.communicate(timeout=PATIENCE)
        self.over = True
        return self.process.returncode, (errors.splitlines() or [""])[-1]

    def left(self) -> list[str]:
        """List processes and shared memory that remain after the end."""
        _, alive = psutil.wait_procs(self.below, timeout=PATIENCE)
        return [f"process {process.pid} still runs" for process in alive] + [
            f"{region} is left" for region in self._regions()
        ]

    def _regions(self) -> list[Path]:
        """List the server's shared memory regions."""
        return list(Path("/dev/shm").glob(f"{self._prefix}*")) if self._prefix else []

    def kill(self) -> None:
        """Kill the server in any state."""
        for process in self.below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if not self.over:
            self.process.kill()
            self.process.communicate()
            self.over = True
            for region in self._regions():
                region.unlink(missing_ok=True)

    def metrics(self) -> dict[str, float]:
        """Read the metrics' values by name, summed over labels."""
        return read_metrics(self.metrics_url, PATIENCE)

    def metric(self, metric: Metric) -> float:
        """Read the value of one metric."""
        return self.metrics()[metric.name]


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@dataclass(frozen=True)
class Heard:
    """Result of an utterance for its caller.

    Attributes:
        pcm: the samples, if the utterance is complete.
        error: the exception otherwise.
        seconds: duration of the request.
    """

    pcm: bytes
    error: BaseException | None
    seconds: float


Case = Callable[["Scene"], Awaitable[str]]
"""Injects a fault and returns a remark; records failures in the scene."""


@dataclass
class Scene:
    """Run of one case on one server.

    Attributes:
        short, long: samples of `SHORT` and `LONG`.
        wrong: failed expectations.
    """

    server: Supervised
    short: bytes
    long: bytes
    wrong: list[str] = field(default_factory=list)

    def expect(self, right: bool, problem: str) -> None:
        """Record `problem` unless `right`."""
        if not right:
            self.wrong.append(problem)

    @classmethod
    async def open(cls, server: Supervised) -> Scene:
        """Speak the first utterances of a server, to which all others are compared."""
        texts = [await hear(server.url, text) for text in (SHORT, LONG)]
        for heard in texts:
            if heard.error:
                raise heard.error
        return cls(server, texts[0].pcm, texts[1].pcm)

    async def listeners(self, count: int, **options: Any) -> list[asyncio.Task[Heard]]:
        """Start callers of `LONG` and wait for first audio of each; the first caller uses the blocking client."""
        begun = [asyncio.Event() for _ in range(count)]
        kinds = [hear_blocking, *[hear] * (count - 1)]
        tasks = [
            asyncio.create_task(kind(self.server.url, LONG, begun=each, **options))
            for kind, each in zip(kinds, begun, strict=True)
        ]
        async with asyncio.timeout(LATE):
            await asyncio.gather(*(each.wait() for each in begun))
        return tasks

    async def told(self, tasks: Iterable[asyncio.Task[Heard]], *, whole: bool = False) -> list[Heard]:
        """Wait for callers; each must get all of `LONG` or, unless `whole`, one of the client's errors."""
        ended = await asyncio.gather(*tasks)
        for heard in ended:
            if heard.error is None:
                self.expect(heard.pcm == self.long, "a caller got other samples")
            elif isinstance(heard.error, TimeoutError):
                self.wrong.append(f"a caller got no answer for {LATE:g} s")
            else:
                told = f"{type(heard.error).__name__}: {heard.error}"
                self.expect(isinstance(heard.error, CosyServeClientError), f"a caller got {told}")
                self.expect(not whole, f"a caller's utterance was not completed: {told}")
        return ended

    async def ended(self, sign: signal.Signals | None = None, code: int = 1) -> float:
        """Wait for the server's end and return the seconds; it must print the reason and leave nothing."""
        began = time.monotonic()
        try:
            found, line = await asyncio.to_thread(self.server.end, sign)
        except subprocess.TimeoutExpired:
            self.wrong.append("the server did not end")
            self.server.kill()
            return PATIENCE
        seconds = time.monotonic() - began
        self.expect(found == code, f"the server ended with {found}, not {code}: {line}")
        self.expect(line.startswith("error: ") == (code == 1), f"the server's last line is {line!r}")
        self.wrong += await asyncio.to_thread(self.server.left)
        return seconds

    async def again(self, **settings: str) -> None:
        """Restart the server."""
        if not self.server.over:
            await self.ended(signal.SIGTERM, 128 + signal.SIGINT)
        await asyncio.to_thread(partial(self.server.start, **settings))

    async def play(self, case: Case) -> tuple[Scene, str]:
        """Run a case on this server; return the next scene and a remark."""
        scene, remark = Scene(self.server, self.short, self.long), ""
        try:
            remark = await case(scene)
            await scene._close()
        except Exception as error:
            scene.wrong.append(f"{type(error).__name__}: {error}")
            self.server.kill()
            await scene.again()
        return scene, remark

    async def _close(self) -> None:
        """Check what must hold after every case."""
        if not self.server.over and self.server.broken:
            await self.ended()
        if self.server.over:
            await self.again()
        await self._idle()
        samples = self.server.metric(AUDIO_SAMPLES)
        heard = await hear(self.server.url, SHORT)
        self.expect(heard.error is None, f"the next utterance failed: {heard.error}")
        self.expect(heard.error is not None or heard.pcm == self.short, "the next utterance has other samples")
        await self._idle()
        counted = self.server.metric(AUDIO_SAMPLES) - samples
        self.expect(2 * counted == len(heard.pcm), f"{len(heard.pcm) // 2} samples received, {counted:g} counted")

    async def _idle(self) -> None:
        def held() -> dict[str, float]:
            values = self.server.metrics()
            return {gauge.name: values[gauge.name] for gauge in GAUGES if values[gauge.name]}

        await within(PATIENCE, lambda: not held())
        self.wrong += [f"gauge {name} is {value:g}" for name, value in held().items()]


async def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait, and return whether `condition` became true in time."""
    deadline = time.monotonic() + seconds
    while not (true := await asyncio.to_thread(condition)) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return true


async def hear(
    url: str,
    text: str,
    *,
    begun: asyncio.Event | None = None,
    enough: asyncio.Event | None = None,
    pause: float = 0.0,
    **options: Any,
) -> Heard:
    """Speak a text as one caller.

    Args:
        begun: set at first audio.
        enough: the caller disconnects when it is set.
        pause: seconds that the caller waits after each chunk.
        options: of `AsyncClient.stream`.
    """

    async def listen() -> bytes:
        pieces = []
        async with AsyncClient(url, **options) as client:
            async for chunk in client.stream(text, seed=SEED):
                pieces.append(chunk.pcm.tobytes())
                if begun is not None:
                    begun.set()
                if enough is not None and enough.is_set():
                    break
                await asyncio.sleep(pause)
        return b"".join(pieces)

    return await _heard(listen())


async def hear_blocking(url: str, text: str, *, begun: asyncio.Event, **options: Any) -> Heard:
    """Speak a text with the blocking client, in a thread."""
    loop = asyncio.get_running_loop()

    def listen() -> bytes:
        pieces = []
        with Client(url, **options) as client:
            for chunk in client.stream(text, seed=SEED):
                pieces.append(chunk.pcm.tobytes())
                loop.call_soon_threadsafe(begun.set)
        return b"".join(pieces)

    return await _heard(asyncio.to_thread(listen))


async def _heard(listening: Awaitable[bytes]) -> Heard:
    began = time.monotonic()
    try:
        async with asyncio.timeout(LATE):
            pcm, error = await listening, None
    except Exception as failed:
        pcm, error = b"", failed
    return Heard(pcm, error, time.monotonic() - began)


async def killed(scene: Scene, model: str) -> str:
    """Kill a model process while it works: the server ends, and every caller gets an error."""
    callers = await scene.listeners(3)
    scene.server.models[model].kill()
    began = time.monotonic()
    await scene.told(callers)
    told = time.monotonic() - began
    await scene.ended()
    ended = time.monotonic() - began
    await scene.again()
    return f"errors after {told:.1f} s, ended after {ended:.1f}, ready again after {time.monotonic() - began:.1f}"


async def paused(scene: Scene, model: str, seconds: float = 2.0) -> str:
    """Suspend a model process briefly: it goes on, or Triton breaks and every caller gets an error."""
    callers = await scene.listeners(3)
    process = scene.server.models[model]
    process.suspend()
    await asyncio.sleep(seconds)
    with suppress(psutil.NoSuchProcess):
        process.resume()
    ended = await scene.told(callers)
    failed = sum(heard.error is not None for heard in ended)
    if not failed:
        return "went on"
    # Triton abandons a request after a second, and breaks when the process resumes and answers it.
    await within(PATIENCE, lambda: scene.server.broken)
    scene.expect(scene.server.broken, f"{failed} callers failed on a server that goes on")
    return f"{failed} of 3 callers got an error, server ended"


async def stopped(scene: Scene, model: str, seconds: float = 15.0) -> str:
    """Suspend a model process: every caller gets an error, and the server ends.

    The watchdog does not cover `tts`: callers' deadlines, here of `seconds`, and the probe detect it; SIGTERM ends all.
    """
    callers = await scene.listeners(2, stream_timeout=seconds)
    scene.server.models[model].suspend()
    began = time.monotonic()
    await scene.told(callers)
    told = time.monotonic() - began
    if model != "tts":
        await scene.ended()
        return f"errors after {told:.1f} s, server ended after {time.monotonic() - began:.1f}"
    probe = [sys.executable, str(DOCKER / "probe.py"), "--url", scene.server.url, "--seconds", "3"]
    probed = await asyncio.to_thread(partial(subprocess.run, probe, capture_output=True, timeout=LATE))
    scene.expect(probed.returncode == 1, f"the probe ended with {probed.returncode}")
    ended = await scene.ended(signal.SIGTERM, 128 + signal.SIGINT)
    return f"errors after {told:.1f} s, the probe fails, SIGTERM ends it in {ended:.1f}"


async def drained(scene: Scene) -> str:
    """SIGTERM after a drain: running utterances are completed, new ones refused."""
    callers = await scene.listeners(3)
    drain = await asyncio.create_subprocess_exec(
        *(sys.executable, str(DOCKER / "drain.py"), "--metrics", scene.server.metrics_url, "--seconds", str(LATE)),
        env={**os.environ, "COSYSERVE_DRAIN_FILE": str(scene.server.drain_file)},
    )
    await within(PATIENCE, scene.server.drain_file.exists)
    late = await hear(scene.server.url, SHORT)
    scene.expect(isinstance(late.error, Unavailable), f"a new caller got {late.error!r}")
    scene.expect(await drain.wait() == 0, "the drain failed")
    await scene.told(callers, whole=True)
    seconds = await scene.ended(signal.SIGTERM, 128 + signal.SIGINT)
    return f"3 completed, the new one refused, ended in {seconds:.1f} s"


async def terminated(scene: Scene) -> str:
    """SIGTERM without a drain: callers get an error at once."""
    callers = await scene.listeners(3)
    began = time.monotonic()
    ending = asyncio.create_task(scene.ended(signal.SIGTERM, 128 + signal.SIGINT))
    ended = await scene.told(callers)
    told = time.monotonic() - began
    scene.expect(told < AT_ONCE, f"callers got errors after {told:.1f} s")
    others = [heard.error for heard in ended if not isinstance(heard.error, Unavailable)]
    scene.expect(not any(others), f"callers got {others}")
    return f"errors after {told:.1f} s, ended in {await ending:.1f}"


async def slow(scene: Scene, pause: float = 1.0) -> str:
    """A caller reads one chunk a second: it gets all samples, and other callers are not affected."""
    began = asyncio.Event()
    reader = asyncio.create_task(hear(scene.server.url, LONG, begun=began, pause=pause))
    await began.wait()
    await scene.told(await scene.listeners(2), whole=True)
    (heard,) = await scene.told([reader], whole=True)
    return f"complete after {heard.seconds:.1f} s"


async def unread(scene: Scene, callers: int = 8) -> str:
    """Callers open a stream and never read: others are not affected, and Triton buffers only the audio."""
    triton = psutil.Process(scene.server.below[0].pid)
    before = triton.memory_info().rss
    message = wire.infer_request(SpeechRequest(text=LONG, seed=SEED))
    async with channels(scene.server.url, callers) as opened:
        calls = [service_pb2_grpc.GRPCInferenceServiceStub(each).ModelStreamInfer([message]) for each in opened]
        await scene.told(await scene.listeners(2), whole=True)
        idle = await within(LATE, lambda: not scene.server.metric(ACTIVE_STREAMS))
        scene.expect(idle, "an utterance without a reader does not end")
        grown = (triton.memory_info().rss - before) / 2**20
        scene.expect(grown < 32 + 4 * callers, f"Triton grew by {grown:.0f} MiB")
        for call in calls:
            call.cancel()
    return f"{callers} ended by themselves, Triton grew by {grown:.0f} MiB"


async def silent(scene: Scene, connections: int = 500) -> str:
    """Callers open connections and streams, and send nothing."""
    host, _, port = scene.server.url.partition(":")
    bare = [socket.create_connection((host, int(port))) for _ in range(connections)]
    async with channels(scene.server.url, 50) as opened:
        for each in opened:
            await service_pb2_grpc.GRPCInferenceServiceStub(each).ModelStreamInfer().wait_for_connection()
        await scene.told(await scene.listeners(3), whole=True)
    for each in bare:
        each.close()
    return f"{connections} bare connections and 50 streams"


async def crowd(scene: Scene, connections: int = 500, held: int = 12, refusals: int = 1000, sentences: int = 60) -> str:
    """More callers than slots: running utterances are correct, and all others are refused at once."""
    await scene.again(max_streams=str(held))
    text = " ".join(LONG.split(". ")[0] + "." for _ in range(sentences))
    alone = await hear(scene.server.url, text)
    enough = asyncio.Event()
    begun = [asyncio.Event() for _ in range(held)]
    holding = [asyncio.create_task(hear(scene.server.url, text, begun=each, enough=enough)) for each in begun]
    await asyncio.gather(*(each.wait() for each in begun))
    single = await _refusals(scene, refusals)
    burst = await _refusals(scene, connections - held, "--at-once")
    enough.set()
    for heard in await asyncio.gather(*holding):
        scene.expect(heard.error is None, f"a running utterance failed: {heard.error!r}")
        scene.expect(alone.pcm.startswith(heard.pcm), "a running utterance has other samples")
    return f"{held} held; {refusals} refused one by one {single}; {connections - held} at once {burst}"


async def _refusals(scene: Scene, count: int, *options: str) -> str:
    """Measure refusals in a separate process; return a summary in milliseconds."""
    command = [sys.executable, str(Path(__file__).with_name("refusals.py")), scene.server.url, "--count", str(count)]
    knocking = await asyncio.create_subprocess_exec(*command, *options, stdout=subprocess.PIPE)
    output, _ = await knocking.communicate()
    result = json.loads(output)
    answers, times = Counter(result["answers"]), result["milliseconds"]
    scene.expect(answers == {"UNAVAILABLE": count}, f"answers of a full server: {dict(answers)}")
    p50, p99 = (times[int(share * (count - 1))] for share in (0.5, 0.99))
    return f"p50 {p50:.1f}, p99 {p99:.1f}, max {times[-1]:.1f} ms"


async def cancels(scene: Scene, count: int = 10_000, at_once: int = 16) -> str:
    """More callers than slots disconnect at random times, some while they are refused."""
    await scene.again(max_streams=str(at_once * 3 // 4))
    chance = random.Random(0)
    before = scene.server.metric(CANCELLED) + scene.server.metric(REFUSED)
    errors: list[str] = []
    ended = 0

    async def leave(client: AsyncClient, turns: int) -> None:
        nonlocal ended
        for _ in range(turns):
            try:
                async with asyncio.timeout(chance.expovariate(10)):
                    await client.synthesize(LONG, seed=SEED)
                ended += 1
            except (TimeoutError, Unavailable):
                pass
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")

    async with AsyncClient(scene.server.url) as client:
        await client.sample_rate()
        await asyncio.gather(*(leave(client, count // at_once) for _ in range(at_once)))
    scene.wrong += errors[:3]
    await within(PATIENCE, lambda: not scene.server.metric(ACTIVE_STREAMS))
    counted = scene.server.metric(CANCELLED) + scene.server.metric(REFUSED) - before
    # A caller that leaves before the server sees its stream does not count as an utterance.
    scene.expect(count / 2 < counted <= count - ended, f"of {count - ended} cancels {counted:g} were counted")
    return f"{count} callers, {counted:g} cancels counted, {ended} utterances complete"


async def duplicates(scene: Scene) -> str:
    """Requests may share an id; a second session with the id of an open one is refused."""
    message = wire.infer_request(SpeechRequest(text=SHORT, seed=SEED))
    async with channels(scene.server.url, 4) as opened:
        calls = [service_pb2_grpc.GRPCInferenceServiceStub(each).ModelStreamInfer([message]) for each in opened]
        spoken = await asyncio.gather(*map(_read, calls))
    scene.expect(set(spoken) == {scene.short}, "requests with one id got other samples")
    openings = [wire.Writer() for _ in range(2)]
    openings[1].id = openings[0].id
    async with channels(scene.server.url, 2) as opened:
        first, second = (service_pb2_grpc.GRPCInferenceServiceStub(each).ModelStreamInfer() for each in opened)
        await first.write(openings[0].message(SpeechRequest(text=SHORT, seed=SEED)))
        await within(PATIENCE, lambda: scene.server.metric(ACTIVE_STREAMS) > 0)
        await second.write(openings[1].message(SpeechRequest(text=SHORT, seed=SEED)))
        refused = False
        try:
            await _read(second)
        except InvalidArgument:
            refused = True
        scene.expect(refused, "two sessions with one id were open")
        await first.write(openings[0].message(SpeechRequest(), end=True))
        await first.done_writing()
        scene.expect(await _read(first) == scene.short, "a session was disturbed by another with its id")
    return "4 requests with one id complete, the second session with one id refused"


async def _read(call: Any) -> bytes:
    """Read the samples of a raw gRPC call."""
    reader = wire.Reader(24_000)
    return b"".join([reader.chunk(response).pcm.tobytes() async for response in call])


@asynccontextmanager
async def channels(url: str, count: int) -> AsyncIterator[list[Any]]:
    """Open connections for raw messages."""
    opened = [grpc.aio.insecure_channel(url, options=wire.channel_options(300)) for _ in range(count)]
    try:
        yield opened
    finally:
        await asyncio.gather(*(each.close() for each in opened))


CASES: dict[str, Case] = {
    **{f"kill-{model}": partial(killed, model=model) for model in MODELS},
    **{f"pause-{model}": partial(paused, model=model) for model in MODELS},
    **{f"stop-{model}": partial(stopped, model=model) for model in STAGES},
    "drain": drained,
    "sigterm": terminated,
    "slow": slow,
    "unread": unread,
    "silent": silent,
    "crowd": crowd,
    "cancels": cancels,
    "duplicates": duplicates,
}


async def chaos(weights: Path, names: list[str]) -> list[str]:
    """Run the cases, and return the failures."""
    table = Table("case", "survived", "s", "remark")
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        server = Supervised(weights, Path(folder))
        await asyncio.to_thread(server.start)
        try:
            first = await Scene.open(server)
            for name in names:
                began = time.monotonic()
                scene, remark = await first.play(CASES[name])
                survived = "no" if scene.wrong else "yes"
                table.add_row(name, survived, f"{time.monotonic() - began:.1f}", remark)
                print(f"{name}: {survived}, {remark}", flush=True)
                wrong += [f"{name}: {problem}" for problem in scene.wrong]
        finally:
            server.kill()
    Console(width=160).print(table)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--case", action="append", choices=CASES, help="only these")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server does not stay behind
    wrong = asyncio.run(chaos(options.weights, options.case or list(CASES)))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
