"""Scores by target, prompt and mask, cached as JSON lines keyed by content."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jpt.distributed import is_first, on_first
from jpt.errors import InputError
from jpt.io.files import OutFolder, parse_json, read_bytes, write_error
from jpt.results.value_checks import check_values
from jpt.types import Score

CELLS = "cells.jsonl"


@dataclass(frozen=True)
class Cell:
    """Score of one prompt on one task."""

    target_task: str
    source_prompt: str  # of several seeds the run's name, `NAME/seed-S`
    metric: str
    value: float  # NaN if not finite
    loss: float  # mean cross-entropy; NaN if not finite
    rows: int  # number of scored rows
    majority: float | None  # share of the most frequent class; None for a generative task
    elapsed_s: float  # including compilation
    of: dict[str, Any]  # everything that the score depends on
    chance: float | None = None  # chance level of the metric
    standard_error: float | None = None

    @property
    def key(self) -> str:
        """Cache key."""
        return _key(self.of)


def make_cell(target: str, prompt: str, score: Score, elapsed_s: float, of: dict[str, Any]) -> Cell:
    """Return the cell of a score."""
    return Cell(
        target,
        prompt,
        score.metric,
        float(score.value),
        float(score.loss),
        score.rows,
        score.majority,
        round(elapsed_s, 3),
        of,
        score.chance,
        score.standard_error,
    )


class CellFile:
    """The cache of scored cells, a file of JSON lines."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._torn_at = path, None
        self._folder = None if path is None else OutFolder(path.parent)
        self._cells: dict[str, Cell] = {}
        if path is not None:
            found, self._torn_at = on_first(lambda: _read(path))
            cells = map(_from_json, found)
            self._cells = {cell.key: cell for cell in cells}

    def open(self) -> None:
        """Create the folder if it does not exist; from now on it has to stay where it is."""
        if self._folder is not None:
            self._folder.file()

    def file(self, name: str) -> Path:
        """Return the path of a file of its folder, after the check that this is still there."""
        assert self._folder is not None, "cells kept in memory"
        return self._folder.file(name)

    def find(self, of: dict[str, Any]) -> Cell | None:
        """Return the cached cell, or None if it must be scored."""
        return self._cells.get(_key(of))

    def add(self, cell: Cell) -> None:
        """Add a cell; its line is on disk when this returns."""
        # Of several processes only the first one writes.
        self._cells[cell.key] = cell
        if self._path is None or not is_first():
            return
        line = json.dumps(_to_json(cell), ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode("utf-8")
        self.file(self._path.name)
        try:
            with self._path.open("ab") as file:
                if self._torn_at is not None:  # a last line cut short by a kill
                    file.truncate(self._torn_at)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self._path, error) from None
        self._torn_at = None


def _key(of: dict[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)


def _to_json(cell: Cell) -> dict[str, Any]:
    record = asdict(cell)
    for name in ("value", "loss"):
        record[name] = record[name] if math.isfinite(record[name]) else None
    return record


def _from_json(record: dict[str, Any]) -> Cell:
    numbers = [record[name] for name in ("value", "loss")]
    known = {each.name: record[each.name] for each in fields(Cell) if each.name in record}
    if not isinstance(known["of"], dict):
        raise TypeError
    value, loss = (math.nan if each is None else float(each) for each in numbers)
    return Cell(**{**known, "value": value, "loss": loss})


def _read(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """Return the cells of a file as JSON, and the offset of an incomplete last line."""
    if not path.exists():
        return [], None
    data = read_bytes(path)
    *lines, torn = data.split(b"\n")
    cells = [_to_json(_parse(line, path, number)) for number, line in enumerate(lines, 1)]
    return cells, len(data) - len(torn) if torn else None


def _parse(line: bytes, path: Path, number: int) -> Cell:
    where, cure = f"{path}, line {number}", "remove this line, or the file to score all cells again"
    try:
        record = parse_json(line, where)
        cell = _from_json(record)
    except (ValueError, KeyError, TypeError):
        shown = f"({line[:60]!r})"
        raise InputError(f"{where}: not a cell of a transfer matrix {shown}; {cure}") from None
    check_values(where, record, cure)
    return cell
