"""Rows that are given in Python and not read from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from jpt.data.labels import class_numbers, name_class
from jpt.data.rows import check_mapping, value_names
from jpt.errors import InputError, unknown_name
from jpt.tasks.task import SPLITS, Task


def with_rows(task: Task, data: Mapping[str, Iterable[Mapping[str, Any]]]) -> Task:
    """Gives a task its rows, in place of the folder or the hub they would come from."""
    for split in data:
        if split not in SPLITS:
            raise unknown_name("split", str(split), SPLITS)
    if not data:
        raise InputError(
            f'data of task {task.name} has no split; give {{"train": rows, "validation": rows}}'
        )
    rows = {split: _copy_rows(task, split, given) for split, given in data.items()}
    return replace(task, rows=rows, folder=None)


def describe_given(split: str) -> str:
    """Names the rows of a split for messages."""
    return f"rows given for {split}"


def _copy_rows(task: Task, split: str, given: Any) -> tuple[dict[str, Any], ...]:
    place = describe_given(split)
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        example = ", ".join(f'"{name}": ...' for name in value_names(task))
        raise InputError(
            f"{place} are of type {type(given).__name__}; give a list of rows such as {{{example}}}"
        )
    classes = class_numbers(_class_names(given, task), task)
    rows = []
    # A copy of each: a generator may yield one and the same dictionary, changed.
    for number, row in enumerate(given, start=1):
        copy = dict(check_mapping(row, f"{place}, row {number}"))
        if classes and task.label_field in copy:
            copy[task.label_field] = name_class(copy[task.label_field], classes)
        rows.append(copy)
    if not rows:
        raise InputError(f"{place} are none; task {task.name} needs at least one row for {split}")
    return tuple(rows)


def _class_names(given: object, task: Task) -> object:
    """The names of the classes where rows are a data set of ``datasets`` that knows them."""
    features = getattr(given, "features", None)
    feature = features.get(task.label_field) if isinstance(features, Mapping) else None
    return getattr(feature, "names", None)
