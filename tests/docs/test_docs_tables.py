"""Generated tables of docs/: their content, and the check for stale pages."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, is_typeddict

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from cosyserve import codes, contracts, errors, limits, metrics
from cosyserve.runtimes.registry import ALL_STAGES, LLM_ALONE
from cosyserve.settings import Settings
from cosyserve_build.cli import app
from cosyserve_build.docs_tables import BOUNDS, READERS, TABLES
from cosyserve_client import AsyncClient, AsyncSession, Client, Session
from cosyserve_client.errors import ServerError
from cosyserve_gateway import conversation
from cosyserve_gateway import errors as gateway_errors
from cosyserve_gateway import limits as gateway_limits
from cosyserve_gateway.app import create_app
from cosyserve_gateway.cli import app as gateway
from cosyserve_gateway.metrics import ADVICE, Metrics
from cosyserve_gateway.settings import Settings as GatewaySettings
from cosyserve_gateway.speech import SpeechBody

OPTIONAL = ["labels", "what to do"]
PAGE = "# A page\n\n<!-- generated: bounds -->\n<!-- end -->\n\nSome prose.\n"


def cells(name: str) -> list[list[str]]:
    """The rows of a table, each with its cells."""
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in TABLES[name]().splitlines()[2:]]


def docs(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["docs", *map(str, arguments)])


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_a_cell_for_each_heading(name: str) -> None:
    head = [title.strip() for title in TABLES[name]().splitlines()[0].strip("|").split("|")]
    for row in cells(name):
        assert [title for title, cell in zip(head, row, strict=True) if not cell and title not in OPTIONAL] == []


def test_settings_have_their_defaults_and_those_of_the_profiles() -> None:
    rows = {row[0].strip("`"): row for row in cells("settings")}
    assert {name: row[1] for name, row in rows.items()} == {f.name: str(f.default) or "empty" for f in fields(Settings)}
    assert READERS.keys() == rows.keys()
    assert rows["precision"][3].endswith("not with onnx; `fp16` in profile `gpu`")
    assert rows["concurrency"][3].endswith("`2` (flow) in profile `cpu`; `32` in profile `gpu`")
    assert "profile" not in rows["max_hop"][3]


def test_the_gateways_settings_have_their_variables() -> None:
    command: Any = typer.main.get_command(gateway)
    assert [row[1] for row in cells("settings of the gateway")] == [
        f"`COSYSERVE_GATEWAY_{option.name.upper()}`" for option in command.params
    ]
    defaults = {row[0]: row[2] for row in cells("settings of the gateway")}
    assert defaults["`--port`"] == "8080"
    assert defaults["`--api-key`"] == "none"
    assert defaults["`--voice-changes`, `--no-voice-changes`"] == "true"


def test_metrics_have_their_kinds_and_every_label_its_values() -> None:
    rows = {row[0].strip("`"): row for row in cells("metrics of the server")}
    known = {m.name: m for m in vars(metrics).values() if isinstance(m, metrics.Metric)}
    assert {name: row[1] for name, row in rows.items()} == {name: m.kind for name, m in known.items()}
    for name, metric in known.items():
        for label, values in metric.labels.items():
            assert all(f"`{one}`" in rows[name][2] for one in (label, *values))


def test_the_gateways_metrics_have_their_kinds() -> None:
    types = re.findall(r"^# TYPE (\w+) (\w+)$", Metrics().exposition().decode(), re.M)
    known = {name: kind for name, kind in types if not name.endswith("_created")}
    assert {row[0].strip("`"): row[1] for row in cells("metrics of the gateway")} == known
    assert ADVICE.keys() <= known.keys()


def test_errors_have_their_statuses() -> None:
    rows = [*cells("errors of clients"), *cells("errors of operators")]
    kinds = {f"`{kind.__name__}`": kind.code for kind in errors.CosyServeError.__subclasses__()}
    assert {row[0]: row[1] for row in rows} == kinds
    assert {row[1] for row in cells("errors of operators")} == {"FAILED_PRECONDITION"}


def test_bounds_have_their_values_and_none_that_a_caller_can_meet_is_missing() -> None:
    known = vars(limits) | vars(gateway_limits)
    told = {row[0].strip("`"): float(row[1].replace(",", "")) for row in cells("bounds")}
    assert told == {name: known[name] for names in BOUNDS.values() for name in names}
    assert {name for name in known if re.match(r"MAX_.*(CHARS|BYTES|RATE|STREAMS|VOICES)$", name)} - {
        "MAX_WORD_CHARS"  # which refuses nothing
    } <= set(told)


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("inputs of tts", contracts.TTS.inputs),
        ("outputs of tts", contracts.TTS.outputs),
        ("inputs of voices", contracts.VOICES.inputs),
        ("outputs of voices", contracts.VOICES.outputs),
        ("inputs of upstream's contract", contracts.UPSTREAM[-1].inputs),
        ("outputs of upstream's contract", contracts.UPSTREAM[-1].outputs),
    ],
)
def test_tensors_have_their_types(name: str, tensors: tuple[contracts.Tensor, ...]) -> None:
    rows = cells(name)
    assert [row[0].strip("`") for row in rows] == [tensor.name for tensor in tensors]
    for row, tensor in zip(rows, tensors, strict=True):
        assert re.fullmatch(rf"{tensor.dtype}\[[n\d, ]+\]", row[1])
        assert row[1].count(",") == len(tensor.dims) - 1


def test_the_tables_of_the_api_have_what_the_code_declares() -> None:
    assert [row[0] for row in cells("modes")] == [f"`{mode}`" for mode in contracts.MODES]
    assert [re.findall(r"`(\w+)`", row[0]) for row in cells("runtimes")] == [
        *(["runtime", name] for name in ALL_STAGES),
        *(["llm_runtime", name] for name in LLM_ALONE),
    ]
    assert [row[0].strip("`") for row in cells("fields of a speech request")] == list(SpeechBody.model_fields)
    (action,) = (row[2] for row in cells("inputs of voices") if row[0] == "`action`")
    assert re.findall(r"`(\w+)`", action) == list(contracts.ACTIONS)


def test_every_status_of_a_client_has_its_class() -> None:
    rows = {row[1].strip("`"): row[0] for row in cells("statuses")}
    assert rows.keys() == {kind.__name__ for kind in ServerError.__subclasses__()}
    assert rows == {name: re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper() for name in rows}


def test_both_clients_have_the_methods_of_the_table() -> None:
    told = {row[0].strip("`").partition("(")[0] for row in cells("methods of the clients")}
    for client in (Client, AsyncClient):
        assert told == {name for name in dir(client) if not name.startswith("_")} - {"close"}
    told = {row[0].strip("`").partition("(")[0] for row in cells("methods of a session")}
    for kind in (Session, AsyncSession):
        assert told == {name for name in dir(kind) if not name.startswith("_")} - {"close", "aclose"}


def test_every_route_of_the_gateway_is_an_endpoint_of_the_table() -> None:
    told = {row[0].strip("`").split()[-1] for row in cells("endpoints of the gateway")}
    layer: Any = create_app(GatewaySettings())
    while not hasattr(layer, "routes"):
        layer = layer._app
    # The page's own files are no part of the API.
    assert told == {route.path for route in layer.routes if "." not in route.path}


def test_the_tables_have_every_message_of_the_websocket() -> None:
    models = {kind for kind in vars(conversation).values() if isinstance(kind, type) and issubclass(kind, BaseModel)}
    assert set(conversation.RECEIVED) == {kind for kind in models if "type" in kind.model_fields}
    typed = {kind for kind in vars(conversation).values() if is_typeddict(kind)}
    assert set(conversation.SENT) == {kind for kind in typed if "type" in kind.__annotations__}
    assert [row[0] for row in cells("messages from a WebSocket's client")] == [
        f"`{get_args(kind.model_fields['type'].annotation)[0]}`" for kind in conversation.RECEIVED
    ]
    sent = {row[0].strip("`"): re.findall(r"`(\w+)`", row[1]) for row in cells("messages from the gateway")}
    assert '"type": ' not in Path(conversation.__file__).read_text("utf-8")  # every message is one of these
    assert sent == {kind.__name__.lower(): list(kind.__annotations__)[1:] for kind in conversation.SENT}


def test_every_refusal_of_the_gateway_is_one_of_the_table() -> None:
    told = {(row[0], row[1].strip("`")) for row in cells("refusals of the gateway")}
    assert len(told) > 10
    assert {(str(code.http), code.http_code) for code in codes.CODES} <= told
    for file in Path(gateway_errors.__file__).parent.rglob("*.py"):
        assert file.name == "errors.py" or not re.search(r"\bApiError\(", file.read_text("utf-8")), file


def test_pages_are_written_and_checked(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    stale = docs(tmp_path, "--check")
    assert stale.exit_code == 1
    assert "make docs" in stale.stderr
    assert str(page) in stale.stderr
    assert page.read_text() == PAGE
    assert docs(tmp_path).exit_code == 0
    assert docs(tmp_path, "--check").exit_code == 0
    written = page.read_text()
    assert TABLES["bounds"]() in written
    assert written.startswith("# A page\n")
    assert written.endswith("<!-- end -->\n\nSome prose.\n")
    page.write_text(written.replace("4,096", "4,095"))
    assert docs(tmp_path, "--check").exit_code == 1


def test_a_table_that_there_is_not_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE.replace("bounds", "nonsense"))
    with pytest.raises(ValueError, match="no table 'nonsense'; there are settings"):
        raise docs(tmp_path).exception  # type: ignore[misc]
