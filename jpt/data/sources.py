"""The rows of a task, wherever they are: in a folder, built in, or on the hub; checked one by one.

Every reader yields the place of a row and its raw values; the checks are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jpt.data.builtin_rows import builtin_rows
from jpt.data.hub import describe_hub_split, read_hub_rows
from jpt.data.json_lines import read_json_lines
from jpt.errors import InputError, unknown_name
from jpt.tasks.task import SPLITS, Task

Reader = Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]

READERS: dict[str, Reader] = {".jsonl": read_json_lines}
"""How a file is read, by the end of its name."""


def read_rows(task: Task, split: str) -> list[dict[str, str]]:
    """Reads and checks the rows of one split of a task.

    Args:
        task: the task; its folder is read where it has one, else the built-in text or the hub.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        One dictionary a row: the task's fields, and its label under ``"label"``.

    Raises:
        InputError: a file is missing, broken or empty; a row misses a field, has no text in it
            or a label that the task does not name. Files are named with the line.

    Example:
        >>> from jpt.tasks.registry import load_task
        >>> len(read_rows(load_task("builtin/imdb"), "test"))
        1000
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if task.folder is None and task.is_builtin:
        return builtin_rows(task.name, split)
    place, rows = _open(task, split)
    checked = [_check_row(row, task, place, number) for number, row in rows]
    if not checked:
        raise InputError(f"{place} has no rows; task {task.name} needs at least one for {split}")
    return checked


def has_split(task: Task, split: str) -> bool:
    """Says whether a task has rows for a split, without reading them.

    Args:
        task: the task.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        False only for a folder that has no file for the split and names none.

    Example:
        >>> from jpt.tasks.registry import load_task
        >>> has_split(load_task("builtin/imdb"), "test")
        True
    """
    if task.folder is None or split in task.files:
        return True
    return any((task.folder / f"{split}{suffix}").exists() for suffix in READERS)


def _open(task: Task, split: str) -> tuple[str, Iterator[tuple[int, dict[str, Any]]]]:
    """The place for messages, and the rows with their numbers in it."""
    if task.folder is not None:
        file = find_file(task, task.folder, split)
        return str(file), READERS[file.suffix](file)
    if task.hub is None:
        raise InputError(
            f"task {task.name} has neither a folder nor a hub id; give a folder with its rows"
        )
    return describe_hub_split(task.hub, split), read_hub_rows(task, split)


def find_file(task: Task, folder: Path, split: str) -> Path:
    """Finds the file that holds a split.

    Args:
        task: may name its files itself.
        folder: where they are.
        split: the split that is wanted.

    Returns:
        The file.

    Raises:
        InputError: there is no such file, or none of a kind that is read.
    """
    known = ", ".join(READERS)
    if split in task.files:
        file = folder / task.files[split]
        if file.suffix not in READERS:
            raise InputError(f"{file} is no file of a kind that is read ({known})")
        candidates = [file]
    else:
        candidates = [folder / f"{split}{suffix}" for suffix in READERS]
    for file in candidates:
        if file.exists():
            return file
    found = sorted(path.name for path in folder.glob("*") if path.suffix in READERS)
    there = f"the folder has {', '.join(found)}" if found else f"the folder has no {known} files"
    raise InputError(f"task {task.name} has no {split} rows: {candidates[0]} is missing; {there}")


def _check_row(row: Mapping[str, Any], task: Task, place: str, number: int) -> dict[str, str]:
    checked = {}
    for name in task.fields:
        value = row.get(name)
        if not isinstance(value, str) or not value or value.isspace():
            raise _wrong_field(row, name, place, number)
        if not value.isascii():
            _check_letters(value, name, place, number)
        checked[name] = value
    label = task.label_of(row.get(task.label_field))
    if label is None:
        raise _wrong_label(row, task, place, number)
    checked["label"] = label
    return checked


def _check_letters(value: str, name: str, place: str, number: int) -> None:
    """Half of a surrogate pair, as a broken escape leaves it, cannot be tokenised."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}:{number}: field {name!r} has half a character ({error.object[error.start]!r})"
            f" at letter {error.start + 1}; both halves of a \\u escape are needed"
        ) from None


def _wrong_field(row: Mapping[str, Any], name: str, place: str, number: int) -> InputError:
    if name not in row:
        there = ", ".join(map(str, row)) or "nothing"
        return InputError(f"{place}:{number}: field {name!r} is missing; the row has {there}")
    value = row[name]
    if isinstance(value, str):
        return InputError(f"{place}:{number}: field {name!r} is empty; every row needs text there")
    kind = type(value).__name__
    return InputError(f"{place}:{number}: field {name!r} is of type {kind}; it must be text")


def _wrong_label(row: Mapping[str, Any], task: Task, place: str, number: int) -> InputError:
    name = task.label_field
    if name not in row:
        return _wrong_field(row, name, place, number)
    shown = repr(row[name])[:60]
    return InputError(
        f"{place}:{number}: label {shown} is none of the labels of task {task.name} "
        f"({', '.join(task.labels)})"
    )
