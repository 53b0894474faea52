"""One table of a TOML file, which knows its place in it: every complaint names the file and the key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar

from butterfly.errors import ConfigError

_Value = TypeVar("_Value")


def nearest(word: str, known: Iterable[str]) -> str:
    """'did you mean memory?', or what there is."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(names)}" if names else "there is none"


@dataclass(frozen=True)
class Table:
    """Keys and values. Each method raises ConfigError for a value of another type."""

    values: Mapping[str, object]
    file: str
    path: str = ""  # such as nodes[0]

    def where(self, key: str = "") -> str:
        """'cluster.toml: nodes[0].memory'"""
        path = ".".join(part for part in (self.path, key) if part)
        return f"{self.file}: {path}" if path else self.file

    def check_keys(self, *known: str) -> None:
        for key in self.values:
            if key not in known:
                raise ConfigError(f"{self.where(key)}: unknown key; {nearest(key, known)}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string; without a default it must be there."""
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(f"{self.where()}: needs {key}")
        if not isinstance(value, str):
            raise ConfigError(f"{self.where(key)}: must be a string in quotes, not {value!r}")
        return value

    def quantity(self, key: str, parse: Callable[[str, str], _Value], default: _Value | None = None) -> _Value:
        """A string with a number and a unit, as `parse` (text, where) reads it."""
        if key not in self.values and default is not None:
            return default
        return parse(self.text(key), self.where(key))

    def table(self, key: str) -> Table:
        """The table of that name; empty when there is none."""
        return self._table(self.values.get(key, {}), f"{key}")

    def tables(self, key: str) -> list[Table]:
        """Those of `[[key]]`."""
        values = self.values.get(key, [])
        if not isinstance(values, list):
            raise ConfigError(f"{self.where(key)}: must be tables, each under [[{key}]]")
        return [self._table(value, f"{key}[{index}]") for index, value in enumerate(values)]

    def _table(self, value: object, name: str) -> Table:
        path = f"{self.path}.{name}" if self.path else name
        if not isinstance(value, dict):
            raise ConfigError(f"{self.file}: {path}: must be a table")
        return Table(value, self.file, path)
