"""``cosyserve bench``: the command line."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from cosyserve_client.aio import AsyncClient
from cosyserve_client.audio import read_prompt
from cosyserve_client.bench import environment, report
from cosyserve_client.bench.generator import Budget, Closed, Load, Open, run_load
from cosyserve_client.bench.results import LoadResult
from cosyserve_client.bench.speaker import Script, Speaker
from cosyserve_client.errors import CosyServeClientError, invalid
from cosyserve_client.types import SpeechRequest

Number = TypeVar("Number", int, float)

CONNECTIONS = 8
"""Connections of a run, which utterances take in turn: one alone would read the audio of all streams in sequence."""

TEXTS = (
    "Sure, I can help you with that.",
    "Your table for two is booked at half past seven this evening.",
    "The small boat drifted slowly across the quiet lake while the sun went down behind the hills.",
)
"""What is said when nothing is given: answers as a voice agent speaks them."""

_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LoadSchedule:
    """What a run measures, and how."""

    url: str
    loads: list[Load]
    budget: Budget
    warmup: int
    script: Script


def bench(
    url: Annotated[str, typer.Option(help="gRPC address of the server, host:port")] = "127.0.0.1:8001",
    concurrency: Annotated[str, typer.Option(help="Closed loops: numbers of concurrent clients, such as 1,4,16")] = "",
    rate: Annotated[str, typer.Option(help="Open loops: mean utterances per second, such as 0.5,2")] = "",
    requests: Annotated[int | None, typer.Option(min=1, help="Utterances per load")] = None,
    duration: Annotated[
        float | None, typer.Option(min=0.1, help=f"Seconds in which a load starts utterances; default {_SECONDS:g}")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Utterances of each client before a load, not measured")] = 1,
    text: Annotated[str | None, typer.Option(help="Text to speak")] = None,
    texts: Annotated[Path | None, typer.Option(help="File with one text per line, spoken in turn")] = None,
    voice: Annotated[str | None, typer.Option(help="Name of a registered voice")] = None,
    prompt_wav: Annotated[str | None, typer.Option(help="Audio file with the voice to clone")] = None,
    prompt_text: Annotated[str | None, typer.Option(help="Transcript of the prompt audio")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the schedule and of the first utterance")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON to standard output, the table to standard error")
    ] = False,
    png: Annotated[str | None, typer.Option(help="PNG file to plot first audio and throughput to")] = None,
) -> None:
    """Measure what listeners hear of a server under load, one load after another.

    Exits with 1 when any utterance failed, or none of a load succeeded. Utterances that a full server refuses are
    counted separately.
    """
    console = Console(stderr=as_json)
    try:
        loads = _loads(concurrency, rate, seed)
        plan = LoadSchedule(
            url=url,
            loads=loads,
            budget=_budget(requests, duration, loads),
            warmup=warmup,
            script=Script(_request(voice, prompt_wav, prompt_text), _texts(text, texts), seed),
        )
        draw = _drawing() if png else None
        server, results = asyncio.run(_run(plan, console))
        console.print(report.table(results))
        if as_json:
            typer.echo(json.dumps(report.document(results, _facts(server)), indent=1))
        if png and draw:
            draw(results, png)
    except (CosyServeClientError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    for warning in report.warnings(results):
        typer.echo(f"warning: {warning}", err=True)
    problems = report.problems(results)
    for problem in problems:
        typer.echo(f"failed: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


async def _run(plan: LoadSchedule, console: Console) -> tuple[dict[str, Any], list[LoadResult]]:
    """What the server says about itself, and the result of each load of the plan."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(plan.url)) for _ in range(CONNECTIONS)]
        server = await environment.server(clients[0])
        await asyncio.gather(*(client.sample_rate() for client in clients))  # connects them
        results = []
        for load in plan.loads:
            name, value = load.label
            with console.status(f"{name} {value:g}"):
                await load.run(Speaker(clients, plan.script), load.warmup(plan.warmup))
                results.append(await run_load(load, Speaker(clients, plan.script), plan.budget))
        return server, results


def _facts(server: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["cosyserve", *sys.argv[1:]]),
        "client": environment.machine(),
        "server": server,
    }


def _loads(concurrency: str, rate: str, seed: int) -> list[Load]:
    closed: list[Load] = [Closed(clients) for clients in _numbers("--concurrency", concurrency, int)]
    loads = closed + [Open(arrivals, seed) for arrivals in _numbers("--rate", rate, float)]
    return loads or [Closed(1)]


def _numbers(option: str, listed: str, kind: Callable[[str], Number]) -> list[Number]:
    wrong = typer.BadParameter(f"{listed}: expected numbers above 0, separated by commas", param_hint=option)
    try:
        numbers = [kind(word) for word in listed.split(",")] if listed else []
    except ValueError:
        raise wrong from None
    if not all(0 < number < math.inf for number in numbers):
        raise wrong
    return numbers


def _budget(requests: int | None, duration: float | None, loads: Sequence[Load]) -> Budget:
    if requests is not None and duration is not None:
        raise typer.BadParameter("give either --requests or --duration", param_hint="--requests")
    clients = max((load.concurrency for load in loads if isinstance(load, Closed)), default=0)
    if requests is not None and requests < clients:
        raise typer.BadParameter(f"{requests} would leave some of {clients} clients idle", param_hint="--requests")
    return Budget(requests, _SECONDS if duration is None else duration)


def _request(voice: str | None, prompt_wav: str | None, prompt_text: str | None) -> SpeechRequest:
    audio, rate = read_prompt(prompt_wav) if prompt_wav is not None else (None, None)
    return SpeechRequest(text="", voice=voice, prompt_audio=audio, prompt_sample_rate=rate, prompt_text=prompt_text)


def _texts(text: str | None, texts: Path | None) -> Sequence[str]:
    if text is not None and texts is not None:
        raise typer.BadParameter("give either --text or --texts", param_hint="--texts")
    if texts is None:
        return TEXTS if text is None else (text,)
    try:
        lines = [line for line in texts.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise invalid("text", f"{texts} is not UTF-8") from None
    if not lines:
        raise invalid("text", f"{texts} has no text")
    return lines


def _drawing() -> Callable[[Sequence[LoadResult], str], None]:
    """Looked for before the run, so that a missing package does not waste it."""
    try:
        from cosyserve_client.bench.plot import draw
    except ModuleNotFoundError:
        raise CosyServeClientError("plotting needs: pip install 'cosyserve[loadtest]'") from None
    return draw
