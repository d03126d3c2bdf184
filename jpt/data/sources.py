"""The rows of a task, wherever they are: given, in a folder, built in, or on the hub.

Every reader yields the number of a row and its raw values; the checks are the same for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jpt.data.builtin_rows import builtin_rows
from jpt.data.given_rows import describe_given, with_rows
from jpt.data.hub import describe_hub_split, read_hub_rows
from jpt.data.json_lines import read_json_lines, read_json_list
from jpt.data.parquet import read_parquet
from jpt.data.rows import Row, check_mapping, check_row
from jpt.data.tabular import read_delimited
from jpt.errors import InputError, unknown_name
from jpt.tasks.task import SPLITS, Task

Numbered = Iterator[tuple[int, Mapping[str, Any]]]
"""Rows with their numbers, as messages name them."""

BY_LINE, BY_ROW = "{}:{}", "{}, row {}"
"""How a message names the place of a row in what holds it."""


class Reader(NamedTuple):
    """How a kind of file is read."""

    read: Callable[[Path, Task], Numbered]  # gives the rows of a file for a task
    place: str  # how a row of it is named


READERS: dict[str, Reader] = {
    ".jsonl": Reader(lambda file, _: read_json_lines(file), BY_LINE),
    ".csv": Reader(read_delimited, BY_LINE),
    ".tsv": Reader(partial(read_delimited, delimiter="\t"), BY_LINE),
    ".parquet": Reader(read_parquet, BY_ROW),
    ".json": Reader(lambda file, _: read_json_list(file), BY_ROW),
}
"""How a file is read, by the end of its name."""

KINDS = f"{', '.join(list(READERS)[:-1])} or {list(READERS)[-1]}"


def read_rows(task: Task, split: str) -> list[Row]:
    """Reads and checks the rows of one split of a task.

    Args:
        task: the task; its own rows are taken where it has some, else its folder is read, else
            the built-in text or the hub.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        One dictionary a row: the task's fields, and its label under ``"label"`` or, where the
        answer is written, all right answers under ``"answers"``.

    Raises:
        InputError: a file is missing, broken or empty; a row misses a field, has no text in it
            or a label that the task does not name. Files are named with the line or the row.

    Example:
        >>> from jpt.tasks.registry import load_task
        >>> len(read_rows(load_task("builtin/imdb"), "test"))
        1000
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if task.rows is None and task.folder is None and task.is_builtin:
        return builtin_rows(task.name, split)
    name, place, rows = _open(task, split)
    checked = [check_row(row, task, place.format(name, number)) for number, row in rows]
    if not checked:
        raise InputError(f"{name} has no rows; task {task.name} needs at least one for {split}")
    return checked


def read_texts(task: Task, split: str) -> list[Row]:
    # Reads the texts of a split of a task with labels; labels are not looked at and need not be.
    stand_in = task.labels[0]
    if task.rows is None and task.folder is None and task.is_builtin:
        return [{**row, "label": stand_in} for row in builtin_rows(task.name, split)]
    name, place, rows = _open(task, split)
    checked = []
    for number, row in rows:
        where = place.format(name, number)
        values = {**check_mapping(row, where), task.label_field: stand_in}
        checked.append(check_row(values, task, where))
    if not checked:
        raise InputError(f"{name} has no rows; task {task.name} needs at least one for {split}")
    return checked


def has_split(task: Task, split: str) -> bool:
    """Says whether a task has rows for a split, without reading them."""
    if task.rows is not None:
        return split in task.rows
    if task.folder is None or split in task.files:
        return True
    return bool(_files_of(task.folder, split))


def attach_data(
    task: Task, data: str | Path | Mapping[str, Iterable[Mapping[str, Any]]] | None
) -> Task:
    """Gives a task other rows than its own: a folder of files, or rows in Python."""
    if data is None:
        return task
    if task.is_builtin:
        raise InputError(f"task {task.name} brings its own rows; leave data (--data) out")
    if isinstance(data, Mapping):
        return with_rows(task, data)
    if not isinstance(data, str | os.PathLike):
        raise InputError(
            f'data is of type {type(data).__name__}; give a folder, or rows as {{"train": rows}}'
        )
    folder = Path(data)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"folder {folder} {state}; give a folder with the rows of a task")
    return replace(task, folder=folder, rows=None)


def find_file(task: Task, folder: Path, split: str) -> Path:
    """Finds the file that holds a split."""
    if split not in task.files:
        found = _files_of(folder, split)
        if len(found) > 1:
            raise InputError(
                f"task {task.name} has more than one file of {split} rows: "
                f"{' and '.join(map(str, found))}; remove all but one, or name it under [files] in "
                f'task.toml: {split} = "{found[0].name}"'
            )
        if not found:
            raise _missing(task, folder, folder / f"{split}.jsonl", split)
        return found[0]
    file = folder / task.files[split]
    if file.suffix.lower() not in READERS:
        raise InputError(f"{file} is no file of a kind that is read ({KINDS})")
    if not os.path.exists(file):
        raise _missing(task, folder, file, split)
    return file


def _files_of(folder: Path, split: str) -> list[Path]:
    files = [folder / f"{split}{suffix}" for suffix in READERS]
    return [file for file in files if os.path.exists(file)]


def _missing(task: Task, folder: Path, file: Path, split: str) -> InputError:
    found = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in READERS)
    there = f"the folder has no {KINDS} files"
    if found:
        there = (
            f"the folder has {', '.join(found)}; add it (or {split} in {KINDS}), or name its file "
            "under [files] in task.toml"
        )
    return InputError(f"task {task.name} has no {split} rows: {file} is missing; {there}")


def _open(task: Task, split: str) -> tuple[str, str, Numbered]:
    """What holds the rows, how the place of a row in it is named, and the rows."""
    if task.rows is not None:
        if split not in task.rows:
            raise InputError(
                f"task {task.name} has no {split} rows: rows are given for "
                f"{', '.join(task.rows)}; give some for {split} too"
            )
        return describe_given(split), BY_ROW, enumerate(task.rows[split], start=1)
    if task.folder is not None:
        file = find_file(task, task.folder, split)
        reader = READERS[file.suffix.lower()]
        return str(file), reader.place, reader.read(file, task)
    if task.hub is None:
        raise InputError(
            f"task {task.name} has neither a folder nor a hub id; give a folder with its rows"
        )
    return describe_hub_split(task.hub, split), BY_ROW, read_hub_rows(task, split)
