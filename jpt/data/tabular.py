"""Rows out of tables of text: cells parted by commas or by tabs, under a line of names."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jpt.data.rows import check_columns, value_names
from jpt.data.text_files import read_text
from jpt.data.wording import show
from jpt.errors import InputError
from jpt.tasks.task import Task

PARTED_BY = {",": "commas", "\t": "tabs"}

PYTHON_LIST = re.compile(r"""\s*\[\s*["'].*\]\s*""", re.DOTALL)
"""What looks like a list of texts, though it may be no JSON."""


def read_delimited(
    file: Path, task: Task, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads a table of text; empty lines are passed over."""
    # A cell may stand in double quotes, and then have delimiters, line ends and (doubled) quotes in
    # it. The answers of a written task may be a JSON list of texts, or else are one text.
    records = iter(_split_cells(_read_letters(file), file, delimiter))
    first, columns = next(records, (0, []))
    if not columns:
        raise InputError(
            f"{file} is empty; its first line must name the columns {', '.join(value_names(task))}"
        )
    _check_header(columns, task, f"{file}:{first}", delimiter)
    for number, cells in records:
        if len(cells) != len(columns):
            raise _uneven(cells, columns, f"{file}:{number}", delimiter)
        row: dict[str, Any] = dict(zip(columns, cells, strict=True))
        if task.answer_field is not None:
            cell = row[task.answer_field]
            row[task.answer_field] = _parse_answers(cell, task.answer_field, f"{file}:{number}")
        yield number, row


def _read_letters(file: Path) -> str:
    text = read_text(file)
    nul = text.find("\0")
    if nul >= 0:
        line = text.count("\n", 0, nul) + 1
        raise InputError(
            f"{file}:{line}: a NUL byte stands there, which no text has; is it UTF-16? "
            "save the file as UTF-8"
        )
    return text


def _split_cells(text: str, file: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """Every row with the line where it begins; all at once, as the limit is the whole process's."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, begin = [], 1
    limit = csv.field_size_limit()
    csv.field_size_limit(max(len(text), limit))  # a document may be longer than the usual 128 KiB
    try:
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0] and not cells[0].isspace()):
                records.append((begin, cells))
            begin = reader.line_num + 1
    except csv.Error as error:
        reason = "a quote that opens here is never closed"
        if "end of data" not in str(error):
            reason = f"broken quotes, {error}"
        raise InputError(
            f"{file}:{begin}: {reason}; double each quote inside of a cell and put the cell in "
            "quotes"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return records


def _check_header(columns: list[str], task: Task, where: str, delimiter: str) -> None:
    if len(columns) == 1:
        raise InputError(
            f"{where}: the header names one column only, {show(columns[0])}; it must name "
            f"{', '.join(value_names(task))}, parted by {PARTED_BY[delimiter]}"
        )
    check_columns(columns, task, where)


def _uneven(cells: list[str], columns: list[str], where: str, delimiter: str) -> InputError:
    cure = "is a delimiter missing?"
    if len(cells) > len(columns):
        cure = f"put cells with {PARTED_BY[delimiter]} in them in quotes"
    return InputError(f"{where}: {len(cells)} cells for {len(columns)} columns; {cure}")


def _parse_answers(cell: str, name: str, where: str) -> Any:
    """What a cell of answers holds; what is wrong within a list is told by the checks of rows."""
    if not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        if PYTHON_LIST.fullmatch(cell) is None:
            return cell
        raise InputError(
            f"{where}: field {name!r} looks like a list but is no JSON, {show(cell)}; "
            'write ["first answer", "second answer"] with double quotes'
        ) from None
    return value if isinstance(value, list) or "text" in value else cell
