"""Match prompts to their tasks; read and write matrices and activations; relative performance."""

from __future__ import annotations

import io
import json
import textwrap
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from jpt.errors import InputError
from jpt.io.files import atomic_file, read_bytes, read_number, read_table, write_table
from jpt.tasks.catalog import task_type
from jpt.types import Activations, PromptCard, TransferMatrix

# --- The results that one command writes and another reads: transfer matrices and activations

TRANSFER_COLUMNS = ("target_task", "source_prompt", "metric", "value")

RANDOM, UNTOUCHED = "random", "none"
BASELINES = (RANDOM, UNTOUCHED)
"""Columns of a matrix that are no sources: an untrained prompt, and the model without a prompt."""


def write_transfer(path: str | Path, matrix: TransferMatrix) -> None:
    """Writes a transfer matrix as ``target_task,source_prompt,metric,value``."""
    rows = [
        (target, prompt, metric, value)
        for target, metric, line in zip(matrix.targets, matrix.metrics, matrix.values, strict=True)
        for prompt, value in zip(matrix.prompts, line.tolist(), strict=True)
        if not np.isnan(value)
    ]
    write_table(path, TRANSFER_COLUMNS, rows)


def read_transfer(path: str | Path) -> TransferMatrix:
    """Reads a transfer matrix; targets and prompts stand in the order in which they first come.

    Args:
        path: a table with the columns of `write_transfer`.

    Returns:
        The matrix; NaN where the table has no line for a pair.

    Raises:
        InputError: a column is missing, a value is no number, a pair stands twice, a target has
            two metrics, or there is no line at all.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "transfer.csv"
        >>> write_transfer(
        ...     file, TransferMatrix(("imdb",), ("a", "b"), np.array([[0.5, 0.75]]), ("accuracy",))
        ... )
        >>> read_transfer(file).values
        array([[0.5 , 0.75]])
    """
    rows = read_table(path, TRANSFER_COLUMNS)
    if not rows:
        raise InputError(f"{path} has a header and no line; run jpt transfer again")
    metrics: dict[str, str] = {}
    values: dict[tuple[str, str], float] = {}
    for number, row in enumerate(rows, 2):
        pair = (row["target_task"], row["source_prompt"])
        if pair in values:
            raise InputError(f"{path}, line {number}: {pair[1]} on {pair[0]} stands there twice")
        if metrics.setdefault(pair[0], row["metric"]) != row["metric"]:
            raise InputError(
                f"{path}, line {number}: {pair[0]} is measured by {row['metric']} here and by"
                f" {metrics[pair[0]]} above; one metric a target expected"
            )
        values[pair] = read_number(path, number, row, "value")
    prompts = tuple(dict.fromkeys(prompt for _, prompt in values))
    table = [[values.get((target, prompt), np.nan) for prompt in prompts] for target in metrics]
    return TransferMatrix(tuple(metrics), prompts, np.array(table), tuple(metrics.values()))


def write_activations(path: str | Path, activations: Activations) -> None:
    """Writes activations as ``names`` [K], ``activations`` [K, L, F] and ``probe``."""
    arrays = {
        "names": np.array(activations.names),
        "activations": activations.values.astype(np.float32),
        "probe": np.array(json.dumps(activations.probe)),
    }
    if activations.rates is not None:
        arrays["rates"] = activations.rates.astype(np.float32)
    if activations.cka is not None:
        arrays["cka"] = activations.cka.astype(np.float64)
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def read_activations(path: str | Path) -> Activations:
    """Reads activations."""
    data = read_bytes(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names, values = arrays["names"], arrays["activations"]
            extra = {name: arrays[name] for name in ("rates", "cka") if name in arrays}
            probe = json.loads(str(arrays["probe"])) if "probe" in arrays else {"kind": "start"}
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        raise InputError(
            f"{path} is no file of activations (names [K] and activations [K, L, F]); make it with"
            " jpt neurons"
        ) from None
    if values.ndim != 3 or names.shape != values.shape[:1] or values.dtype.kind != "f":
        raise InputError(
            f"{path}: names {list(names.shape)} and activations {list(values.shape)}"
            f" ({values.dtype}); [K] and [K, L, F] of floats expected"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{path}: an activation is NaN or infinite; make it again")
    _check_extra(path, values.shape, extra, probe)
    listed = tuple(str(name) for name in names)
    refuse_twice(listed, str(path))
    rates, cka = extra.get("rates"), extra.get("cka")
    return Activations(
        listed,
        values.astype(np.float32),
        None if rates is None else rates.astype(np.float32),
        None if cka is None else cka.astype(np.float64),
        probe,
    )


def _check_extra(
    path: str | Path,
    shape: tuple[int, int, int],
    arrays: dict[str, Float[np.ndarray, "..."]],
    probe: Any,
) -> None:
    """Refuses what a probe on text adds where it is not of these prompts and layers."""
    prompts, layers, neurons = shape
    expected = {"rates": (prompts, layers, neurons), "cka": (layers, prompts, prompts)}
    for name, values in arrays.items():
        if values.shape != expected[name] or values.dtype.kind != "f":
            raise InputError(
                f"{path}: {name} is {list(values.shape)} ({values.dtype}); {list(expected[name])}"
                " of floats expected: make it again with jpt neurons --probe text"
            )
    if "rates" in arrays and not ((arrays["rates"] >= 0) & (arrays["rates"] <= 1)).all():
        raise InputError(f"{path}: a rate is outside 0 to 1; make it again with jpt neurons")
    if not isinstance(probe, dict) or probe.get("kind") not in ("start", "text"):
        raise InputError(f"{path}: probe is {probe!r}; an object with kind start or text expected")


def refuse_twice(names: Sequence[str], where: str) -> None:
    """Refuses names that do not tell things apart."""
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise InputError(f"{where} names {name} {count} times; give each prompt its own name")


# --- Which prompt is a task's own, and what type of task a prompt is for


def match_in_task_prompts(
    targets: Iterable[str], cards: Mapping[str, PromptCard]
) -> tuple[dict[str, str], list[str]]:
    """Finds the prompt that was tuned for each target."""
    # The own prompt is the one whose card names the target; where none does, the one that is called
    # like the target (imported prompts: the authors' file names); where several do, the one of them
    # that is called like it. Anything else is not guessed.
    in_task: dict[str, str] = {}
    notes: list[str] = []
    for target in targets:
        found = [name for name, card in cards.items() if short_task(card.task) == target]
        if target in cards and (not found or target in found):
            found = [target]
        if len(found) == 1:
            in_task[target] = found[0]
        elif found:
            notes.append(
                f"{target} has {len(found)} prompts of its own ({', '.join(found[:3])}) and none is"
                " called like it: relative performance is not defined"
            )
        else:
            notes.append(f"{target} has no prompt of its own: relative performance is not defined")
    return in_task, notes


def short_task(name: str) -> str:
    """Gives the name of a task in tables."""
    return name.rstrip("/").rsplit("/", 1)[-1]


# --- Relative performance by type of task, and which sources do best: what a matrix says in short


def summarize_relative(
    relative: Float64[np.ndarray, "N K"],
    targets: Sequence[str],
    sources: Sequence[str],
    in_task: Mapping[str, str],
    target_types: Mapping[str, str | None],
    source_types: Mapping[str, str | None],
    baselines: Mapping[str, Float64[np.ndarray, "N"] | None],
) -> dict[str, Any]:
    """Computes means by type of target and of source, and the best source of each target."""
    # A target's own prompt is left out of all of them, and so is what has no type or no value.
    rows = [row for row, name in enumerate(targets) if target_types.get(name)]
    columns = [column for column, name in enumerate(sources) if source_types.get(name)]
    targets, sources = [targets[row] for row in rows], [sources[column] for column in columns]
    relative = relative[np.ix_(rows, columns)]
    other = others(targets, sources, in_task) & ~np.isnan(relative)
    row_types = np.array([target_types[name] for name in targets])
    column_types = np.array([source_types[name] for name in sources])
    same = row_types[:, None] == column_types[None]
    ranking = rank_sources(relative, targets, sources, in_task)
    best = {target: ranked[0] for target, ranked in ranking.items() if ranked}
    hits = [source_types[source] == target_types[target] for target, source in best.items()]
    return {
        "relative_transfer": {
            **compare_types(relative, other, same),
            **{f"{name}_mean": _mean_of_known(values) for name, values in baselines.items()},
            "best_other_source": best,
            "fraction_of_targets_whose_best_other_source_has_same_type": _mean(np.array(hits)),
        },
        "relative_by_type": {
            kind: {
                source: _mean(relative[other & _crossed(row_types == kind, column_types == source)])
                for source in dict.fromkeys(column_types.tolist())
            }
            for kind in dict.fromkeys(row_types.tolist())
        },
    }


def rank_sources(
    relative: Float64[np.ndarray, "N K"],
    targets: Sequence[str],
    sources: Sequence[str],
    in_task: Mapping[str, str],
) -> dict[str, list[str]]:
    """Sorts the sources of each target from best to worst; equal ones by name."""
    used = others(targets, sources, in_task) & ~np.isnan(relative)
    return {
        target: [
            name
            for _, name in sorted(
                (-value, name)
                for value, name, ok in zip(line, sources, used_line, strict=True)
                if ok
            )
        ]
        for target, line, used_line in zip(targets, relative.tolist(), used, strict=True)
    }


def others(
    targets: Sequence[str], sources: Sequence[str], in_task: Mapping[str, str]
) -> Bool[np.ndarray, "N K"]:
    """Marks the pairs of a target and a prompt that is not its own."""
    marks = np.array(
        [[in_task.get(target) != name for name in sources] for target in targets], bool
    )
    return marks.reshape(len(targets), len(sources))


def compare_types(
    values: Float64[np.ndarray, "N K"],
    used: Bool[np.ndarray, "N K"],
    same: Bool[np.ndarray, "N K"],
) -> dict[str, Any]:
    """Computes the mean over pairs of one type and over pairs of two types."""
    used = used & ~np.isnan(values)
    alike, unlike = values[used & same], values[used & ~same]
    return {
        "same_type_mean": _mean(alike),
        "different_type_mean": _mean(unlike),
        "n_same": len(alike),
        "n_diff": len(unlike),
    }


def _crossed(
    rows: Bool[np.ndarray, "N"], columns: Bool[np.ndarray, "K"]
) -> Bool[np.ndarray, "N K"]:
    return rows[:, None] & columns[None]


def _mean_of_known(values: Float64[np.ndarray, "N"] | None) -> float | None:
    return None if values is None else _mean(values[~np.isnan(values)])


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


# --- A transfer matrix against the targets' own prompts: ratios, means by type, and as text

WIDTH = 80
"""Columns of a terminal."""


def relative_performance(
    matrix: TransferMatrix, in_task: Mapping[str, str] | None = None
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
    in_task = _in_task(matrix, in_task)
    in_task_values = np.full(len(matrix.targets), np.nan)
    for row, target in enumerate(matrix.targets):
        if target in in_task and in_task[target] in matrix.prompts:
            value = matrix.values[row, matrix.prompts.index(in_task[target])]
            in_task_values[row] = value if value > 0 else np.nan
    ratios = matrix.values / in_task_values[:, None]
    return TransferMatrix(matrix.targets, matrix.prompts, ratios, matrix.metrics)


def summarize_transfer(
    matrix: TransferMatrix | str | Path,
    in_task: Mapping[str, str] | None = None,
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
    in_task = _in_task(matrix, in_task)
    relative = relative_performance(matrix, in_task)
    sources = [name for name in matrix.prompts if name not in BASELINES]
    values = relative.values[:, [matrix.prompts.index(name) for name in sources]]
    kinds = {name: task_type(name) for name in (*matrix.targets, *sources)}
    summary = summarize_relative(
        values,
        matrix.targets,
        sources,
        in_task,
        kinds if target_types is None else target_types,
        kinds if prompt_types is None else prompt_types,
        {"random": _column(relative, RANDOM), "untouched": _column(relative, UNTOUCHED)},
    )
    ranking = rank_sources(values, matrix.targets, sources, in_task)
    return {**summary, "ranking": {target: names for target, names in ranking.items() if names}}


def _in_task(matrix: TransferMatrix, in_task: Mapping[str, str] | None) -> Mapping[str, str]:
    if in_task is not None:
        return in_task
    names = (name for name in matrix.prompts if name not in BASELINES)
    return match_in_task_prompts(matrix.targets, {name: PromptCard("", name) for name in names})[0]


def _column(matrix: TransferMatrix, name: str) -> Float64[np.ndarray, "N"] | None:
    return matrix.values[:, matrix.prompts.index(name)] if name in matrix.prompts else None


def describe_matrix(
    matrix: TransferMatrix,
    in_task: Mapping[str, str],
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
            mark = "*" if in_task.get(target) == prompt else ""
            cells.append(f"{value:.3f}{'' if spread is None else f'±{spread:.3f}'}{mark}")
        lines.append([target, *cells])
    marked = ["* the target's own prompt"] if in_task else []
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
