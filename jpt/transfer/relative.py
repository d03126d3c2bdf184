"""A transfer matrix against the targets' own prompts: ratios, means by type, and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from jpt.files.study_files import BASELINES, RANDOM, UNTOUCHED, read_transfer
from jpt.prompts.own import own_prompts
from jpt.prompts.relative_means import rank_sources, summarize_relative
from jpt.tasks.reference_names import task_type
from jpt.types import PromptCard, TransferMatrix

WIDTH = 80
"""Columns of a terminal."""


def relative_performance(
    matrix: TransferMatrix, own: Mapping[str, str] | None = None
) -> TransferMatrix:
    """Divides every score by that of the target's own prompt.

    The paper's code has no such step; this is the ratio its text speaks of.

    Args:
        matrix: the scores.
        own: the own prompt of each target; by default the prompt that is called like it.

    Returns:
        The ratios; NaN for a target without an own prompt, or whose own score is not above 0.

    Example:
        >>> values = np.array([[0.4, 0.8]])
        >>> matrix = TransferMatrix(("imdb",), ("a", "b"), values, ("accuracy",))
        >>> relative_performance(matrix, {"imdb": "b"}).values
        array([[0.5, 1. ]])
    """
    own = _own(matrix, own)
    own_values = np.full(len(matrix.targets), np.nan)
    for row, target in enumerate(matrix.targets):
        if target in own and own[target] in matrix.prompts:
            value = matrix.values[row, matrix.prompts.index(own[target])]
            own_values[row] = value if value > 0 else np.nan
    ratios = matrix.values / own_values[:, None]
    return TransferMatrix(matrix.targets, matrix.prompts, ratios, matrix.metrics)


def summarize_transfer(
    matrix: TransferMatrix | str | Path,
    own: Mapping[str, str] | None = None,
    target_types: Mapping[str, str | None] | None = None,
    prompt_types: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Says a matrix in short: means by type of task, and the ranking of each target's sources.

    A target's own prompt, the untrained prompt and the model without a prompt are no sources.

    Args:
        matrix: the scores, or the file that holds them.
        own: the own prompt of each target; by default the prompt that is called like it.
        target_types: type of each target; by default as built-in, catalog or released tasks have
            it.
        prompt_types: type of the task that each prompt is for; by default likewise, by its name.

    Returns:
        ``relative_transfer`` and ``relative_by_type`` as ``types.json`` has them, and ``ranking``:
        the sources of each target from best to worst.

    Raises:
        InputError: the file is no transfer matrix.

    Example:
        >>> values, names = np.array([[0.8, 0.6, 0.4]]), ("imdb", "sst2", "mnli")
        >>> found = summarize_transfer(TransferMatrix(("imdb",), names, values, ("accuracy",)))
        >>> found["ranking"], found["relative_by_type"]["sentiment"]["nli"]
        ({'imdb': ['sst2', 'mnli']}, 0.5)
    """
    if not isinstance(matrix, TransferMatrix):
        matrix = read_transfer(matrix)
    own = _own(matrix, own)
    relative = relative_performance(matrix, own)
    sources = [name for name in matrix.prompts if name not in BASELINES]
    values = relative.values[:, [matrix.prompts.index(name) for name in sources]]
    kinds = {name: task_type(name) for name in (*matrix.targets, *sources)}
    summary = summarize_relative(
        values,
        matrix.targets,
        sources,
        own,
        kinds if target_types is None else target_types,
        kinds if prompt_types is None else prompt_types,
        {"random": _column(relative, RANDOM), "untouched": _column(relative, UNTOUCHED)},
    )
    ranking = rank_sources(values, matrix.targets, sources, own)
    return {**summary, "ranking": {target: names for target, names in ranking.items() if names}}


def _own(matrix: TransferMatrix, own: Mapping[str, str] | None) -> Mapping[str, str]:
    if own is not None:
        return own
    names = (name for name in matrix.prompts if name not in BASELINES)
    return own_prompts(matrix.targets, {name: PromptCard("", name) for name in names})[0]


def _column(matrix: TransferMatrix, name: str) -> Float64[np.ndarray, "N"] | None:
    return matrix.values[:, matrix.prompts.index(name)] if name in matrix.prompts else None


def describe_matrix(
    matrix: TransferMatrix,
    own: Mapping[str, str],
    notes: Sequence[str],
    deviations: Mapping[tuple[str, str], float] | None = None,
) -> str:
    """Lays a matrix out for reading."""
    deviations = deviations or {}
    lines = [["", *matrix.prompts]]
    for target, row in zip(matrix.targets, matrix.values, strict=True):
        cells = []
        for prompt, value in zip(matrix.prompts, row, strict=True):
            spread = deviations.get((target, prompt))
            mark = "*" if own.get(target) == prompt else ""
            cells.append(f"{value:.3f}{'' if spread is None else f'±{spread:.3f}'}{mark}")
        lines.append([target, *cells])
    marked = ["* the target's own prompt"] if own else []
    told = [line for note in notes for line in textwrap.wrap(f"note: {note}", WIDTH)]
    return "\n".join([*align_columns(lines), *marked, *told])


def describe_types(by_type: Mapping[str, Mapping[str, float | None]]) -> str:
    """Lays means by type of task out for reading."""
    if not by_type:
        return ""
    sources = list(next(iter(by_type.values())))
    lines = [["", *sources]]
    for kind, means in by_type.items():
        lines.append([kind, *("-" if (m := means[s]) is None else f"{m:.3f}" for s in sources)])
    head = "mean relative performance by type of target (rows) and source, without own ones"
    return "\n".join([head, *align_columns(lines)])


def align_columns(lines: Sequence[Sequence[str]], least: int = 0) -> list[str]:
    """Sets a table in 80 columns: what has no room in a line follows in a table below."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    widths[0] = max(widths[0], least)
    blocks: list[list[int]] = [[]]
    for place in range(1, len(widths)):
        used = widths[0] + sum(2 + widths[other] for other in blocks[-1])
        if blocks[-1] and used + 2 + widths[place] > WIDTH:
            blocks.append([])
        blocks[-1].append(place)
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(line[place].rjust(widths[place]) for place in block)]
        ).rstrip()
        for block in blocks
        for line in lines
    ]
