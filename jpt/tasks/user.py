"""Tasks of one's own: a folder with a ``task.toml`` beside its rows.

The least that is needed::

    type = "sentiment"
    fields = ["text"]
    labels = ["bad", "good"]

    [label_words]
    bad = "terrible"
    good = "great"

Rows stand in ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, one JSON object a line with
the fields and a ``label``. What else may be said: ``name`` (the folder's), ``template`` (a segment
of text such as ``"{text}"``, or a list of two for a pair; the fields in their order), ``metric``
(``"accuracy"``), ``label_field`` (``"label"``), words that hold for one kind of model only under
``[label_words.roberta]``, and other file names under ``[files]``.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from jpt.errors import InputError, unknown_name
from jpt.tasks.task import MAX_SEGMENTS, SPLITS, Task

TASK_FILE = "task.toml"

KEYS = (
    "name",
    "type",
    "fields",
    "labels",
    "template",
    "label_words",
    "metric",
    "label_field",
    "files",
)


def load_user_task(folder: Path) -> Task:
    """Reads the definition of a task from its folder.

    Args:
        folder: a folder with a ``task.toml``.

    Returns:
        The task; its rows are read from the same folder.

    Raises:
        InputError: the file is not TOML, a key is unknown, missing or of the wrong kind, or the
            parts do not fit each other.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "task.toml").write_text('''
        ... type = "sentiment"
        ... fields = ["text"]
        ... labels = ["bad", "good"]
        ... label_words = {bad = "terrible", good = "great"}
        ... ''')
        >>> load_user_task(folder).words("bert")
        {'bad': 'terrible', 'good': 'great'}
    """
    file = folder / TASK_FILE
    table = _Table(file, _read_toml(file))
    fields = table.texts("fields")
    try:
        return Task(
            name=_name(table, folder),
            type=table.text("type"),
            fields=fields,
            labels=table.texts("labels"),
            templates={"encoder": _segments(table, fields)},
            label_words=_label_words(table),
            metric=table.text("metric", "accuracy"),
            folder=folder,
            files=_files(table),
            label_field=table.text("label_field", "label"),
        )
    except InputError as error:
        message = str(error)
        raise InputError(message if str(file) in message else f"{file}: {message}") from None


class _Table:
    """The keys of a task.toml, with an error that names the file for each wrong kind."""

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        self.file = file
        self.values = values
        for key in values:
            if key not in KEYS:
                raise InputError(f"{file}: {unknown_name('key', key, KEYS)}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if value is None:
            raise InputError(f'{self.file} has no {key!r}; add a line {key} = "..."')
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "a text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key)
        if value is None:
            raise InputError(f'{self.file} has no {key!r}; add a line {key} = ["...", "..."]')
        if not isinstance(value, list) or not value or not all(map(_is_text_or_number, value)):
            raise self.wrong(key, "a list of texts")
        return tuple(map(str, value))

    def table(self, key: str) -> dict[str, Any]:
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, f"a table [{key}]")
        return value

    def wrong(self, key: str, expected: str) -> InputError:
        return InputError(f"{self.file}: {key} is {self.values[key]!r}; it must be {expected}")


def _is_text_or_number(value: object) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool)
    return number or (isinstance(value, str) and bool(value.strip()))


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file} is not TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None


def _name(table: _Table, folder: Path) -> str:
    name = table.text("name", os.path.basename(os.path.abspath(folder)) or "task")
    if "/" in name or name != name.strip():
        raise InputError(f"{table.file}: name is {name!r}; use no slash and no blanks around it")
    return name


def _segments(table: _Table, fields: tuple[str, ...]) -> tuple[str, ...]:
    value = table.values.get("template")
    if value is None:
        if len(fields) > MAX_SEGMENTS:
            raise InputError(
                f"{table.file} has {len(fields)} fields and no 'template'; add one, for instance "
                f'template = "{{{fields[0]}}} {{{fields[1]}}} {{{fields[2]}}}"'
            )
        return tuple(f"{{{name}}}" for name in fields)
    return (table.text("template"),) if isinstance(value, str) else table.texts("template")


def _label_words(table: _Table) -> dict[str, dict[str, str]]:
    """Sorts words for all models (``label = "word"``) from tables for one (``[…roberta]``)."""
    words: dict[str, dict[str, str]] = {}
    for key, value in table.table("label_words").items():
        entries = value if isinstance(value, dict) else {key: value}
        for label, word in entries.items():
            if not isinstance(word, str) or not word.strip():
                raise InputError(
                    f"{table.file}: the label word of {label!r} is {word!r}; it must be one word"
                )
            words.setdefault(key if isinstance(value, dict) else "default", {})[label] = word
    return words


def _files(table: _Table) -> dict[str, str]:
    files = table.table("files")
    for split, name in files.items():
        if split not in SPLITS:
            raise InputError(f"{table.file}: [files] {unknown_name('split', split, SPLITS)}")
        if not isinstance(name, str) or not name:
            raise InputError(f"{table.file}: the file of {split} is {name!r}; give its name")
    return files
