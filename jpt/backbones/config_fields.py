"""Reads single fields of a Hugging Face config, and says in one line what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jpt.errors import InputError

Fields = Mapping[str, Any]


def read_whole(fields: Fields, name: str, default: int | None = None, least: int = 1) -> int:
    """Reads a field that counts something.

    Args:
        fields: the parsed ``config.json``, or a part of it.
        name: of the field.
        default: taken where the field is absent; None makes it necessary.
        least: the smallest value that makes sense.

    Returns:
        The number.

    Raises:
        InputError: where the field is absent without a default, or no such number.

    Example:
        >>> read_whole({"n_layer": 12}, "n_layer")
        12
    """
    value = _value(fields, name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(
            f"config.json: {name} is {value!r}; a whole number of at least {least} is expected"
        )
    return value


def read_number(
    fields: Fields, name: str, default: float | None = None, *, allow_zero: bool = False
) -> float:
    """Reads a field that measures something, such as a rate or a factor.

    Args:
        fields: the parsed ``config.json``, or a part of it.
        name: of the field.
        default: taken where the field is absent; None makes it necessary.
        allow_zero: whether 0 makes sense.

    Returns:
        The number.

    Raises:
        InputError: where the field is absent without a default, or no positive number.

    Example:
        >>> read_number({"factor": 8}, "factor")
        8.0
    """
    value = _value(fields, name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (0 < value < float("inf") or (allow_zero and value == 0)):
        least = "a number of at least 0" if allow_zero else "a number above 0"
        raise InputError(f"config.json: {name} is {value!r}; {least} is expected")
    return float(value)


def read_flag(fields: Fields, name: str, default: bool) -> bool:
    """Reads a field that is true or false.

    Args:
        fields: the parsed ``config.json``.
        name: of the field.
        default: taken where the field is absent.

    Returns:
        The value.

    Raises:
        InputError: where it is something else.

    Example:
        >>> read_flag({}, "mlp_bias", default=False)
        False
    """
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"config.json: {name} is {value!r}; true or false is expected")
    return value


def read_choice(fields: Fields, name: str, known: Iterable[str], default: str) -> str:
    """Reads a field that names one of several things.

    Args:
        fields: the parsed ``config.json``.
        name: of the field.
        known: what it may name.
        default: taken where the field is absent.

    Returns:
        The name.

    Raises:
        InputError: for another name, with those that are known.

    Example:
        >>> read_choice({"hidden_act": "silu"}, "hidden_act", ["relu", "silu"], "relu")
        'silu'
    """
    value = fields.get(name, default)
    if value not in list(known):
        raise InputError(f"config.json: {name} is {value!r}; known are {', '.join(known)}")
    return value


def _value(fields: Fields, name: str, default: Any) -> Any:
    if name not in fields and default is None:
        raise InputError(f"config.json has no field '{name}', which this model needs")
    return fields.get(name, default)
