"""docs/ says what the code does: names, types, defaults and bounds are compared; links, commands, code are checked."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

import cosyserve_gateway
from cosyserve import contracts, errors, limits, metrics, triton_defects
from cosyserve.cli import app
from cosyserve.settings import LLM_RUNTIMES, RUNTIMES, Settings
from cosyserve_build.cli import app as build_app
from cosyserve_client import AsyncClient, AsyncSession, Client, Session
from cosyserve_client.errors import ServerError
from cosyserve_gateway import conversation
from cosyserve_gateway import limits as gateway_limits
from cosyserve_gateway.app import create_app
from cosyserve_gateway.cli import app as gateway_app
from cosyserve_gateway.metrics import Metrics
from cosyserve_gateway.settings import Settings as GatewaySettings
from cosyserve_gateway.speech import SpeechBody

ROOT = Path(__file__).parents[2]
DOCS = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
LINKING = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "deploy/README.md", "build/cosyserve_build/demo_voice/README.md")),
]
COMMANDS = [
    (name, line)
    for name, text in DOCS.items()
    for block in re.findall(r"```sh\n(.*?)```", text, re.S)
    for line in block.replace("\\\n", "").splitlines()
]
PYTHON = [(name, code) for name, text in DOCS.items() for code in re.findall(r"```python\n(.*?)```", text, re.S)]
OURS: dict[str, typer.Typer] = {"cosyserve": app, "cosyserve-build": build_app, "cosyserve-gateway": gateway_app}
UNTESTED = {"pip", "locust", "tritonserver"}  # whose options are not ours


def unfenced(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", unfenced(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next of its level or above."""
    level, rest = re.split(rf"^(#+) {re.escape(heading)}$", DOCS[page], maxsplit=1, flags=re.M)[1:]
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.M)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def shown(tensor: contracts.Tensor) -> list[str]:
    return [f"`{tensor.name}`", f"{tensor.dtype}[{', '.join('n' if d < 0 else str(d) for d in tensor.dims)}]"]


def parse(application: typer.Typer, arguments: list[str]) -> None:
    """Raises for a subcommand, an option or a value that there is not."""
    command: Any = typer.main.get_command(application)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context("", list(arguments))


@pytest.mark.parametrize("path", LINKING, ids=str)
def test_links_resolve(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", unfenced(path.read_text("utf-8"))):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link


def test_files_that_are_named_are_there() -> None:
    for name, text in DOCS.items():
        for path in re.findall(
            r"(?<![\w./-])(?:build|client|deploy|docker|loadtest|python_backends|tests)/[\w./-]*\w", text
        ):
            assert (ROOT / path).exists(), (name, path)


@pytest.mark.parametrize("model", [contracts.TTS, contracts.VOICES], ids=lambda model: model.name)
def test_every_tensor_is_told_with_its_type(model: contracts.Model) -> None:
    text = section("api", f"The model `{model.name}`")
    told = [row[:2] for row in rows(text)]
    for tensor in model.inputs:
        assert shown(tensor) in told
    for tensor in model.outputs:
        name, kind = shown(tensor)
        assert [name, kind] in told or f"output {name} ({kind})" in text


def test_upstreams_tensors_are_told_with_their_types() -> None:
    text = section("api", "`cosyvoice2` and `cosyvoice3`")
    told = [row[:2] for row in rows(text)]
    assert [shown(tensor) for tensor in contracts.COSYVOICE2.inputs] == told[2:]
    for tensor in contracts.COSYVOICE2.outputs:
        assert "{} ({})".format(*shown(tensor)) in text


def test_modes_and_actions_are_told() -> None:
    assert [row[0] for row in rows(section("api", "Modes"))[2:]] == [f"`{mode}`" for mode in contracts.MODES]
    (action,) = (row[2] for row in rows(section("api", "The model `voices`")) if row[0] == "`action`")
    assert re.findall(r"`(\w+)`", action) == list(contracts.ACTIONS)


def test_every_status_of_a_client_is_told() -> None:
    told = {row[0] for row in rows(section("api", "Statuses"))[2:]}
    raised = {re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper() for kind in ServerError.__subclasses__()}
    assert told == raised


def test_every_error_is_told_with_its_status() -> None:
    told = {row[0]: row[1] for row in rows(section("operations", "Errors"))}
    kinds = {f"`{kind.__name__}`": kind.code for kind in errors.CosyServeError.__subclasses__()}
    assert {name: told.get(name) for name in kinds} == kinds


def test_every_refusal_of_the_gateway_is_told() -> None:
    """Each ``ApiError(status, message, code)`` of its code."""
    told = {(row[0], row[1]) for row in rows(section("api", "Statuses over HTTP"))}
    calls = [
        call.args
        for file in Path(cosyserve_gateway.__file__).parent.glob("*.py")
        for call in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "ApiError"
    ]
    known = [
        (str(args[0].value), f"`{args[2].value}`")
        for args in calls
        if isinstance(args[0], ast.Constant) and isinstance(args[2], ast.Constant)
    ]
    assert len(known) > 10
    assert set(known) <= told


def test_every_setting_is_told_with_its_default() -> None:
    told = {row[0]: row[1] for row in rows(section("tuning", "Settings"))[2:]}
    assert told == {f"`{field.name}`": str(field.default) or "empty" for field in fields(Settings)}


def test_every_setting_of_the_gateway_is_told_with_its_default() -> None:
    told = {row[1]: (row[0], row[2]) for row in rows(section("api", "Settings of the gateway"))[2:]}
    command: Any = typer.main.get_command(gateway_app)
    for option in command.params:
        name, value = told.pop(f"`COSYSERVE_GATEWAY_{option.name.upper()}`")
        assert name == f"`{option.opts[0]}`"
        assert value == ("none" if option.default is None else str(option.default).lower())
    assert not told


def test_variables_that_are_named_exist() -> None:
    command: Any = typer.main.get_command(gateway_app)
    exist = {f"COSYSERVE_{field.name.upper()}" for field in fields(Settings)}
    exist |= {f"COSYSERVE_GATEWAY_{option.name.upper()}" for option in command.params}
    for path in LINKING:
        named = set(re.findall(r"\bCOSYSERVE_[A-Z_]+\b", path.read_text("utf-8")))
        assert named <= exist, path


def test_every_metric_of_the_server_is_told() -> None:
    known = {f"`{m.name}`": m.kind for m in vars(metrics).values() if isinstance(m, metrics.Metric)}
    told = {row[0]: row[1:] for row in rows(section("operations", "Metrics of the server"))[2:]}
    assert {name: cells[0] for name, cells in told.items()} == known


def test_every_label_of_the_server_is_told_with_its_values() -> None:
    told = {row[0]: row[2] for row in rows(section("operations", "Metrics of the server"))[2:]}
    for metric in (m for m in vars(metrics).values() if isinstance(m, metrics.Metric)):
        text = told[f"`{metric.name}`"]
        for label, values in metric.labels.items():
            named = [label] if label == "model" else [f"`{name}`" for name in (label, *values)]
            assert all(name in text for name in named), (metric.name, label)


def test_every_metric_of_the_gateway_is_told() -> None:
    types = re.findall(r"^# TYPE (\w+) (\w+)$", Metrics().exposition().decode(), re.M)
    known = {f"`{name}`": kind for name, kind in types if not name.endswith("_created")}
    assert {row[0]: row[1] for row in rows(section("operations", "Metrics of the gateway"))[2:]} == known


def test_every_route_of_the_gateway_is_told() -> None:
    told = re.findall(r"^\| `(?:[A-Z]+ )?(/\S*)`", section("api", "Endpoints"), re.M)
    # The page's own files are its affair.
    assert set(told) == {path for path in _routes() if "." not in path}


def _routes() -> set[str]:
    layer: Any = create_app(GatewaySettings())
    while not hasattr(layer, "routes"):
        layer = layer._app
    return {route.path for route in layer.routes}


def names(cell: str) -> list[str]:
    """What a cell has in backticks, arguments left out."""
    return re.findall(r"`(\w+)[^`]*`", cell)


def test_every_method_of_the_clients_is_told() -> None:
    told = {name for row in rows(section("api", "Python clients"))[2:] for name in names(row[0])}
    for client in (Client, AsyncClient):
        assert told == {name for name in dir(client) if not name.startswith("_")} - {"close"}
    (session,) = (row[1] for row in rows(section("api", "Python clients")) if "session(" in row[0])
    for kind in (Session, AsyncSession):
        assert set(names(session)) == {name for name in dir(kind) if not name.startswith("_")} - {"close", "aclose"}


def test_every_field_of_a_request_over_http_is_told() -> None:
    told = [row[0].strip("`") for row in rows(section("api", "Endpoints").partition("The body of")[2])[2:]]
    assert told == list(SpeechBody.model_fields)


def test_every_message_of_the_websocket_is_told() -> None:
    ours, theirs = section("api", "WebSocket").split("From the gateway:")
    told = {row[0].strip("`"): names(row[1]) for row in rows(ours)[2:]}
    kinds = (conversation.Config, conversation.Text, conversation.Flush, conversation.End, conversation.Cancel)
    fields = {get_args(kind.model_fields["type"].annotation)[0]: set(kind.model_fields) - {"type"} for kind in kinds}
    assert told.keys() == fields.keys()
    assert all(fields[kind] <= set(told[kind]) for kind in fields)
    sent = re.findall(r'"type": "(\w+)"|_tell\("(\w+)"\)', Path(conversation.__file__).read_text("utf-8"))
    assert {row[0].strip("`") for row in rows(theirs)[2:]} == {first or second for first, second in sent}


def test_the_defects_of_triton_are_told() -> None:
    assert triton_defects.table() in DOCS["triton"]


def test_every_runtime_is_told() -> None:
    told = [row[0].strip("`") for row in rows(section("tuning", "Runtimes and precision"))[2:]]
    assert told == [*RUNTIMES, *(f"llm_runtime` = `{name}" for name in LLM_RUNTIMES if name)]


def test_bounds_have_the_values_that_are_told() -> None:
    told = {
        row[0].strip("`"): float(row[1].replace(",", "")) for row in rows(section("security", "What is bounded"))[2:]
    }
    known = vars(limits) | vars(gateway_limits)
    assert told == {name: known[name] for name in told}
    assert {name for name in known if re.match(r"MAX_.*(CHARS|BYTES|RATE|STREAMS|VOICES)$", name)} - {
        "MAX_WORD_CHARS"  # which refuses nothing
    } <= set(told)


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_have_what_they_are_given(page: str, line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    program, *arguments = words
    if program in OURS:
        parse(OURS[program], arguments)
    elif program == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text("utf-8")
    elif program == "python":
        source = (ROOT / arguments[0]).read_text("utf-8")
        for option in (word for word in arguments if word.startswith("--")):
            assert f'"{option}"' in source
    elif program == "curl":
        assert re.sub(r"https?://[^/]+", "", arguments[0]) in _routes()
    else:
        assert program in UNTESTED


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_compiles_and_imports_what_there_is(page: str, code: str) -> None:
    tree = ast.parse(code)
    compile(tree, page, "exec")
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)):
        module = importlib.import_module(node.module or "")
        for name in node.names:
            assert hasattr(module, name.name)


def test_pages_do_not_stand_alone() -> None:
    """Each is linked from another page."""
    assert len(DOCS) >= 6
    links = {
        (path.parent / link.partition("#")[0]).resolve()
        for path in LINKING
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
        if not link.startswith("http")
    }
    assert {(ROOT / "docs" / f"{name}.md").resolve() for name in DOCS} <= links
