"""Read HyperPyYAML files as plain data: nothing that they name is imported or executed."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cosyserve.errors import BundleError

CLASS = "__class__"  # key under which a tagged value keeps the name that upstream would import
ARGS = "__args__"  # key under which a tagged list or scalar keeps its content


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a HyperPyYAML file: ``!new:``, ``!name:`` and ``!apply:`` become dicts with the name; resolve ``!ref``.

    Raises:
        BundleError: the file is not YAML or not a mapping, or has an unknown tag, or a missing or circular reference.
    """
    try:
        data = yaml.load(path.read_text("utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise BundleError(f"{path.name}: not readable as YAML: {problem}") from problem
    if not isinstance(data, dict):
        raise BundleError(f"{path.name}: expected a mapping at the top")
    try:
        return {key: _resolved(value, data) for key, value in data.items()}
    except (LookupError, RecursionError, ValueError) as problem:
        raise BundleError(f"{path.name}: {problem.args[0]}") from problem


# --- Tags -----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML's plain types and HyperPyYAML's tags."""


class _Ref(str):
    """Text of a ``!ref``, resolved after the whole file is read."""


def _plain(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)
    return loader.construct_scalar(node)


def _tagged(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    value = _plain(loader, node)
    return {CLASS: name, **value} if isinstance(value, dict) else {CLASS: name, ARGS: value}


def _ref(loader: yaml.SafeLoader, node: yaml.Node) -> _Ref:
    return _Ref(_plain(loader, node))


for _prefix in ("!new:", "!name:", "!apply:"):
    _Loader.add_multi_constructor(_prefix, _tagged)
for _tag in ("!ref", "!copy"):
    _Loader.add_constructor(_tag, _ref)
_Loader.add_constructor("!tuple", _plain)


# --- References -----------------------------------------------------------------------------------------------------


def _resolved(value: Any, root: dict[str, Any], via: tuple[str, ...] = ()) -> Any:
    """Replace every reference in `value` by its target in `root`; `via` lists the references followed so far."""
    if isinstance(value, _Ref):
        return _referred(value, root, via)
    if isinstance(value, dict):
        return {key: _resolved(item, root, via) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, root, via) for item in value]
    return value


def _referred(ref: _Ref, root: dict[str, Any], via: tuple[str, ...]) -> Any:
    """Return the target of one reference, arithmetic over references as a number, anything else as text."""
    whole = re.fullmatch(r"\s*<([^<>]+)>\s*", ref)
    if whole:
        return _target(whole[1], root, via)
    filled = re.sub(r"<([^<>]+)>", lambda match: str(_target(match[1], root, via)), ref)
    try:
        return _arithmetic(ast.parse(filled.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return filled


def _target(path: str, root: dict[str, Any], via: tuple[str, ...]) -> Any:
    if path in via:
        raise ValueError(f"!ref <{path}> points at itself")
    via = (*via, path)
    value: Any = root
    for key in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, _Ref):
            value = _referred(value, root, via)
        try:
            value = value[int(key) if isinstance(value, list) else key]
        except (LookupError, TypeError, ValueError):
            raise LookupError(f"!ref <{path}> points at nothing") from None
    return _resolved(value, root, via)


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _arithmetic(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_arithmetic(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        result: int | float = _OPERATORS[type(node.op)](_arithmetic(node.left), _arithmetic(node.right))
        return result
    raise ValueError("not arithmetic")
