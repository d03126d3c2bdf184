"""What a row has to be: checks that are the same wherever rows come from, and their checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jpt.data.labels import find_label
from jpt.data.wording import list_names, nearest_names, show
from jpt.errors import InputError
from jpt.tasks.task import Task

Row = dict[str, Any]
"""A checked row: text of each field, and a text ``"label"`` or a tuple of texts ``"answers"``."""


def value_names(task: Task) -> tuple[str, ...]:
    """Names what a row of a task has to have: its fields, then its label or its answer."""
    return (*task.fields, task.label_field if task.answer_field is None else task.answer_field)


def check_row(row: object, task: Task, where: str) -> Row:
    """Checks one row and keeps what the task asks for."""
    values = check_mapping(row, where)
    checked: Row = {}
    for name in task.fields:
        checked[name] = _check_text(_value(values, name, where), f"field {name!r}", where)
    if task.answer_field is not None:
        value = _value(values, task.answer_field, where)
        checked["answers"] = _check_answers(value, f"field {task.answer_field!r}", where)
        return checked
    value = _value(values, task.label_field, where)
    label = find_label(value, task)
    if label is None:
        raise InputError(
            f"{where}: label {show(value)} is none of the labels of task {task.name} "
            f"({', '.join(task.labels)}){nearest_names(value, task.labels)}"
        )
    checked["label"] = label
    return checked


def check_mapping(row: object, where: str) -> Mapping[str, Any]:
    """Refuses a row that has no names for its values."""
    if isinstance(row, Mapping):
        return row
    raise InputError(
        f"{where}: a {type(row).__name__} stands there; each row must be a mapping of names to "
        "values (a DataFrame gives such rows by .to_dict('records'))"
    )


def check_columns(columns: Sequence[str], task: Task, where: str) -> None:
    """Refuses a table whose columns a task cannot be read from."""
    for name in value_names(task):
        if name not in columns:
            raise InputError(
                f"{where}: column {name!r} is missing among {list_names(columns) or 'none'}"
                f"{nearest_names(name, columns) or ';'} {', '.join(value_names(task))} are needed"
            )
    # Several columns without a name do no harm: spreadsheets leave them behind.
    twice = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    if twice:
        raise InputError(
            f"{where}: {columns.count(twice[0])} columns are called {show(twice[0])}; "
            "rename or remove all but one"
        )


def rows_checksum(rows: Iterable[Mapping[str, Any]]) -> str:
    """Computes a checksum of what rows say, in their order."""
    encode = json.JSONEncoder(sort_keys=True, check_circular=False).encode
    digest = hashlib.sha256()
    for row in rows:
        digest.update(encode(row).encode("ascii") + b"\n")
    return digest.hexdigest()[:16]


def _value(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name in row:
        return row[name]
    there = list_names(row) or "nothing"
    raise InputError(
        f"{where}: field {name!r} is missing; the row has {there}{nearest_names(name, row)}"
    )


def _check_text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        state = "is null" if value is None else f"is of type {type(value).__name__}"
        raise InputError(f"{where}: {what} {state}; it must be text")
    if not value or value.isspace():
        raise InputError(f"{where}: {what} is empty; every row needs text there")
    if not value.isascii():
        _check_letters(value, what, where)
    return str(value)


def _check_letters(value: str, what: str, where: str) -> None:
    """Half of a surrogate pair, as a broken escape leaves it, cannot be tokenised."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {what} has half a character ({error.object[error.start]!r})"
            f" at letter {error.start + 1}; both halves of a \\u escape are needed"
        ) from None


def _check_answers(value: Any, what: str, where: str) -> tuple[str, ...]:
    """One text, a list of texts, or SQuAD's mapping with a list of texts in it."""
    if isinstance(value, Mapping):
        if "text" not in value:
            there = list_names(value) or "nothing"
            raise InputError(f"{where}: {what} has {there} but no 'text' with the answers in it")
        value = value["text"]
    if isinstance(value, str):
        return (_check_text(value, what, where),)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        state = "is null" if value is None else f"is of type {type(value).__name__}"
        raise InputError(f"{where}: {what} {state}; it must be a text or a list of texts")
    if not value:
        raise InputError(f"{where}: {what} has no answer; give at least one, or leave the row out")
    return tuple(
        _check_text(answer, f"answer {number} of {what}", where)
        for number, answer in enumerate(value, start=1)
    )
