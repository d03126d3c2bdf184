"""Rows of a task from JSON lines, JSON, CSV, TSV, parquet, the hub or memory, checked."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jpt.config import SPLITS
from jpt.data.builtin import builtin_rows
from jpt.errors import InputError, unknown_name
from jpt.io.files import file_size_bytes, read_bytes
from jpt.tasks.task import PARQUET_BRANCH, HubSource, Task

# --- Labels

WHOLE_NUMBER = re.compile(r"(\d+)\.0+")
"""Class number in a table that stores it as a float."""


def find_label(value: object, task: Task) -> str | None:
    """Return the label of a value in any of the forms of files and libraries, or None."""
    if value is None:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    try:
        labels = (task.label_of(candidate) for candidate in _candidates(value))
        return next((label for label in labels if label is not None), None)
    except (ValueError, ArithmeticError):  # thousands of digits, infinite, not a number
        return None


def _candidates(value: Any) -> Iterator[object]:
    """Yield the possible meanings of a value, most literal first."""
    yield value
    if isinstance(value, str):
        lower = value.lower()
        if lower in ("true", "false"):
            yield from (lower, int(lower == "true"))
        elif whole := WHOLE_NUMBER.fullmatch(value):
            yield whole[1]
    elif isinstance(value, bool):
        yield int(value)
    elif isinstance(value, float | Decimal) and value == int(value):
        yield int(value)


def class_numbers(names: object, task: Task) -> dict[int, str]:
    """Return the names of the class numbers of a label column, if the data names its classes."""
    # If the task knows none of the names, the numbers are the hub's.
    if not isinstance(names, list | tuple) or not any(name in task.labels for name in names):
        return {}
    return {number: str(name) for number, name in enumerate(names)}


def name_class(value: Any, names: Mapping[int, str]) -> Any:
    """Return the name of a class number."""
    return names.get(int(value), value) if isinstance(value, int | np.integer) else value


# --- Values in messages: short and in one line

MOST_NAMES, MOST_LETTERS = 12, 60


def show(value: object) -> str:
    """Return the representation of any value in one short line."""
    try:
        text = " ".join(repr(value[:200] if isinstance(value, str) else value).split())
    except Exception:  # absurd numbers, absurd nesting, classes of others
        text = f"of type {type(value).__name__}"
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + "..."


def list_names(names: Collection[object]) -> str:
    """List names in one line, at most `MOST_NAMES`."""
    shown = [_plain(name) for name in list(names)[:MOST_NAMES]]
    more = len(names) - len(shown)
    return ", ".join([*shown, f"{more} more"] if more else shown)


def _plain(name: object) -> str:
    """Return a name, quoted if it is empty, long, or has invisible characters."""
    text = str(name)
    if text and text == text.strip() and text.isprintable() and len(text) <= MOST_LETTERS:
        return text
    return show(text)


def nearest_names(name: object, known: Collection[object]) -> str:
    """Return a hint at similar names, ignoring case."""
    if not isinstance(name, str):
        return ""
    by_form = {str(other).strip().lower(): str(other) for other in known}
    near = difflib.get_close_matches(name.strip().lower()[:MOST_LETTERS], by_form, n=2)
    return f"; did you mean {' or '.join(show(by_form[form]) for form in near)}?" if near else ""


# --- Checks and checksum

Row = dict[str, Any]
"""Checked row: text of each field, and a text ``"label"`` or a tuple of texts ``"answers"``."""


def value_names(task: Task) -> tuple[str, ...]:
    """Return the required names of a row: fields, then label or answer."""
    return (*task.fields, task.label_field if task.answer_field is None else task.answer_field)


def check_row(row: object, task: Task, where: str) -> Row:
    """Check a row and return the values that the task needs."""
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
            f"{where}: label {show(value)} is not a label of task {task.name} "
            f"({', '.join(task.labels)}){nearest_names(value, task.labels)}"
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


def check_columns(columns: Sequence[str], task: Task, where: str) -> None:
    """Raise InputError unless the columns have the task's values, each once."""
    for name in value_names(task):
        if name not in columns:
            raise InputError(
                f"{where}: column {name!r} is missing among {list_names(columns) or 'none'}"
                f"{nearest_names(name, columns)}; expected {', '.join(value_names(task))}"
            )
    # Unnamed columns are ignored: spreadsheets leave them behind.
    twice = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    if twice:
        raise InputError(
            f"{where}: {columns.count(twice[0])} columns are named {show(twice[0])}; "
            "rename or remove all but one"
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
    if not value or value.isspace():
        raise InputError(f"{where}: {what} is empty; expected text in every row")
    if not value.isascii():
        _check_letters(value, what, where)
    return str(value)


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
    classes = class_numbers(_given_class_names(given, task), task)
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

HubRow = dict[str, Any]
"""Row of the hub under the task's field names."""


def plain(row: HubRow, task: Task) -> HubRow | None:
    """Return the row."""
    return row


def complete(row: HubRow, task: Task) -> HubRow | None:
    """Return the row, or None if it has no label (-1 on the hub) or an empty text."""
    texts = value_names(task) if task.is_generative else task.fields
    if not all(_has_text(row[name]) for name in texts if name in row):
        return None
    unlabelled = not task.is_generative and row.get(task.label_field, 0) in (None, -1)
    return None if unlabelled else row


def _has_text(value: object) -> bool:
    """Return whether a text, a list of texts or a SQuAD answer is not empty."""
    texts = value.get("text") if isinstance(value, dict) else value
    return any(text.strip() for text in ([texts] if isinstance(texts, str) else texts or ()))


def signed(row: HubRow, task: Task) -> HubRow | None:
    """Return the row with labels -1, 0 and 1 renumbered from 0."""
    label = row.get(task.label_field)
    return {**row, task.label_field: label + 1} if isinstance(label, int) else row


FORMS: dict[str, Callable[[HubRow, Task], HubRow | None]] = {
    "plain": plain,
    "complete": complete,
    "signed": signed,
}
"""Conversions of hub rows; None drops a row."""


def read_hub_rows(task: Task, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the numbered rows of a split on the hub, or in the library's cache."""
    assert task.hub is not None
    if task.hub.form not in FORMS:
        raise unknown_name("form of hub rows", task.hub.form, FORMS)
    form = FORMS[task.hub.form]
    name_of = {column: field for field, column in task.hub.fields.items()}
    for number, values in enumerate(_load(task, task.hub, split)):
        row = form({name_of.get(column, column): value for column, value in values.items()}, task)
        if row is not None:
            yield number, row


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


# --- Text files


def read_text(file: Path) -> str:
    """Read a UTF-8 file, line ends unchanged; raise InputError with the line of a broken byte."""
    file_size_bytes(file)  # rejects pipes and devices, which could block forever
    data = read_bytes(file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.object, not data: the position does not count a byte order mark.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from None


# --- JSON


def read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield one JSON object per line, with line numbers; empty lines are skipped."""
    # Not splitlines, which would also split at line separators within texts.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line and not line.isspace():
            value = _parse(line, file, number, "write one JSON object per line")
            if not isinstance(value, dict):
                raise InputError(
                    f"{file}:{number}: expected a JSON object, got {type(value).__name__}; "
                    "write one object per line"
                )
            yield number, value


def read_json_list(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the numbered objects of a JSON list."""
    text = read_text(file)
    if not text.lstrip().startswith("["):
        raise InputError(
            f"{file} is not a JSON list; name it .jsonl if it has one JSON object per line"
        )
    for number, value in enumerate(_parse(text, file, 1, "repair it or copy it again"), start=1):
        if not isinstance(value, dict):
            raise InputError(
                f"{file}, row {number}: expected a JSON object, got {type(value).__name__}"
            )
        yield number, value


def _parse(text: str, file: Path, first_line: int, cure: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"{file}:{line}: broken JSON ({error.msg} at column {error.colno}); {cure}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}:{first_line}: broken JSON ({error}); {cure}") from None


# --- Parquet

BATCH_ROWS = 4096
"""Rows converted to Python values at a time."""


def read_parquet(file: Path, task: Task) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the numbered rows of a parquet file, only the columns that a task needs."""
    opened = _parquet_open(file)
    with opened:
        check_columns(opened.schema_arrow.names, task, str(file))
        names = list(value_names(task))
        classes = class_numbers(_parquet_class_names(opened.schema_arrow, task), task)
        batches = opened.iter_batches(BATCH_ROWS, columns=names)
        number = 1
        while (batch := _next_batch(batches, file)) is not None:
            columns = [_values(batch, name, file, number) for name in names]
            for values in zip(*columns, strict=True):
                row = dict(zip(names, values, strict=True))
                if classes:
                    row[task.label_field] = name_class(row[task.label_field], classes)
                yield number, row
                number += 1


def _parquet_open(file: Path) -> Any:
    import pyarrow.parquet

    file_size_bytes(file)  # has better messages than the library
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        opened.schema_arrow  # noqa: B018  (read here, where its errors are caught)
    except Exception as error:  # the library raises many types
        raise _broken(file, error) from None
    return opened


def _next_batch(batches: Iterator[Any], file: Path) -> Any:
    try:
        return next(batches, None)
    except Exception as error:  # as above
        raise _broken(file, error) from None


def _values(batch: Any, name: str, file: Path, first_row: int) -> list[Any]:
    """Return a column as Python values; if that fails, go by row to name the broken one."""
    column = batch.column(name)
    try:
        return column.to_pylist()
    except Exception as error:  # as above
        for number, value in enumerate(column, start=first_row):
            try:
                value.as_py()
            except UnicodeDecodeError as fault:
                raise InputError(
                    f"{file}, row {number}: field {name!r} is not UTF-8 ({fault.reason}); "
                    "write its text as UTF-8"
                ) from None
            except Exception as fault:
                raise InputError(
                    f"{file}, row {number}: field {name!r} cannot be read ({_one_line(fault)}); "
                    "expected text"
                ) from None
        raise _broken(file, error) from None


def _parquet_class_names(schema: Any, task: Task) -> object:
    """Return the class names that ``datasets`` stores in the files that it writes."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return features[task.label_field]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _broken(file: Path, error: Exception) -> InputError:
    return InputError(
        f"{file} is not a valid parquet file ({_one_line(error)}); if it is truncated, write or "
        "copy it again"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


# --- CSV and TSV

DELIMITERS = {",": "commas", "\t": "tabs"}

PYTHON_LIST = re.compile(r"""\s*\[\s*["'].*\]\s*""", re.DOTALL)
"""Text that looks like a Python list."""


def read_delimited(
    file: Path, task: Task, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a delimited table, with line numbers; empty lines are skipped."""
    records = iter(_split_cells(_read_without_nul(file), file, delimiter))
    first, columns = next(records, (0, []))
    if not columns:
        raise InputError(f"{file} is empty; expected a header with {', '.join(value_names(task))}")
    _check_header(columns, task, f"{file}:{first}", delimiter)
    for number, cells in records:
        if len(cells) != len(columns):
            raise _uneven(cells, columns, f"{file}:{number}", delimiter)
        row: dict[str, Any] = dict(zip(columns, cells, strict=True))
        if task.answer_field is not None:
            cell = row[task.answer_field]
            row[task.answer_field] = _parse_answers(cell, task.answer_field, f"{file}:{number}")
        yield number, row


def _read_without_nul(file: Path) -> str:
    text = read_text(file)
    nul = text.find("\0")
    if nul >= 0:
        line = text.count("\n", 0, nul) + 1
        raise InputError(
            f"{file}:{line}: NUL byte in the text; if the file is UTF-16, save it as UTF-8"
        )
    return text


def _split_cells(text: str, file: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return the rows with their first lines, all at once because csv's limit is global."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, begin = [], 1
    limit = csv.field_size_limit()
    csv.field_size_limit(max(len(text), limit))  # documents may exceed the default of 128 KiB
    try:
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0] and not cells[0].isspace()):
                records.append((begin, cells))
            begin = reader.line_num + 1
    except csv.Error as error:
        reason = "unclosed quote"
        if "end of data" not in str(error):
            reason = f"broken quotes, {error}"
        raise InputError(
            f"{file}:{begin}: {reason}; double each quote within a cell and put the cell in quotes"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return records


def _check_header(columns: list[str], task: Task, where: str, delimiter: str) -> None:
    if len(columns) == 1:
        raise InputError(
            f"{where}: expected {', '.join(value_names(task))} in the header, separated by "
            f"{DELIMITERS[delimiter]}, got one column {show(columns[0])}"
        )
    check_columns(columns, task, where)


def _uneven(cells: list[str], columns: list[str], where: str, delimiter: str) -> InputError:
    cure = "is a delimiter missing?"
    if len(cells) > len(columns):
        cure = f"put cells with {DELIMITERS[delimiter]} in them in quotes"
    return InputError(f"{where}: expected {len(columns)} cells, got {len(cells)}; {cure}")


def _parse_answers(cell: str, name: str, where: str) -> Any:
    """Return the answers of a cell: a text, or a JSON list or object of texts."""
    if not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        if PYTHON_LIST.fullmatch(cell) is None:
            return cell
        raise InputError(
            f"{where}: field {name!r} looks like a list but is not JSON, {show(cell)}; "
            'write ["first answer", "second answer"] with double quotes'
        ) from None
    return value if isinstance(value, list) or "text" in value else cell


# --- All sources

Numbered = Iterator[tuple[int, Mapping[str, Any]]]
"""Raw rows with the numbers that messages use."""

BY_LINE, BY_ROW = "{}:{}", "{}, row {}"


class Reader(NamedTuple):
    """Reader of a file format."""

    read: Callable[[Path, Task], Numbered]
    where: str  # format of a row's position in messages


READERS: dict[str, Reader] = {
    ".jsonl": Reader(lambda file, _: read_json_lines(file), BY_LINE),
    ".csv": Reader(read_delimited, BY_LINE),
    ".tsv": Reader(partial(read_delimited, delimiter="\t"), BY_LINE),
    ".parquet": Reader(read_parquet, BY_ROW),
    ".json": Reader(lambda file, _: read_json_list(file), BY_ROW),
}
"""Readers by file suffix."""

KINDS = f"{', '.join(list(READERS)[:-1])} or {list(READERS)[-1]}"


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
    if task.rows is None and task.folder is None and task.is_builtin:
        return builtin_rows(task.name, split)
    name, where, rows = _open_source(task, split)
    checked = [check_row(row, task, where.format(name, number)) for number, row in rows]
    if not checked:
        raise InputError(f"{name} has no rows; task {task.name} needs at least one for {split}")
    return checked


def read_texts(task: Task, split: str) -> list[Row]:
    """Read the texts of a split of a classification task, without its labels."""
    stand_in = task.labels[0]
    if task.rows is None and task.folder is None and task.is_builtin:
        return [{**row, "label": stand_in} for row in builtin_rows(task.name, split)]
    name, where, rows = _open_source(task, split)
    checked = []
    for number, row in rows:
        position = where.format(name, number)
        values = {**check_mapping(row, position), task.label_field: stand_in}
        checked.append(check_row(values, task, position))
    if not checked:
        raise InputError(f"{name} has no rows; task {task.name} needs at least one for {split}")
    return checked


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


def _open_source(task: Task, split: str) -> tuple[str, str, Numbered]:
    """Return the source's name, the format of a row's position, and the rows."""
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
        return str(file), reader.where, reader.read(file, task)
    if task.hub is None:
        raise InputError(
            f"task {task.name} has neither a folder nor a hub id; give a folder with its rows"
        )
    return describe_hub_split(task.hub, split), BY_ROW, read_hub_rows(task, split)
