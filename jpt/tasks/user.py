"""User-defined tasks: task.toml."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from jpt.config import SPLITS
from jpt.errors import InputError, unknown_name
from jpt.tasks.task import LAYOUTS, MAX_SEGMENTS, Task

TASK_FILE = "task.toml"

KEYS = (
    "name",
    "type",
    "fields",
    "labels",
    "template",
    "templates",
    "label_words",
    "metric",
    "label_field",
    "answer",
    "answer_tokens",
    "max_tokens",
    "files",
)
OF_LABELS = ("labels", "label_words", "label_field")
"""Keys that generative tasks do not have."""


def load_user_task(folder: Path) -> Task:
    """Load the task of a folder."""
    file = folder / TASK_FILE
    table = _Table(file, _read_toml(file))
    fields = table.texts("fields")
    is_generative = "answer" in table.values
    target = _answer(table) if is_generative else _labels(table)
    try:
        return Task(
            name=_name(table, folder),
            type=table.text("type"),
            fields=fields,
            templates=_templates(table, fields, "encoder_decoder" if is_generative else "encoder"),
            metric=table.text("metric", "rougeL" if is_generative else "accuracy"),
            folder=folder,
            files=_files(table),
            max_tokens=table.values.get("max_tokens"),
            **target,
        )
    except InputError as error:
        message = str(error)
        raise InputError(message if str(file) in message else f"{file}: {message}") from None


class _Table:
    """Keys of a task.toml, with type checks that name the file."""

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

    def texts(self, key: str, otherwise: str = "") -> tuple[str, ...]:
        value = self.values.get(key)
        if value is None:
            cure = f'add a line {key} = ["...", "..."]'
            raise InputError(f"{self.file} has no {key!r}; {cure}{otherwise}")
        if not isinstance(value, list) or not value or not all(map(_is_text_or_number, value)):
            raise self.wrong(key, "a list of texts")
        return tuple(map(str, value))

    def table(self, key: str) -> dict[str, Any]:
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, f"a table [{key}]")
        return value

    def named_table(self, key: str, kind: str, known: tuple[str, ...]) -> dict[str, Any]:
        """Return a table with known keys; hint at top-level keys that ended up in it."""
        table = self.table(key)
        for name in table:
            if name not in known:
                misplaced = f"; move {name} above the first [table]" if name in KEYS else ""
                error = unknown_name(kind, name, known)
                raise InputError(f"{self.file}: [{key}] {error}{misplaced}")
        return table

    def wrong(self, key: str, expected: str) -> InputError:
        return InputError(f"{self.file}: {key} is {self.values[key]!r}; expected {expected}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_text_or_number(value: object) -> bool:
    return _is_text(value) or (isinstance(value, int) and not isinstance(value, bool))


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
        raise InputError(f"{table.file}: name is {name!r}; use no slash and no outer spaces")
    return name


def _labels(table: _Table) -> dict[str, Any]:
    """Read the keys of a classification task."""
    if "answer_tokens" in table.values:
        raise InputError(
            f"{table.file} has answer_tokens but no answer; add the field to generate, "
            'answer = "...", or remove answer_tokens'
        )
    return {
        "labels": table.texts("labels", ', or answer = "..." for a generative task'),
        "label_words": _label_words(table),
        "label_field": table.text("label_field", "label"),
    }


def _answer(table: _Table) -> dict[str, Any]:
    """Read the keys of a generative task."""
    for key in OF_LABELS:
        if key in table.values:
            raise InputError(
                f"{table.file} has {key} and answer; a task has either labels or an answer to "
                "generate: remove one of the two"
            )
    answer = table.text("answer")
    if "answer_tokens" not in table.values:
        raise InputError(
            f"{table.file} has no 'answer_tokens'; add the longest answer in tokens, for instance "
            "answer_tokens = 50"
        )
    tokens = table.values["answer_tokens"]
    return {"labels": (), "answer_field": answer, "answer_tokens": tokens}


def _templates(table: _Table, fields: tuple[str, ...], base: str) -> dict[str, tuple[str, ...]]:
    """Return the templates by layout; ``template`` is that of the base layout."""
    given = table.named_table("templates", "layout", LAYOUTS)
    templates = {
        layout: _segments(table, f"templates.{layout}", of) for layout, of in given.items()
    }
    if "template" in table.values:
        if base in templates:
            raise InputError(
                f"{table.file} has template and [templates] {base}, which mean the same; remove "
                "one of the two"
            )
        templates[base] = _segments(table, "template", table.values["template"])
    if base not in templates:
        templates[base] = _fields_alone(table, fields)
    return templates


def _fields_alone(table: _Table, fields: tuple[str, ...]) -> tuple[str, ...]:
    if len(fields) > MAX_SEGMENTS:
        raise InputError(
            f"{table.file} has {len(fields)} fields and no 'template'; add one, for instance "
            f'template = "{{{fields[0]}}} {{{fields[1]}}} {{{fields[2]}}}"'
        )
    return tuple(f"{{{name}}}" for name in fields)


def _segments(table: _Table, key: str, value: object) -> tuple[str, ...]:
    segments = value if isinstance(value, list) else [value]
    if not segments or not all(map(_is_text, segments)):
        raise InputError(
            f"{table.file}: {key} is {value!r}; expected a text or a list of texts, for instance "
            '"{field}"'
        )
    return tuple(segments)


def _label_words(table: _Table) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the label words by model type; ``default`` has those outside of a table."""
    words: dict[str, dict[str, tuple[str, ...]]] = {}
    for key, value in table.table("label_words").items():
        entries = value if isinstance(value, dict) else {key: value}
        for label, given in entries.items():
            of = given if isinstance(given, list) else [given]
            if not of or not all(map(_is_text, of)):
                raise InputError(
                    f"{table.file}: the label word of {label!r} is {given!r}; expected a word or a "
                    "list of words"
                )
            words.setdefault(key if isinstance(value, dict) else "default", {})[label] = tuple(of)
    return words


def _files(table: _Table) -> dict[str, str]:
    files = table.named_table("files", "split", SPLITS)
    for split, name in files.items():
        if not isinstance(name, str) or not name:
            raise InputError(f"{table.file}: the file of {split} is {name!r}; give its name")
    return files
