"""One mapping of a bundle's files."""

from __future__ import annotations

from typing import Any

from cosyserve.errors import BundleError
from cosyserve_build.bundles.hyperyaml import CLASS


class Section:
    """A mapping of a file, with lookups whose errors name file and key.

    Raises:
        BundleError: what lies there is no mapping; the methods raise it too, when a value is not what they promise.
    """

    def __init__(self, file: str, path: str, data: Any) -> None:
        self.file, self.path, self.data = file, path, data
        if not isinstance(data, dict):
            raise self.error("", f"expected a mapping, found {data!r}")

    def error(self, key: str, problem: str) -> BundleError:
        """What is wrong with a key; the empty key is the mapping itself."""
        where = ".".join(part for part in (self.path, key) if part)
        return BundleError(f"{self.file}: {where or 'top level'}: {problem}")

    def get(self, key: str) -> Any:
        """The value as it stands; it must be there."""
        if key not in self.data:
            raise self.error(key, "missing")
        return self.data[key]

    def section(self, key: str, cls: str | None = None) -> Section:
        """A mapping in this one; with `cls`, one that builds an object of that class."""
        inner = Section(self.file, f"{self.path}.{key}" if self.path else key, self.get(key))
        found = str(inner.data.get(CLASS, "a plain mapping")).rsplit(".", 1)[-1]
        if cls is not None and found != cls:
            raise self.error(key, f"expected class {cls}, found {found}")
        return inner

    def number(self, key: str) -> float:
        """A number."""
        value = self.get(key)
        try:  # through text: YAML 1.1 reads 1e-6 (no dot) as such, and a bool is no number
            return float(str(value))
        except ValueError:
            raise self.error(key, f"expected a number, found {value!r}") from None

    def integer(self, key: str) -> int:
        """A whole number."""
        value = self.number(key)
        if value != int(value):
            raise self.error(key, f"expected a whole number, found {value!r}")
        return int(value)

    def integers(self, key: str, count: int | None = None) -> tuple[int, ...]:
        """A list of whole numbers, `count` of them if that is given."""
        value = self.get(key)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.error(key, f"expected a list of whole numbers, found {value!r}")
        if count is not None and len(value) != count:
            raise self.error(key, f"expected {count} entries, found {len(value)}")
        return tuple(value)

    def rows(self, key: str) -> tuple[tuple[int, ...], ...]:
        """A list of lists of whole numbers."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.error(key, f"expected a list of lists, found {value!r}")
        inner = Section(self.file, f"{self.path}.{key}", {str(i): row for i, row in enumerate(value)})
        return tuple(inner.integers(name) for name in inner.data)

    def require(self, **fixed: object) -> None:
        """Refuse values that the networks here do not implement; an absent key means upstream's default."""
        for key, expected in fixed.items():
            if key in self.data and self.data[key] != expected:
                raise self.error(key, f"expected {expected!r}, found {self.data[key]!r}")
