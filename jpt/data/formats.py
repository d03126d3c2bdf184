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
from jpt.io.files import RepeatedKey, file_size_bytes, load_json, read_bytes
from jpt.tasks.task import Task, is_number

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
        return load_json(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"{file}:{line}: broken JSON ({error.msg} at column {error.colno}); {cure}"
        ) from None
    except RepeatedKey as error:
        raise InputError(f"{file}:{first_line}: {error}; keep one of them") from None
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
        classes = class_numbers(_parquet_class_names(opened.schema_arrow, task), task, str(file))
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


def read_delimited(
    file: Path, task: Task, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a delimited table, with line numbers; empty lines are skipped."""
    records = iter(_split_cells(_read_without_nul(file), file, task, delimiter))
    first, _, columns = next(records, Record(0, 0, []))
    if not columns:
        raise InputError(f"{file} is empty; expected a header with {', '.join(value_names(task))}")
    _check_header(columns, task, f"{file}:{first}", delimiter)
    for number, _, cells in records:
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


def _split_cells(text: str, file: Path, task: Task, delimiter: str) -> list[Record]:
    """Return the records of a table."""
    lines, error = list(io.StringIO(text, newline="")), None
    try:
        records = _quoted(lines, len(text), delimiter)
    except _BrokenQuotes as broken:
        records, error = [], broken
    long = [record for record in records if record.first < record.last]
    swallowed = next(
        (one for one in long if _is_of_rows(one, records, lines, task, delimiter)), None
    )
    if delimiter == "\t" and (long or error is not None or not _are_even(records)):
        unquoted = _unquoted(lines, delimiter)
        if swallowed is not None or _are_even(unquoted):
            return unquoted
    if error is not None:
        raise InputError(
            f"{file}:{error.line}: {error}; double each quote within a cell and put the cell in "
            "quotes"
        )
    if swallowed is not None:
        first, last, _ = swallowed
        raise InputError(
            f"{file}:{first}: a quote opens here and closes in line {last}, but lines {first} and "
            f"{last} are rows of their own; double each quote within a cell and put the cell in "
            "quotes"
        )
    return records


class _BrokenQuotes(Exception):
    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


def _quoted(lines: list[str], size: int, delimiter: str) -> list[Record]:
    """Return the records, all at once because csv's limit is global."""
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
        reason = "unclosed quote"
        if "end of data" not in str(error):
            reason = f"broken quotes, {error}"
        raise _BrokenQuotes(reason, begin) from None
    finally:
        csv.field_size_limit(limit)
    return records


def _unquoted(lines: list[str], delimiter: str) -> list[Record]:
    """Return a record of each line, quotes taken as characters."""
    cells = (line.rstrip("\r\n").split(delimiter) for line in lines)
    records = (Record(number, number, of) for number, of in enumerate(cells, start=1))
    return [record for record in records if not _is_blank(record.cells)]


def _is_blank(cells: list[str]) -> bool:
    return len(cells) < 2 and (not cells or not cells[0] or cells[0].isspace())


def _are_even(records: list[Record]) -> bool:
    return len({len(record.cells) for record in records}) < 2


def _is_of_rows(
    record: Record, records: list[Record], lines: list[str], task: Task, delimiter: str
) -> bool:
    """Return whether the first and the last line of a record are labelled rows of their own."""
    columns = records[0].cells
    if task.label_field not in columns:
        return False
    for line in (lines[record.first - 1], lines[record.last - 1]):
        cells = line.rstrip("\r\n").split(delimiter)
        if len(cells) != len(columns):
            return False
        if task.label_of(cells[columns.index(task.label_field)]) is None:
            return False
    return True


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


# --- Formats

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
