"""Generate the tables of docs/api.md on modes, clients and gateway, and the runtimes' table of docs/tuning.md."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from starlette.routing import WebSocketRoute

from cosyserve import codes, contracts
from cosyserve.runtimes.registry import LLM_ALONE, RUNTIMES, STAGES, Runtime
from cosyserve.versions import BUILT_IN
from cosyserve_build.markdown import attributes, labelled, summary, table
from cosyserve_client import base
from cosyserve_client.errors import ServerError
from cosyserve_gateway import conversation, errors
from cosyserve_gateway.app import create_app
from cosyserve_gateway.settings import Settings
from cosyserve_gateway.speech import SpeechBody

# --- modes and runtimes


def _modes() -> str:
    return table(
        ("mode", "needs", "refuses"),
        ((f"`{mode}`", needs, refuses) for mode, (needs, refuses) in contracts.MODES.items()),
    )


def _runtimes() -> str:
    return table(
        ("setting", "stages", "CosyVoice", "devices", "precisions", "extra"),
        (
            (
                f"`{'llm_runtime' if each.name in LLM_ALONE else 'runtime'}` = `{each.name}`",
                ", ".join(stage for stage in STAGES if stage in each.loaders),
                ", ".join(_versions(each)),
                ", ".join(each.devices),
                ", ".join(each.precisions),
                f"`{each.extra}`",
            )
            for each in RUNTIMES
        ),
    )


def _versions(runtime: Runtime) -> Iterator[str]:
    return (str(version.number) for version in BUILT_IN if runtime.runs(version))


# --- clients


def _methods(*kinds: type) -> Callable[[], str]:
    """Make a table of the public methods of `kinds`, in the order of their definition."""

    def rows() -> Iterator[Sequence[str]]:
        for kind in kinds:
            for name, method in vars(kind).items():
                if inspect.isfunction(method) and not name.startswith("_"):
                    yield f"`{name}({', '.join(_parameters(method))})`", summary(method)

    return lambda: table(("method", "does"), rows())


def _parameters(method: Callable[..., object]) -> Iterator[str]:
    """Yield a method's parameters without `self` and annotations."""
    keyword_only = False
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "*"
        yield str(parameter.replace(annotation=parameter.empty))


def _statuses() -> str:
    status = {code.client: code.status for code in codes.CODES}
    return table(
        ("status", "class", "when", "another try"),
        (
            (status[kind.__name__], f"`{kind.__name__}`", summary(kind), labelled(kind, "Another try"))
            for kind in ServerError.__subclasses__()
        ),
    )


# --- gateway


def _routes() -> str:
    """Routes with the first paragraph of their endpoint's docstring; the page's own files are left out."""
    layer: Any = create_app(Settings())
    while not hasattr(layer, "routes"):
        layer = layer._app
    return table(
        ("request", "answer"),
        ((f"`{_verb(each)} {each.path}`", _endpoint(each.endpoint)) for each in layer.routes if "." not in each.path),
    )


def _verb(route: Any) -> str:
    return "WebSocket" if isinstance(route, WebSocketRoute) else ", ".join(sorted(route.methods - {"HEAD"}))


def _endpoint(endpoint: Any) -> str:
    return summary(endpoint if inspect.isroutine(endpoint) else type(endpoint))


def _fields() -> str:
    told = attributes(SpeechBody)
    return table(("field", "meaning"), ((f"`{name}`", told[name]) for name in SpeechBody.model_fields))


def _messages(kinds: Sequence[Any]) -> Callable[[], str]:
    def rows() -> Iterator[Sequence[str]]:
        for kind in kinds:
            model = isinstance(kind, type) and issubclass(kind, BaseModel)
            types = {name: each.annotation for name, each in kind.model_fields.items()} if model else {}
            types = types or get_type_hints(kind)
            (name,) = get_args(types.pop("type"))
            yield f"`{name}`", ", ".join(_field(*each) for each in types.items()) or "none", summary(kind)

    return lambda: table(("type", "fields", "meaning"), rows())


def _field(name: str, kind: Any) -> str:
    """A field in a cell, with its values if they are a choice."""
    values = [f"`{value}`" for value in get_args(kind)] if get_origin(kind) is Literal else []
    return f"`{name}` ({' or '.join(values)})" if values else f"`{name}`"


def _refusals() -> str:
    kinds = [each for each in vars(errors).values() if isinstance(each, errors.Refusal)]
    known = {(each.status, each.code) for each in kinds}
    for code in codes.CODES:
        if (code.http, code.http_code) not in known:
            raise ValueError(f"cosyserve_gateway.errors has no Refusal({code.http}, {code.http_code!r}, ...)")
    return table(("status", "`code`", "when"), ((str(each.status), f"`{each.code}`", each.meaning) for each in kinds))


TABLES: dict[str, Callable[[], str]] = {
    "modes": _modes,
    "runtimes": _runtimes,
    "statuses": _statuses,
    "methods of the clients": _methods(base.BaseClient, base.ClientMethods),
    "methods of a session": _methods(base.SessionMethods),
    "endpoints of the gateway": _routes,
    "fields of a speech request": _fields,
    "messages from a WebSocket's client": _messages(conversation.RECEIVED),
    "messages from the gateway": _messages(conversation.SENT),
    "refusals of the gateway": _refusals,
}
"""Tables by the name that pages use; `cosyserve_build.docs_tables` writes them."""
