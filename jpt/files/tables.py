"""CSV tables: written in one step, read with every fault named by file, line and column."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jpt.errors import InputError
from jpt.files.atomic import write_text
from jpt.files.reading import read_bytes


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table; floats keep every digit they need to be read back equal, NaN stays empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_plain(value) for value in row])
    write_text(path, text.getvalue())


def read_table(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a table."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV table ({error}); a header and lines expected") from None
    header = lines[0] if lines else []
    missing = [column for column in columns if column not in header]
    if missing or len(set(header)) < len(header):
        fault = f"lacks {', '.join(missing)}" if missing else "names a column twice"
        raise InputError(
            f"{path}: the header ({','.join(header)[:200]}) {fault}; {','.join(columns)} expected"
        )
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise InputError(
                f"{path}, line {number}: {len(line)} values for {len(header)} columns"
                f" ({','.join(header)[:200]}); is the file cut short?"
            )
    return [dict(zip(header, line, strict=True)) for line in lines[1:]]


def read_number(path: str | Path, line: int, row: Mapping[str, str], column: str) -> float:
    """Reads one number of a table; an empty place is NaN."""
    text = row[column].strip()
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise InputError(f"{path}, line {line}: {column} is '{text}'; a number expected")
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return value
