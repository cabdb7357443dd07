"""Generate tables of docs/ from the code, between two comments of a page.

    <!-- generated: settings -->
    ...
    <!-- end -->

`make docs` writes them, `make check` refuses stale ones. The text of a cell is in the code: the docstring of an
attribute, a constant or a class, the description of a tensor or a metric, or the help of an option.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
from google.protobuf import text_format
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import model_config_pb2 as pb

from cosyserve import contracts, errors, limits, metrics, triton_defects
from cosyserve.repository import PROFILES, SAMPLE_RATE, render
from cosyserve.runtimes.memory import GIB
from cosyserve.settings import Settings
from cosyserve_build import api_tables, gpu_memory
from cosyserve_build.markdown import attributes, cell, labelled, summary, table
from cosyserve_gateway import limits as gateway_limits
from cosyserve_gateway import metrics as gateway_metrics
from cosyserve_gateway.cli import app as gateway

ENTRIES = ("tts", "cosyvoice2", "cosyvoice3")
READERS: dict[str, Sequence[str]] = {
    "weights": ("all",),
    "device": ("frontend", "llm", "flow", "hift"),
    "runtime": ("llm", "flow", "hift"),
    "llm_runtime": ("llm",),
    "precision": ("flow",),
    "llm_precision": ("llm",),
    "graphs": ("llm", "flow", "hift"),
    "threads": ("frontend", "llm", "flow", "hift"),
    "max_streams": ENTRIES,
    "llm_slots": ("llm",),
    "drain_file": ENTRIES,
    "otlp_endpoint": ENTRIES,
    "session_idle": ("tts",),
    "lifetime": ENTRIES,
    "stage_timeout": (*ENTRIES, "voices"),
    "first_hop": ENTRIES,
    "max_hop": ENTRIES,
    "concurrency": ("flow", "hift"),
    "flow_cache_mib": ("flow",),
    "flow_window": ("flow",),
}
"""Models that use each setting; every model receives all settings."""

BOUNDS: dict[ModuleType, Sequence[str]] = {
    limits: (
        "MAX_TEXT_CHARS",
        "MAX_SESSION_CHARS",
        "SESSION_IDLE_SECONDS",
        "LIFETIME_SECONDS",
        "MAX_PROMPT_TEXT_CHARS",
        "MAX_INSTRUCT_CHARS",
        "MAX_VOICE_NAME_CHARS",
        "MAX_CONSENT_CHARS",
        "MAX_VOICES",
        "MIN_PROMPT_SECONDS",
        "MAX_PROMPT_SECONDS",
        "MAX_SOURCE_SECONDS",
        "MIN_AUDIO_RATE",
        "MAX_AUDIO_RATE",
        "MAX_TOKENS_PER_TEXT_TOKEN",
        "MAX_REPEATED_TOKENS",
        "MAX_SECONDS_AHEAD",
        "MAX_STREAMS",
        "STAGE_TIMEOUT_SECONDS",
        "SEQUENCE_IDLE_SECONDS",
        "MAX_MESSAGE_BYTES",
        "MAX_CONNECTION_SECONDS",
    ),
    gateway_limits: (
        "MAX_JSON_BYTES",
        "MAX_UPLOAD_BYTES",
        "BODY_SECONDS",
        "STALLED_SECONDS",
        "SOCKET_IDLE_SECONDS",
        "CONNECTIONS",
        "SHUTDOWN_SECONDS",
    ),
}
"""Limits that callers can meet; the modules have more."""

_MARKED = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.S)


def pages(folder: Path) -> dict[Path, str]:
    """Return each page that has generated tables, with its up-to-date text.

    Raises:
        ValueError: a page names an unknown table, or an item of a table has no description.
    """
    found = {path: path.read_text("utf-8") for path in sorted(folder.glob("*.md"))}
    return {path: _MARKED.sub(_filled, text) for path, text in found.items() if _MARKED.search(text)}


def _filled(match: re.Match[str]) -> str:
    if match[2] not in TABLES:
        raise ValueError(f"there is no table {match[2]!r}; there are {', '.join(TABLES)}")
    return f"{match[1]}{TABLES[match[2]]()}\n{match[3]}"


# --- settings


def _settings() -> str:
    told = attributes(Settings)
    profiles = {name: dict(_of_profiles(name)) for name in told}
    for field in fields(Settings):
        if field.name not in READERS:
            raise ValueError(f"docs_tables.READERS does not say which models use the setting {field.name}")
    return table(
        ("setting", "default", "used by", "meaning"),
        (
            (
                f"`{field.name}`",
                str(field.default) or "empty",
                ", ".join(READERS[field.name]),
                "; ".join(
                    [
                        cell(told[field.name]),
                        *(f"{value} in profile `{p}`" for p, value in profiles[field.name].items()),
                    ]
                ),
            )
            for field in fields(Settings)
        ),
    )


def _of_profiles(setting: str) -> Iterator[tuple[str, str]]:
    """Yield each profile that overrides the default, with its value, and its models if not all have it."""
    default = next(str(field.default) for field in fields(Settings) if field.name == setting)
    for profile in sorted(PROFILES):
        values = {model: of[setting] for model, of in _parameters(profile).items() if setting in of}
        other = {model: value for model, value in values.items() if value != default}
        for value in dict.fromkeys(other.values()):
            having = [model for model in other if other[model] == value]
            # A model whose configuration lacks the parameter uses the default.
            whole = set(having) >= set(READERS.get(setting, ()))
            yield profile, f"`{value}`" + ("" if whole else f" ({', '.join(having)})")


@cache
def _parameters(profile: str) -> dict[str, dict[str, str]]:
    found = {}
    for model in contracts.MODELS:
        config = text_format.Parse(render(model, profile, SAMPLE_RATE), pb.ModelConfig())
        found[model.name] = {name: value.string_value for name, value in config.parameters.items()}
    return found


def _gateway_settings() -> str:
    command: Any = typer.main.get_command(gateway)
    return table(
        ("option", "variable", "default", "meaning"),
        (
            (
                ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts)),
                f"`COSYSERVE_GATEWAY_{option.name.upper()}`",
                "none" if option.default is None else str(option.default).lower(),
                option.help,
            )
            for option in command.params
        ),
    )


# --- metrics


def _metrics() -> str:
    return table(
        ("metric", "kind", "labels", "meaning", "what to do"),
        (
            (f"`{m.name}`", m.kind, "; ".join(_label(*label) for label in m.labels.items()), m.description, m.advice)
            for m in vars(metrics).values()
            if isinstance(m, metrics.Metric)
        ),
    )


def _label(name: str, values: Sequence[str]) -> str:
    return f"`{name}`: {', '.join(f'`{value}`' for value in values)}"


def _gateway_metrics() -> str:
    families = list(text_string_to_metric_families(gateway_metrics.Metrics().exposition().decode()))
    named = [
        (f"{family.name}_total" if family.type == "counter" else family.name, family)
        for family in families
        if not family.name.endswith("_created")
    ]
    return table(
        ("metric", "kind", "meaning", "what to do"),
        ((f"`{name}`", of.type, of.documentation, gateway_metrics.ADVICE.get(name, "")) for name, of in named),
    )


# --- errors


def _errors(chosen: Callable[[str], bool]) -> Callable[[], str]:
    def made() -> str:
        kinds = [kind for kind in errors.CosyServeError.__subclasses__() if chosen(kind.code)]
        return table(
            ("error", "status", "meaning", "what to do"),
            ((f"`{kind.__name__}`", kind.code, summary(kind), labelled(kind, "What to do")) for kind in kinds),
        )

    return made


# --- bounds


def _bounds() -> str:
    return table(
        ("bound", "value", "meaning and reason"),
        (
            (f"`{name}`", _number(getattr(module, name)), _constants(module)[name])
            for module, names in BOUNDS.items()
            for name in names
        ),
    )


def _number(value: float) -> str:
    return f"{value:,.10g}"


@cache
def _constants(module: ModuleType) -> dict[str, str]:
    """Return the docstring below each constant of a module."""
    found: dict[str, str] = {}
    body = ast.parse(inspect.getsource(module)).body
    for node, text in pairwise(body):
        if isinstance(node, ast.Assign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found |= {ast.unparse(target): str(text.value.value) for target in node.targets}
    return found


# --- tensors


def _tensors(head: str, tensors: Sequence[contracts.Tensor]) -> Callable[[], str]:
    def made() -> str:
        return table((head, "type", "meaning"), ((f"`{t.name}`", _type(t), t.doc) for t in tensors))

    return made


def _type(tensor: contracts.Tensor) -> str:
    return f"{tensor.dtype}[{', '.join('n' if d < 0 else str(d) for d in tensor.dims)}]"


# --- GPUs


def _gpu_memory() -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for card, streams in gpu_memory.CARDS.items():
            for version in gpu_memory.VERSIONS:
                memory = gpu_memory.memory(version, card, streams)
                parts = (memory.contexts, memory.llm, memory.hift, memory.flow + memory.flow_calls, memory.flow_cache)
                held = (memory.streams(0), memory.streams(gpu_memory.PROMPT_FRAMES))
                yield (
                    f"{card} GiB, CosyVoice{version}",
                    str(streams),
                    *(f"{part / GIB:.1f}" for part in parts),
                    " / ".join(map(str, held)),
                )

    head = (
        "card",
        "`max_streams`, `llm_slots`",
        "contexts",
        "llm",
        "hift",
        "flow, its largest call",
        "flow cache",
        "streams",
    )
    return table(head, rows())


_OPERATORS = "FAILED_PRECONDITION"

TABLES: dict[str, Callable[[], str]] = {
    "settings": _settings,
    "settings of the gateway": _gateway_settings,
    "metrics of the server": _metrics,
    "metrics of the gateway": _gateway_metrics,
    "errors of clients": _errors(lambda code: code != _OPERATORS),
    "errors of operators": _errors(lambda code: code == _OPERATORS),
    "bounds": _bounds,
    "inputs of tts": _tensors("input", contracts.TTS.inputs),
    "outputs of tts": _tensors("output", contracts.TTS.outputs),
    "inputs of voices": _tensors("input", contracts.VOICES.inputs),
    "outputs of voices": _tensors("output", contracts.VOICES.outputs),
    "inputs of upstream's contract": _tensors("input", contracts.UPSTREAM[0].inputs),
    "outputs of upstream's contract": _tensors("output", contracts.UPSTREAM[0].outputs),
    "defects of Triton": triton_defects.table,
    "memory of GPUs": _gpu_memory,
    **api_tables.TABLES,
}
"""Tables by the name that pages use."""
