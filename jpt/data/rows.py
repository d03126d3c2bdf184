"""Rows of a task from files, the hub or memory: labels, checks, and what is odd about them."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jpt.config import SPLITS
from jpt.data.builtin import builtin_rows
from jpt.data.formats import (
    KINDS,
    READERS,
    Positioned,
    class_numbers,
    list_names,
    name_class,
    nearest_names,
    show,
    value_names,
)
from jpt.errors import InputError, unknown_name, warn_data
from jpt.tasks.task import PARQUET_BRANCH, HubSource, Task, is_number

# --- Checks and checksum

Row = dict[str, Any]
"""Checked row: text of each field, and a text ``"label"`` or a tuple of texts ``"answers"``."""


def check_row(row: object, task: Task, where: str) -> Row | None:
    """Check a row and return the values that the task needs; None for a row without a label."""
    values = check_mapping(row, where)
    checked: Row = {}
    for name in task.fields:
        checked[name] = _check_text(_value(values, name, where), f"field {name!r}", where)
    if task.answer_field is not None:
        value = _value(values, task.answer_field, where)
        checked["answers"] = _check_answers(value, f"field {task.answer_field!r}", where)
        return checked
    value = _value(values, task.label_field, where)
    label = task.label_of(value)
    if label is None:
        if task.is_unlabelled(value):
            return None
        raise InputError(
            f"{where}: label {show(value)} is not a label of task {task.name} "
            f"({', '.join(task.labels)}){task.describe_numbers(value)}"
            f"{nearest_names(value, task.labels)}"
        )
    checked["label"] = label
    return checked


def check_mapping(row: object, where: str) -> Mapping[str, Any]:
    """Return a row if it is a mapping; raise InputError otherwise."""
    if isinstance(row, Mapping):
        return row
    raise InputError(
        f"{where}: expected a mapping of names to values, got {type(row).__name__} "
        "(for a DataFrame use .to_dict('records'))"
    )


def rows_checksum(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a checksum of the rows' content in order."""
    encode = json.JSONEncoder(sort_keys=True, check_circular=False).encode
    digest = hashlib.sha256()
    for row in rows:
        digest.update(encode(row).encode("ascii") + b"\n")
    return digest.hexdigest()[:16]


def _value(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name in row:
        return row[name]
    names = list_names(row) or "nothing"
    raise InputError(
        f"{where}: field {name!r} is missing; the row has {names}{nearest_names(name, row)}"
    )


def _check_text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        state = "is null" if value is None else f"is of type {type(value).__name__}"
        raise InputError(f"{where}: {what} {state}; expected text")
    if not is_visible(value):
        state = (
            "is empty" if not value.strip() else f"has no visible character, {ascii(value)[:60]}"
        )
        raise InputError(f"{where}: {what} {state}; expected text in every row")
    if not value.isascii():
        _check_letters(value, what, where)
    return str(value)


BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols that are drawn as spaces."""


def is_visible(text: str) -> bool:
    """Return whether a text is more than spaces, control and format characters and bare marks."""
    return any(
        (kind := unicodedata.category(character)) not in ("Cc", "Cf")
        and kind[0] not in "MZ"
        and character not in BLANKS
        for character in text
    )


def _check_letters(value: str, what: str, where: str) -> None:
    """Raise InputError for half of a surrogate pair, which cannot be tokenised."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {what} has half of a surrogate pair ({error.object[error.start]!r})"
            f" at character {error.start + 1}; write both \\u escapes"
        ) from None


def _check_answers(value: Any, what: str, where: str) -> tuple[str, ...]:
    """Return the answers of a text, a list of texts, or SQuAD's mapping with such a list."""
    if isinstance(value, Mapping):
        if "text" not in value:
            names = list_names(value) or "nothing"
            raise InputError(f"{where}: {what} has {names} but no 'text' with the answers")
        value = value["text"]
    if isinstance(value, str):
        return (_check_text(value, what, where),)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        state = "is null" if value is None else f"is of type {type(value).__name__}"
        raise InputError(f"{where}: {what} {state}; expected a text or a list of texts")
    if not value:
        raise InputError(f"{where}: {what} has no answer; give at least one, or remove the row")
    return tuple(
        _check_text(answer, f"answer {number} of {what}", where)
        for number, answer in enumerate(value, start=1)
    )


# --- Rows given in Python


def with_rows(task: Task, data: Mapping[str, Iterable[Mapping[str, Any]]]) -> Task:
    """Return a task with rows given in Python."""
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
    """Return the name of given rows in messages."""
    return f"rows given for {split}"


def _copy_rows(task: Task, split: str, given: Any) -> tuple[dict[str, Any], ...]:
    where = describe_given(split)
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        example = ", ".join(f'"{name}": ...' for name in value_names(task))
        raise InputError(
            f"{where} are of type {type(given).__name__}; give a list of rows such as {{{example}}}"
        )
    classes = class_numbers(_given_class_names(given, task), task, where)
    rows = []
    # Copied, because a generator may yield one dictionary that it modifies.
    for number, row in enumerate(given, start=1):
        copy = dict(check_mapping(row, f"{where}, row {number}"))
        if classes and task.label_field in copy:
            copy[task.label_field] = name_class(copy[task.label_field], classes)
        rows.append(copy)
    if not rows:
        raise InputError(f"{where} are empty; task {task.name} needs at least one")
    return tuple(rows)


def _given_class_names(given: object, task: Task) -> object:
    """Return the class names of a data set of the ``datasets`` library."""
    features = getattr(given, "features", None)
    feature = features.get(task.label_field) if isinstance(features, Mapping) else None
    return getattr(feature, "names", None)


# --- Rows from the Hugging Face hub

REACH_TIMEOUT_S = 5


def _has_text(value: Any) -> bool:
    """Return whether a text, a list of texts or a SQuAD answer has a visible character."""
    texts = value.get("text") if isinstance(value, dict) else value
    return any(is_visible(text) for text in ([texts] if isinstance(texts, str) else texts or ()))


def read_hub_rows(task: Task, split: str) -> Positioned:
    """Yield the rows of a split on the hub, or in the library's cache."""
    assert task.hub is not None
    name_of = {column: field for field, column in task.hub.fields.items()}
    name = describe_hub_split(task.hub, split)
    # A row without a label is dropped later, as in any source.
    texts = value_names(task) if task.is_generative else task.fields
    dropped = total = 0
    for number, values in enumerate(_load(task, task.hub, split)):
        row = {name_of.get(column, column): value for column, value in values.items()}
        total += 1
        if task.hub.drop_empty and not all(_has_text(row[of]) for of in texts if of in row):
            dropped += 1
        else:
            yield f"{name}, row {number}", row
    if dropped:
        warn_data(f"{name}: {dropped} of {total} rows have an empty text and are dropped")


def describe_hub_split(hub: HubSource, split: str) -> str:
    """Return the name of a hub split in messages."""
    return " ".join(part for part in (hub.path, hub.config, hub.splits[split]) if part)


def _load(task: Task, hub: HubSource, split: str) -> Any:
    import datasets

    # In the branch of parquet copies a configuration is a folder.
    is_copy = hub.revision == PARQUET_BRANCH
    part = {"data_dir": hub.config} if is_copy else {"name": hub.config}
    try:
        with _offline_where_unreachable():
            return datasets.load_dataset(
                hub.path, split=hub.splits[split], revision=hub.revision, **part
            )
    except Exception as error:  # the library raises many types
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"task {task.name}: cannot read {describe_hub_split(hub, split)} from the hub "
            f"({type(error).__name__}: {reason}); give a folder with {split}.jsonl whose rows have "
            f"{', '.join(value_names(task))}: --data DIR"
        ) from None


@contextmanager
def _offline_where_unreachable() -> Iterator[None]:
    """Set the library offline if the hub is unreachable: it would retry for 25 seconds."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    offline = any(before) or not _is_reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = offline, offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _is_reachable(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


# --- All sources


def read_rows(task: Task, split: str) -> list[Row]:
    """Read and check the rows of one split of a task.

    Args:
        task: The task. Its rows are taken from memory if given, else from its folder, else from
            the built-in text or the hub.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        One dictionary per row: the task's fields, and its label under ``"label"`` or, in
        generative tasks, all correct answers under ``"answers"``.

    Raises:
        InputError: A file is missing, broken or empty; a row lacks a field or text, or has an
            unknown label. The message names the file and the line or row.

    Example:
        >>> from jpt.tasks.catalog import load_task
        >>> len(read_rows(load_task("builtin/imdb"), "test"))
        1000
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return _read(task, split)


def read_texts(task: Task, split: str) -> list[Row]:
    """Read the texts of a split of a classification task, without its labels."""
    return _read(task, split, {task.label_field: task.labels[0]})


def _read(task: Task, split: str, instead: Mapping[str, str] | None = None) -> list[Row]:
    """Read a split, with other values instead of its own; drop and count unlabelled rows."""
    if task.rows is None and task.folder is None and task.is_builtin:
        return [{**row, **(instead or {})} for row in builtin_rows(task.name, split)]
    name, rows = _open_source(task, split)
    checked, unlabelled, numbered = [], [], {}
    for position, raw in rows:
        row = {**check_mapping(raw, position), **(instead or {})}
        values = check_row(row, task, position)
        if values is None:
            unlabelled.append(position)
        else:
            checked.append(values)
        if is_number(row.get(task.label_field)):
            numbered.setdefault(values and values.get("label"), position)
    if unlabelled and checked:
        _check_minus_one(numbered, task)
        warn_data(
            f"{unlabelled[0]}: no label (empty, null, NaN or -1), as in {len(unlabelled)} of "
            f"{len(unlabelled) + len(checked)} rows, which are dropped"
        )
    if not checked:
        found = f"{len(unlabelled)} rows, but no label" if unlabelled else "no rows"
        raise InputError(f"{name} has {found}; task {task.name} needs at least one for {split}")
    return checked


def _check_minus_one(numbered: Mapping[str | None, str], task: Task) -> None:
    """Raise InputError if -1 may be a class: some have numbers in these rows, and one has none."""
    unused = list_names([label for label in task.numbered.values() if label not in numbered])
    if task.hub is None and None in numbered and len(numbered) > 1 and unused:
        raise InputError(
            f"{numbered[None]}: label -1 could mean no label or a class, as no row has the number "
            f"of {unused}; write names as labels, and null for no label"
        )


def has_split(task: Task, split: str) -> bool:
    """Return whether a task has rows for a split, without reading them."""
    if task.rows is not None:
        return split in task.rows
    if task.folder is None or split in task.files:
        return True
    return bool(_files_of(task.folder, split))


def attach_data(
    task: Task, data: str | Path | Mapping[str, Iterable[Mapping[str, Any]]] | None
) -> Task:
    """Return a task with other rows: a folder of files, or rows in Python."""
    if data is None:
        return task
    if task.is_builtin:
        raise InputError(f"task {task.name} has built-in rows; omit data (--data)")
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
    """Return the file of a split."""
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
        raise InputError(f"{file}: unsupported file format; use {KINDS}")
    if not os.path.exists(file):
        raise _missing(task, folder, file, split)
    return file


def _files_of(folder: Path, split: str) -> list[Path]:
    files = [folder / f"{split}{suffix}" for suffix in READERS]
    return [file for file in files if os.path.exists(file)]


def _missing(task: Task, folder: Path, file: Path, split: str) -> InputError:
    found = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in READERS)
    state = f"the folder has no {KINDS} files"
    if found:
        state = (
            f"the folder has {', '.join(found)}; add it (or {split} in {KINDS}), or name its file "
            "under [files] in task.toml"
        )
    return InputError(f"task {task.name} has no {split} rows: {file} is missing; {state}")


def _open_source(task: Task, split: str) -> tuple[str, Positioned]:
    """Return the source's name and its rows."""
    if task.rows is not None:
        if split not in task.rows:
            raise InputError(
                f"task {task.name} has no {split} rows: rows are given for "
                f"{', '.join(task.rows)}; give some for {split} too"
            )
        name = describe_given(split)
        rows = enumerate(task.rows[split], start=1)
        return name, ((f"{name}, row {number}", row) for number, row in rows)
    if task.folder is not None:
        file = find_file(task, task.folder, split)
        return str(file), READERS[file.suffix.lower()](file, task)
    if task.hub is None:
        raise InputError(
            f"task {task.name} has neither a folder nor a hub id; give a folder with its rows"
        )
    return describe_hub_split(task.hub, split), read_hub_rows(task, split)


# --- Splits compared

SHARED = (
    ("train", ("validation", "test"), "so their scores are too high"),
    ("validation", ("test",), "so the prompt is chosen by rows that it is then tested on"),
)


def data_warnings(splits: Mapping[str, Sequence[Row]], task: Task) -> Iterator[str]:
    """Yield what may make scores meaningless: one class, shared texts, a text with two labels."""
    texts = {
        name: [tuple(row[field].strip() for field in task.fields) for row in rows]
        for name, rows in splits.items()
    }
    train = {row.get("label") for row in splits.get("train", ())}
    if len(train) == 1 and not task.is_generative:
        yield (
            f"task {task.name}: all {len(texts['train'])} train rows have the label "
            f"{train.pop()!r}; nothing can be learned from one class"
        )
    for earlier, others, why in SHARED:
        known = set(texts.get(earlier, ()))
        counts = {name: sum(text in known for text in texts.get(name, ())) for name in others}
        shares = [f"{n} of {len(texts[name])} {name} rows" for name, n in counts.items() if n]
        if shares:
            yield (
                f"task {task.name}: {' and '.join(shares)} have texts that are also in {earlier}, "
                f"{why}"
            )
    labels: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for name, rows in splits.items():
        for text, row in zip(texts[name], rows, strict=True):
            labels[text].add(row.get("label", ""))
    disputed = [text for text, of in labels.items() if len(of) > 1]
    if disputed:
        count = f"{len(disputed)} texts have" if len(disputed) > 1 else "1 text has"
        first = f"{' | '.join(map(show, disputed[0]))} ({', '.join(sorted(labels[disputed[0]]))})"
        yield f"task {task.name}: {count} more than one label, first {first}"
