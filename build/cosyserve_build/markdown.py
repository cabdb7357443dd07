"""Tables in Markdown, from docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table without a newline at its end."""
    lines = [head, *([cell(text) for text in row] for row in rows)]
    first, *others = (f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)
    return "\n".join([first, f"|{'---|' * len(head)}", *others])


def cell(text: str) -> str:
    """Convert a docstring or help text to a cell: one line, Markdown literals, no full stop at the end."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").split()).rstrip(".")


def summary(documented: object) -> str:
    """Return the first paragraph of a docstring.

    Raises:
        ValueError: there is none.
    """
    text = inspect.cleandoc(getattr(documented, "__doc__", None) or "").partition("\n\n")[0]
    if not text:
        raise ValueError(f"{documented} has no docstring")
    return text


def labelled(documented: object, label: str) -> str:
    """Return the paragraph of a docstring that begins with a label, without the label; empty if there is none."""
    text = inspect.cleandoc(getattr(documented, "__doc__", None) or "")
    found = re.search(rf"^{label}: (.*?)(?:\n\n|\Z)", text, re.S | re.M)
    return found[1] if found else ""


def attributes(kind: type) -> dict[str, str]:
    """Return the description of each attribute in the docstring of a class."""
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    return dict(re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", listed, flags=re.S | re.M))
