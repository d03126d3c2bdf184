"""Rows out of parquet files, with the number of each row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jpt.data.labels import class_numbers, name_class
from jpt.data.rows import check_columns, value_names
from jpt.errors import InputError
from jpt.files.reading import file_size_bytes
from jpt.tasks.task import Task

BATCH_ROWS = 4096
"""Rows in memory at once as Python values."""


def read_parquet(file: Path, task: Task) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads those columns of a parquet file that a task asks for."""
    # Where the file names its classes, as ``datasets`` writes them, a class number becomes its
    # name.
    opened = _open(file)
    with opened:
        check_columns(opened.schema_arrow.names, task, str(file))
        names = list(value_names(task))
        classes = class_numbers(_class_names(opened.schema_arrow, task), task)
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


def _open(file: Path) -> Any:
    import pyarrow.parquet

    file_size_bytes(file)  # says what is wrong with a path before the library does
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        opened.schema_arrow  # noqa: B018  (read here, where its faults are caught)
    except Exception as error:  # the library raises many kinds for broken bytes
        raise _broken(file, error) from None
    return opened


def _next_batch(batches: Iterator[Any], file: Path) -> Any:
    try:
        return next(batches, None)
    except Exception as error:  # as above
        raise _broken(file, error) from None


def _values(batch: Any, name: str, file: Path, first_row: int) -> list[Any]:
    """A column as Python values; only where that fails, row by row, to name the one at fault."""
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
                    "write the file again with its text as UTF-8"
                ) from None
            except Exception as fault:
                raise InputError(
                    f"{file}, row {number}: field {name!r} cannot be read ({_one_line(fault)}); "
                    "it must be text"
                ) from None
        raise _broken(file, error) from None


def _class_names(schema: Any, task: Task) -> object:
    """The names that ``datasets`` keeps for the numbers of a label column, if it wrote the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return features[task.label_field]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _broken(file: Path, error: Exception) -> InputError:
    return InputError(
        f"{file} is no parquet file, or a broken one ({_one_line(error)}); is it cut short? "
        "write it or copy it again"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
