"""docs/ matches the code: links, commands, code blocks, and the tables that are not generated."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from cosyserve.cli import app
from cosyserve.settings import Settings
from cosyserve_build import docs_tables
from cosyserve_build.cli import app as build_app
from cosyserve_gateway.app import create_app
from cosyserve_gateway.cli import app as gateway_app
from cosyserve_gateway.settings import Settings as GatewaySettings

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
UNTESTED = {"locust", "nvidia-cuda-mps-control", "pip", "tritonserver"}  # whose options are not ours


def unfenced(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(text: str) -> set[str]:
    """Return GitHub's anchors of headings."""
    headings = re.findall(r"^#+ (.*)$", unfenced(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def parse(application: typer.Typer, arguments: list[str]) -> None:
    """Raise for an unknown subcommand, option or value."""
    command: Any = typer.main.get_command(application)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context("", list(arguments))


def test_every_table_of_the_code_is_on_a_page_and_fresh() -> None:
    asked = [name for text in DOCS.values() for name in re.findall("<!-- generated: (.*) -->", text)]
    assert sorted(asked) == sorted(docs_tables.TABLES)
    assert [path for path, text in docs_tables.pages(ROOT / "docs").items() if path.read_text("utf-8") != text] == []


@pytest.mark.parametrize("path", LINKING, ids=lambda path: path.name)
def test_links_resolve(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", unfenced(path.read_text("utf-8"))):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link


def test_variables_that_are_named_exist() -> None:
    command: Any = typer.main.get_command(gateway_app)
    exist = {f"COSYSERVE_{field.name.upper()}" for field in fields(Settings)}
    exist |= {f"COSYSERVE_GATEWAY_{option.name.upper()}" for option in command.params}
    for path in LINKING:
        named = set(re.findall(r"\bCOSYSERVE_[A-Z_]+\b", path.read_text("utf-8")))
        assert named <= exist, path


def _routes() -> set[str]:
    layer: Any = create_app(GatewaySettings())
    while not hasattr(layer, "routes"):
        layer = layer._app
    return {route.path for route in layer.routes}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_of_the_docs_parse(page: str, line: str) -> None:
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


def test_each_page_is_linked_from_another() -> None:
    """Each page is linked from another one."""
    assert len(DOCS) >= 6
    links = {
        (path.parent / link.partition("#")[0]).resolve()
        for path in LINKING
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
        if not link.startswith("http")
    }
    assert {(ROOT / "docs" / f"{name}.md").resolve() for name in DOCS} <= links
