"""Reads single fields of a Hugging Face config, and says in one line what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jpt.errors import InputError

Fields = Mapping[str, Any]


def read_whole(fields: Fields, name: str, default: int | None = None, least: int = 1) -> int:
    """Reads a field that counts something."""
    value = _value(fields, name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(
            f"config.json: {name} is {value!r}; a whole number of at least {least} is expected"
        )
    return value


def read_number(
    fields: Fields, name: str, default: float | None = None, *, allow_zero: bool = False
) -> float:
    """Reads a field that measures something, such as a rate or a factor."""
    value = _value(fields, name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (0 < value < float("inf") or (allow_zero and value == 0)):
        least = "a number of at least 0" if allow_zero else "a number above 0"
        raise InputError(f"config.json: {name} is {value!r}; {least} is expected")
    return float(value)


def read_flag(fields: Fields, name: str, default: bool) -> bool:
    """Reads a field that is true or false."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"config.json: {name} is {value!r}; true or false is expected")
    return value


def read_choice(fields: Fields, name: str, known: Iterable[str], default: str) -> str:
    """Reads a field that names one of several things."""
    value = fields.get(name, default)
    if value not in list(known):
        raise InputError(f"config.json: {name} is {value!r}; known are {', '.join(known)}")
    return value


def _value(fields: Fields, name: str, default: Any) -> Any:
    if name not in fields and default is None:
        raise InputError(f"config.json has no field '{name}', which this model needs")
    return fields.get(name, default)
