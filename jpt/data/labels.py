"""Which label a value in the data means, in each form that files and libraries give it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from jpt.tasks.task import Task

WHOLE_NUMBER = re.compile(r"(\d+)\.0+")
"""A class number as tables write it that keep it as a fraction."""


def find_label(value: object, task: Task) -> str | None:
    """Finds the label that a value means, in each form that files and libraries give it."""
    if value is None:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    try:
        labels = (task.label_of(reading) for reading in _readings(value))
        return next((label for label in labels if label is not None), None)
    except (ValueError, ArithmeticError):  # thousands of digits, infinite, not a number
        return None


def _readings(value: Any) -> Iterator[object]:
    """What a value may mean, the plainest first."""
    yield value
    if isinstance(value, str):
        lower = value.lower()
        if lower in ("true", "false"):  # some write True
            yield from (lower, int(lower == "true"))
        elif whole := WHOLE_NUMBER.fullmatch(value):
            yield whole[1]
    elif isinstance(value, bool):
        yield int(value)
    elif isinstance(value, float | Decimal) and value == int(value):
        yield int(value)


def class_numbers(names: object, task: Task) -> dict[int, str]:
    """Says what the numbers in a label column mean where the data itself names its classes."""
    # Names of which the task knows none are left aside, because there the numbers are the hub's.
    if not isinstance(names, list | tuple) or not any(name in task.labels for name in names):
        return {}
    return {number: str(name) for number, name in enumerate(names)}


def name_class(value: Any, names: Mapping[int, str]) -> Any:
    """Puts the name of a class in the place of its number."""
    return names.get(int(value), value) if isinstance(value, int | np.integer) else value
