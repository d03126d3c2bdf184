"""The table of cross-model transfer as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jpt.transfer.relative import align_columns
from jpt.types import TransferMatrix


def describe_table(matrix: TransferMatrix, record: Mapping[str, Any]) -> str:
    """Lays the table out for reading."""
    trained_on = record["trained_on"]
    lines = [["", "majority", *matrix.prompts]]
    majorities = [record["targets"][target]["majority"] for target in matrix.targets]
    for target, majority, row in zip(matrix.targets, majorities, matrix.values, strict=True):
        cells = [
            _cell(value, target in trained_on.get(name, ()))
            for name, value in zip(matrix.prompts, row, strict=True)
        ]
        lines.append([target, _cell(majority), *cells])
    known = [majority for majority in majorities if majority is not None]
    means = [_cell(_mean(column)) for column in matrix.values.T]
    lines.append(["mean", _cell(_mean(known)), *means])
    lines.append(["unseen", "-", *_unseen(matrix, trained_on)])
    notes = ["* the projector was trained on this task"] if any(trained_on.values()) else []
    for target, told in record["targets"].items():
        if told.get("split") != record.get("split"):
            notes.append(
                f"note: {target} has no {record['split']} split: scored on {told['split']}"
            )
    return "\n".join([*align_columns(lines, least=9), *notes])


def _unseen(matrix: TransferMatrix, trained_on: Mapping[str, Sequence[str]]) -> list[str]:
    """Means over the tasks that a projector was not trained on."""
    cells = []
    for place, name in enumerate(matrix.prompts):
        new = [target not in trained_on.get(name, ()) for target in matrix.targets]
        cells.append(_cell(_mean(matrix.values[new, place])) if name in trained_on else "-")
    return cells


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def _cell(value: float | None, is_marked: bool = False) -> str:
    if value is None or np.isnan(value):
        return "-"
    return f"{value:.3f}{'*' if is_marked else ''}"
