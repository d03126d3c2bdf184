"""A transfer matrix against the targets' own prompts, and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jpt.types import TransferMatrix


def relative_performance(matrix: TransferMatrix, own: Mapping[str, str]) -> TransferMatrix:
    """Divides every score by that of the target's own prompt.

    The paper's code has no such step; this is the ratio its text speaks of.

    Args:
        matrix: the scores.
        own: the own prompt of each target.

    Returns:
        The ratios; NaN for a target without an own prompt, or whose own score is not above 0.

    Example:
        >>> values = np.array([[0.4, 0.8]])
        >>> matrix = TransferMatrix(("imdb",), ("a", "b"), values, ("accuracy",))
        >>> relative_performance(matrix, {"imdb": "b"}).values
        array([[0.5, 1. ]])
    """
    own_values = np.full(len(matrix.targets), np.nan)
    for row, target in enumerate(matrix.targets):
        if target in own and own[target] in matrix.prompts:
            value = matrix.values[row, matrix.prompts.index(own[target])]
            own_values[row] = value if value > 0 else np.nan
    ratios = matrix.values / own_values[:, None]
    return TransferMatrix(matrix.targets, matrix.prompts, ratios, matrix.metrics)


def describe_matrix(matrix: TransferMatrix, own: Mapping[str, str], notes: Sequence[str]) -> str:
    """Lays a matrix out for reading.

    Args:
        matrix: the scores.
        own: the own prompt of each target, marked with a star.
        notes: lines that go below.

    Returns:
        The text.

    Example:
        >>> values = np.array([[0.4, 0.8]])
        >>> matrix = TransferMatrix(("imdb",), ("a", "b"), values, ("accuracy",))
        >>> print(describe_matrix(matrix, {"imdb": "b"}, []))
                  a       b
        imdb  0.400  0.800*
        * the target's own prompt
    """
    lines = [["", *matrix.prompts]]
    for target, row in zip(matrix.targets, matrix.values, strict=True):
        marks = ["*" if own.get(target) == prompt else "" for prompt in matrix.prompts]
        cells = [f"{value:.3f}{mark}" for value, mark in zip(row, marks, strict=True)]
        lines.append([target, *cells])
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    marked = ["* the target's own prompt"] if own else []
    return "\n".join([*text, *marked, *(f"note: {note}" for note in notes)])
