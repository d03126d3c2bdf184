"""Reading values out of JSON that others wrote: what does not fit is told by file and place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jpt.errors import InputError
from jpt.files.reading import read_json


class Fields:
    """The fields of one JSON object, each taken with the kind that it has to have."""

    def __init__(self, value: Any, path: str | Path, cure: str, place: str = "") -> None:
        self.path, self.cure, self.place = path, cure, place
        if not isinstance(value, dict):
            raise self._error(place or "the whole file", value, "an object")
        self.value: Mapping[str, Any] = value

    def text(self, name: str) -> str | None:
        """Takes a text."""
        return self._take(name, str, "a text")

    def count(self, name: str) -> int | None:
        """Takes a whole number."""
        return self._take(name, int, "a whole number")

    def number(self, name: str) -> float:
        """Takes a number."""
        value = self._take(name, (int, float), "a number")
        return math.nan if value is None else float(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Takes a list of texts."""
        values = self._take(name, list, "a list of texts") or []
        if not all(isinstance(value, str) for value in values):
            raise self._error(self._at(name), values, "a list of texts")
        return tuple(values)

    def pair(self, name: str) -> tuple[float, float]:
        """Takes a list of two numbers."""
        values = self._take(name, list, "a list of two numbers")
        if values is None:
            return math.nan, math.nan
        known = [value for value in values if type(value) in (int, float) and math.isfinite(value)]
        if len(values) != 2 or known != values:
            raise self._error(self._at(name), values, "a list of two numbers")
        return float(known[0]), float(known[1])

    def fields(self, name: str) -> Fields:
        """Takes an object."""
        value = self.value.get(name)
        return Fields({} if value is None else value, self.path, self.cure, self._at(name))

    def numbers(self) -> dict[str, float]:
        """Takes every field as a number."""
        return {name: self.number(name) for name in self.value}

    def each(self) -> Iterator[tuple[str, Fields]]:
        """Takes every field as an object."""
        for name in self.value:
            yield name, self.fields(name)

    def _take(self, name: str, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self.value.get(name)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if value is not None and (wrong or (isinstance(value, float) and math.isinf(value))):
            raise self._error(self._at(name), value, expected)
        return value

    def _at(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def _error(self, place: str, value: Any, expected: str) -> InputError:
        came = repr(value)
        came = came if len(came) <= 60 else came[:57] + "..."
        return InputError(
            f"{self.path}: {place} is {came}; {expected} expected: make it again with {self.cure}"
        )


def read_fields(path: str | Path, cure: str) -> Fields | None:
    """Reads a JSON file that may be missing."""
    if not Path(path).exists():
        return None
    return Fields(read_json(path), path, cure)
