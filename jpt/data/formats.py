"""Files of rows: JSON lines, JSON, CSV, TSV and parquet, with messages that name the line."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jpt.errors import InputError
from jpt.io.files import file_size_bytes, parse_json, read_bytes
from jpt.tasks.task import Task, is_number

Positioned = Iterator[tuple[str, Mapping[str, Any]]]
"""Raw rows with their positions in messages."""

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


# --- Columns and class names


def value_names(task: Task) -> tuple[str, ...]:
    """Return the required names of a row: fields, then label or answer."""
    return (*task.fields, task.label_field if task.answer_field is None else task.answer_field)


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


def class_numbers(names: object, task: Task, where: str) -> dict[int, str]:
    """Return the names of the class numbers of a label column, if the data name its classes."""
    if not isinstance(names, list | tuple) or task.is_generative:
        return {}
    if any(name in task.labels for name in names):
        return {number: str(name) for number, name in enumerate(names)}
    # If a task of the hub knows none of the names, the numbers are the hub's.
    if task.hub is None and not all(map(is_number, names)) and not any(map(is_number, task.labels)):
        raise InputError(
            f"{where}: the data name their classes {list_names(names)}, of which task {task.name} "
            f"knows none ({', '.join(task.labels)}); rename the labels of one of the two"
        )
    return {}


def name_class(value: Any, names: Mapping[int, str]) -> Any:
    """Return the name of a class number."""
    return names.get(int(value), value) if isinstance(value, int | np.integer) else value


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


def read_json_lines(file: Path) -> Positioned:
    """Yield one JSON object per line; empty lines are skipped."""
    # Not splitlines, which would also split at line separators within texts.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line and not line.isspace():
            cure = "write one JSON object per line"
            where = f"{file}:{number}"
            yield where, _check_object(parse_json(line, where, number, cure), where)


def read_json_list(file: Path) -> Positioned:
    """Yield the objects of a JSON list."""
    text = read_text(file)
    if not text.lstrip().startswith("["):
        raise InputError(
            f"{file} is not a JSON list; name it .jsonl if it has one JSON object per line"
        )
    for number, value in enumerate(parse_json(text, file), start=1):
        where = f"{file}, row {number}"
        yield where, _check_object(value, where)


def _check_object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise InputError(
        f"{where}: expected a JSON object, got {type(value).__name__}; write one per row"
    )


# --- Parquet

BATCH_ROWS = 4096
"""Rows converted to Python values at a time."""


def read_parquet(file: Path, task: Task) -> Positioned:
    """Yield the rows of a parquet file, only the columns that a task needs."""
    import pyarrow.parquet

    file_size_bytes(file)  # has better messages than the library
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            check_columns(opened.schema_arrow.names, task, str(file))
            stored = _parquet_class_names(opened.schema_arrow, task)
            classes = class_numbers(stored, task, str(file))
            number = 1
            for batch in opened.iter_batches(BATCH_ROWS, columns=list(value_names(task))):
                columns = {of: _values(batch, of, file, number) for of in value_names(task)}
                for values in zip(*columns.values(), strict=True):
                    row = dict(zip(columns, values, strict=True))
                    if classes:
                        row[task.label_field] = name_class(row[task.label_field], classes)
                    yield f"{file}, row {number}", row
                    number += 1
    except InputError:
        raise
    except Exception as error:  # the library raises many types
        raise InputError(
            f"{file} is not a valid parquet file ({_one_line(error)}); if it is truncated, write or"
            " copy it again"
        ) from None


def _values(batch: Any, name: str, file: Path, first_row: int) -> list[Any]:
    """Return a column as Python values; raise InputError with the row of a broken one."""
    values = []
    for number, value in enumerate(batch.column(name), start=first_row):
        try:
            values.append(value.as_py())
        except Exception as error:  # as above
            raise InputError(
                f"{file}, row {number}: field {name!r} cannot be read ({_one_line(error)}); "
                "expected UTF-8 text"
            ) from None
    return values


def _parquet_class_names(schema: Any, task: Task) -> object:
    """Return the class names that ``datasets`` stores in the files that it writes."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return features[task.label_field]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


# --- CSV and TSV
# CSV is read as csv and pandas write it: a cell may be put in quotes, and then holds delimiters,
# line breaks and doubled quotes. So is TSV, unless its quotes cannot be meant that way, as in the
# tables of GLUE, which have no quoting: then every line is a row and quotes are characters.

DELIMITERS = {",": "commas", "\t": "tabs"}

PYTHON_LIST = re.compile(r"""\s*\[\s*["'].*\]\s*""", re.DOTALL)
"""Text that looks like a Python list."""


class Record(NamedTuple):
    """Cells of a row, with the lines that it covers."""

    first: int
    last: int
    cells: list[str]


def read_delimited(file: Path, task: Task, delimiter: str = ",") -> Positioned:
    """Yield the rows of a delimited table; empty lines are skipped."""
    text = read_text(file)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(
            f"{file}:{line}: NUL byte in the text; if the file is UTF-16, save it as UTF-8"
        )
    records = _split_cells(text, file, task, delimiter)
    if not records:
        raise InputError(f"{file} is empty; expected a header with {', '.join(value_names(task))}")
    (first, _, columns), *rows = records
    if len(columns) == 1:
        raise InputError(
            f"{file}:{first}: expected {', '.join(value_names(task))} in the header, separated by "
            f"{DELIMITERS[delimiter]}, got one column {show(columns[0])}"
        )
    check_columns(columns, task, f"{file}:{first}")
    for number, _, cells in rows:
        where = f"{file}:{number}"
        if len(cells) != len(columns):
            cure = "is a delimiter missing?"
            if len(cells) > len(columns):
                cure = f"put cells with {DELIMITERS[delimiter]} in them in quotes"
            raise InputError(f"{where}: expected {len(columns)} cells, got {len(cells)}; {cure}")
        row: dict[str, Any] = dict(zip(columns, cells, strict=True))
        if task.answer_field is not None:
            row[task.answer_field] = _parse_answers(row[task.answer_field], task, where)
        yield where, row


def _split_cells(text: str, file: Path, task: Task, delimiter: str) -> list[Record]:
    """Return the records of a table; raise InputError if its quotes are broken."""
    lines = list(io.StringIO(text, newline=""))
    by_line = [line.rstrip("\r\n").split(delimiter) for line in lines]
    unquoted = [Record(n, n, of) for n, of in enumerate(by_line, start=1) if not _is_blank(of)]
    records, fault = _read_quoted(lines, len(text), delimiter)
    fault = fault or _find_swallowed(records, by_line, task, _are_even(unquoted))
    if delimiter == "\t" and (fault or not _are_even(records)):
        return unquoted if fault or _are_even(unquoted) else records
    if fault:
        cure = "double each quote within a cell and put the cell in quotes"
        raise InputError(f"{file}:{fault}; {cure}")
    return records


def _read_quoted(lines: list[str], size: int, delimiter: str) -> tuple[list[Record], str]:
    """Return the records, and the line and kind of a fault of their quotes."""
    # All at once, because csv's limit is global.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    records, begin = [], 1
    limit = csv.field_size_limit()
    csv.field_size_limit(max(size, limit))  # documents may exceed the default of 128 KiB
    try:
        for cells in reader:
            if not _is_blank(cells):
                records.append(Record(begin, reader.line_num, cells))
            begin = reader.line_num + 1
    except csv.Error as error:
        is_open = "end of data" in str(error)
        return [], f"{begin}: {'unclosed quote' if is_open else f'broken quotes, {error}'}"
    finally:
        csv.field_size_limit(limit)
    return records, ""


def _find_swallowed(
    records: list[Record], by_line: list[list[str]], task: Task, is_table: bool
) -> str:
    """Return a fault if lines of one record are rows: first and last, and two have labels."""
    columns = records[0].cells if records else []
    for first, last, _ in records:
        if first == last:
            continue
        lines = by_line[first - 1 : last]
        rows = [cells for cells in lines if len(cells) == len(columns)]
        labelled = rows if is_table else []  # without labels, only if every line may be a row
        if task.label_field in columns:
            at = columns.index(task.label_field)
            labelled = [cells for cells in rows if task.label_of(cells[at]) is not None]
        if len(labelled) > 1 and rows[0] is lines[0] and rows[-1] is lines[-1]:
            return (
                f"{first}: a quote opens here and closes in line {last}, but lines {first} and "
                f"{last} are rows of their own"
            )
    return ""


def _is_blank(cells: list[str]) -> bool:
    return len(cells) < 2 and not "".join(cells).strip()


def _are_even(records: list[Record]) -> bool:
    return len({len(record.cells) for record in records}) < 2


def _parse_answers(cell: str, task: Task, where: str) -> Any:
    """Return the answers of a cell: a text, or a JSON list or object of texts."""
    if not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        if PYTHON_LIST.fullmatch(cell) is None:
            return cell
        raise InputError(
            f"{where}: field {task.answer_field!r} looks like a list but is not JSON, {show(cell)};"
            ' write ["first answer", "second answer"] with double quotes'
        ) from None
    return value if isinstance(value, list) or "text" in value else cell


# --- Formats

READERS: dict[str, Callable[[Path, Task], Positioned]] = {
    ".jsonl": lambda file, _: read_json_lines(file),
    ".csv": read_delimited,
    ".tsv": partial(read_delimited, delimiter="\t"),
    ".parquet": read_parquet,
    ".json": lambda file, _: read_json_list(file),
}
"""Readers by file suffix."""

KINDS = f"{', '.join(list(READERS)[:-1])} or {list(READERS)[-1]}"
