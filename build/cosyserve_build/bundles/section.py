"""A mapping in a bundle's files, with checked lookups."""

from __future__ import annotations

from typing import Any

from cosyserve.errors import BundleError
from cosyserve_build.bundles.hyperyaml import CLASS


class Section:
    """A mapping in a file; errors of its lookups name file and key.

    Raises:
        BundleError: `data` is not a mapping. Methods raise it if a value is missing or of the wrong type.
    """

    def __init__(self, file: str, path: str, data: Any) -> None:
        self.file, self.path, self.data = file, path, data
        if not isinstance(data, dict):
            raise self.error("", f"expected a mapping, found {data!r}")

    def error(self, key: str, problem: str) -> BundleError:
        """Make the error for a key; the empty key is the mapping itself."""
        where = ".".join(part for part in (self.path, key) if part)
        return BundleError(f"{self.file}: {where or 'top level'}: {problem}")

    def get(self, key: str) -> Any:
        """Return the raw value of a required key."""
        if key not in self.data:
            raise self.error(key, "missing")
        return self.data[key]

    def section(self, key: str, cls: str | None = None) -> Section:
        """Return a nested mapping; with `cls`, it must build an object of that class."""
        inner = Section(self.file, f"{self.path}.{key}" if self.path else key, self.get(key))
        found = str(inner.data.get(CLASS, "a plain mapping")).rsplit(".", 1)[-1]
        if cls is not None and found != cls:
            raise self.error(key, f"expected class {cls}, found {found}")
        return inner

    def number(self, key: str) -> float:
        """Return a number."""
        value = self.get(key)
        try:  # as text: YAML 1.1 reads 1e-6 (no dot) as text, and float() would accept a bool
            return float(str(value))
        except ValueError:
            raise self.error(key, f"expected a number, found {value!r}") from None

    def integer(self, key: str) -> int:
        """Return an integer."""
        value = self.number(key)
        if value != int(value):
            raise self.error(key, f"expected an integer, found {value!r}")
        return int(value)

    def integers(self, key: str, count: int | None = None) -> tuple[int, ...]:
        """Return a list of integers, which must have `count` entries if that is given."""
        value = self.get(key)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.error(key, f"expected a list of integers, found {value!r}")
        if count is not None and len(value) != count:
            raise self.error(key, f"expected {count} entries, found {len(value)}")
        return tuple(value)

    def rows(self, key: str) -> tuple[tuple[int, ...], ...]:
        """Return a list of lists of integers."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.error(key, f"expected a list of lists, found {value!r}")
        inner = Section(self.file, f"{self.path}.{key}", {str(i): row for i, row in enumerate(value)})
        return tuple(inner.integers(name) for name in inner.data)

    def require(self, **fixed: object) -> None:
        """Check that keys have the only value that is implemented; an absent key means upstream's default."""
        for key, expected in fixed.items():
            if key in self.data and self.data[key] != expected:
                raise self.error(key, f"expected {expected!r}, found {self.data[key]!r}")
