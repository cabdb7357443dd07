"""docs/architecture.md and CONTRIBUTING.md name existing files, symbols, make targets and test folders."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "python_backends" / "cosyserve"
CODE = ("python_backends", "build", "client", "docker", "loadtest")
ARCHITECTURE, CONTRIBUTING = PAGES = (ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

PATH = re.compile(r"(?<![\w.*/-])(?:\w[\w.-]*(?:/[\w.-]+)+|\w[\w-]*\.(?:py|md|toml))")
"""A path below the repository or the server's package, but not in a folder that git ignores."""

SYMBOL = re.compile(r"([\w./-]+\.py)(?: :: |::)(\w+(?:\.\w+)*)")
"""``file :: name``, and a test as pytest takes it."""

NAME = re.compile(r"_?[A-Z]\w*(?:\.\w+)*")
"""A class, a member of one or a constant, in backticks without its file."""


def quoted(page: Path) -> list[str]:
    """Yield the texts in backticks, and the lines of code blocks."""
    parts = re.split(r"^```\w*\n(.*?)^```", page.read_text("utf-8"), flags=re.S | re.M)
    spans = [" ".join(span.split()) for text in parts[::2] for span in re.findall(r"`([^`]+)`", text)]
    return spans + [line for block in parts[1::2] for line in block.splitlines()]


def section(page: Path, heading: str) -> str:
    """Return the text under a heading, up to the next one of its level or above."""
    level, rest = re.split(rf"^(#+) {re.escape(heading)}$", page.read_text("utf-8"), maxsplit=1, flags=re.M)[1:]
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.M)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of tables, their headings left out."""
    tables = re.findall(r"^\|.*\n\|[-| ]+\n((?:\|.*\n)*)", text, re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for table in tables for line in table.splitlines()]


def symbols(text: str) -> list[tuple[str, str]]:
    """Each ``file :: name`` of a text."""
    return SYMBOL.findall(" ".join(text.split()))


def located(name: str) -> Path:
    """The file or folder of this name, which need not exist."""
    return ROOT / name if (ROOT / name).exists() else LIBRARY / name


def sources() -> list[Path]:
    return [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def defined(file: Path) -> dict[str, ast.AST]:
    """Return the names that a file defines: functions, classes, constants, and ``Class.member``."""
    found: dict[str, ast.AST] = {}
    for name, node in _definitions(ast.parse(file.read_text("utf-8"))):
        found[name] = node
        if isinstance(node, ast.ClassDef):
            found |= {f"{name}.{member}": part for member, part in (*_attributes(node), *_definitions(node))}
    return found


def _definitions(owner: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((n.id, node) for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


def _attributes(owner: ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    """Yield the attributes that methods set on ``self``."""
    for node in ast.walk(owner):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr, node


@every_page
def test_paths_that_are_named_exist(page: Path) -> None:
    paths = {path for text in quoted(page) for path in PATH.findall(text)}
    assert len(paths) > 15
    assert not [path for path in sorted(paths) if not located(path).exists()]


@every_page
def test_symbols_that_are_named_are_defined_in_their_files(page: Path) -> None:
    named = [symbol for text in quoted(page) for symbol in symbols(text)]
    assert named
    missing = [f"{file} :: {name}" for file, name in named if name not in defined(located(file))]
    assert not missing


@every_page
def test_names_without_a_file_are_defined_somewhere(page: Path) -> None:
    known = {name for path in sources() for name in defined(path)}
    named = {text for text in quoted(page) if NAME.fullmatch(text) and not located(text).exists()}
    assert not named - known


@every_page
def test_make_targets_that_are_named_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    named = {name for text in quoted(page) for name in re.findall(r"^make ([\w-]+)", text)}
    assert named
    assert named <= set(targets)


@pytest.mark.parametrize("heading", ["One request", "One cancel"])
def test_every_hop_of_a_walk_names_its_symbol(heading: str) -> None:
    hops = rows(section(ARCHITECTURE, heading))
    assert len(hops) > 10
    assert not [hop for hop in hops if not symbols(hop[1])]


def test_every_row_of_caches_names_classes() -> None:
    caches = rows(section(ARCHITECTURE, "Caches"))
    assert len(caches) > 10
    for word, kinds, *_ in caches:
        named = [isinstance(defined(located(file))[name], ast.ClassDef) for file, name in symbols(kinds)]
        assert named, word
        assert all(named), word


def test_every_class_that_is_called_a_cache_has_a_row() -> None:
    """Except protocols, and `cosyserve.networks.guided.Cache`, the argument of one network call."""
    told = {name for row in rows(section(ARCHITECTURE, "Caches")) for _, name in symbols(row[1])}
    kinds = [node for path in sources() for node in defined(path).values() if isinstance(node, ast.ClassDef)]
    bases = {node.name: {ast.unparse(base) for base in node.bases} | {node.name} for node in kinds}
    assert {name for name in bases if name.endswith("Cache") and not bases[name] & {"Protocol", "Cache"}} <= told


def test_the_docs_list_every_folder_of_tests() -> None:
    folders = {f"`tests/{path.parent.name}`" for path in (ROOT / "tests").glob("*/test_*.py")}
    assert {row[0] for row in rows(section(CONTRIBUTING, "Test"))} >= folders


def test_links_of_contributing_resolve() -> None:
    """Links of docs/ are checked with the other pages."""
    links = re.findall(r"\]\(([^):#\s]+)(?:#([\w-]+))?\)", CONTRIBUTING.read_text("utf-8"))
    assert links
    for name, anchor in links:
        headings = re.findall(r"^#+ (.*)$", (ROOT / name).read_text("utf-8"), re.M)
        assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
