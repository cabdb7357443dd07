"""Objects by name, imported when they are used: descriptions name what they do not need themselves."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from typing import Any


def resolve(name: str) -> Any:
    """The object called ``package.module:attribute``; raises as an import does."""
    module, _, attribute = name.partition(":")
    return attrgetter(attribute)(import_module(module))
