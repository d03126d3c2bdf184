"""Match prompts to their tasks; read and write matrices and activations; relative performance."""

from __future__ import annotations

import dataclasses
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
from jpt.io.files import atomic_file, read_bytes, read_json, read_number, read_table, write_table
from jpt.results.statistics import CLEAR_ERRORS, above_chance, is_at_chance
from jpt.results.value_checks import check_score, check_values
from jpt.tasks.catalog import task_type
from jpt.types import Activations, PromptCard, TransferMatrix

# --- Transfer matrices and activations

TRANSFER_COLUMNS = ("target_task", "source_prompt", "metric", "value")

# Columns of a matrix that are no sources: an untrained prompt, and the model without a prompt.
RANDOM, UNTOUCHED = "random", "none"
BASELINES = (RANDOM, UNTOUCHED)

# What `jpt transfer` computes from the scores, next to their file
RELATIVE, ABOVE_CHANCE, ERRORS = "relative.csv", "above_chance.csv", "standard_errors.csv"
_CURES = {"projection": "run jpt project evaluate again"}


def write_transfer(path: str | Path, matrix: TransferMatrix, blank: bool = False) -> None:
    """Write a transfer matrix, a line per pair; NaN is left out, or blank."""
    rows = [
        (target, prompt, metric, value)
        for target, metric, line in zip(matrix.targets, matrix.metrics, matrix.values, strict=True)
        for prompt, value in zip(matrix.prompts, line.tolist(), strict=True)
        if blank or not np.isnan(value)
    ]
    write_table(path, TRANSFER_COLUMNS, rows)


def write_errors(path: str | Path, matrix: TransferMatrix) -> None:
    """Write the standard errors of a matrix, a line per score."""
    if matrix.errors is not None:
        errors = dataclasses.replace(matrix, values=matrix.errors)
        write_transfer(path, errors, blank=True)


def read_transfer(path: str | Path) -> TransferMatrix:
    """Read a transfer matrix, with targets and prompts in the order of the file.

    Chance levels and standard errors are read from the record of the same name (for
    ``transfer.csv`` from ``transfer.json``), if there is one.

    Args:
        path: CSV file with the columns ``target_task,source_prompt,metric,value``.

    Returns:
        A `TransferMatrix`; NaN for pairs that the file does not contain.

    Raises:
        InputError: A column is missing, a value is not a number, a pair is repeated, a target has
            two metrics, the file has no rows, or the record is invalid.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "transfer.csv"
        >>> write_transfer(
        ...     file, TransferMatrix(("imdb",), ("a", "b"), np.array([[0.5, 0.75]]), ("accuracy",))
        ... )
        >>> read_transfer(file).values
        array([[0.5 , 0.75]])
    """
    return _read_matrix(path, are_scores=False)


def read_scores(path: str | Path) -> TransferMatrix:
    """Read a matrix of scores; raise InputError for another matrix, or values out of range."""
    if Path(path).name in (RELATIVE, ABOVE_CHANCE, ERRORS):
        raise InputError(
            f"{path}: expected scores, got what was computed from them; pass transfer.csv"
        )
    return _read_matrix(path, are_scores=True)


def _read_matrix(path: str | Path, are_scores: bool) -> TransferMatrix:
    rows, cure = (
        read_table(path, TRANSFER_COLUMNS),
        _CURES.get(Path(path).stem, "run jpt transfer again"),
    )
    if not rows:
        raise InputError(f"{path} has a header and no rows; {cure}")
    metrics: dict[str, str] = {}
    values: dict[tuple[str, str], float] = {}
    for number, row in enumerate(rows, 2):
        pair = (row["target_task"], row["source_prompt"])
        if pair in values:
            raise InputError(f"{path}, line {number}: {pair[1]} on {pair[0]} is repeated")
        if metrics.setdefault(pair[0], row["metric"]) != row["metric"]:
            raise InputError(
                f"{path}, line {number}: expected one metric per target, got {row['metric']} and"
                f" {metrics[pair[0]]} for {pair[0]}"
            )
        values[pair] = value = read_number(path, number, row, "value")
        if are_scores and not np.isnan(value):
            check_score(f"{path}, line {number}", row["metric"], value, cure)
    prompts = tuple(dict.fromkeys(prompt for _, prompt in values))
    table = [[values.get((target, prompt), np.nan) for prompt in prompts] for target in metrics]
    matrix = TransferMatrix(tuple(metrics), prompts, np.array(table), tuple(metrics.values()))
    return _with_levels(matrix, Path(path).with_suffix(".json"), cure)


def _with_levels(matrix: TransferMatrix, path: Path, cure: str) -> TransferMatrix:
    """Add chance levels and standard errors from the record of a matrix, if it has them."""
    record = read_json(path) if path.exists() else None
    targets = _table(record, "targets")
    levels = []
    for target, metric in zip(matrix.targets, matrix.metrics, strict=True):
        found = _table(targets, target)
        if found.get("metric") != metric:
            found = {}
        errors = _table(found, "standard_errors")
        levels.append([found.get("chance"), *map(errors.get, matrix.prompts)])
        for column, value in enumerate(levels[-1]):
            name = "standard_error" if column else "chance"
            check_values(f"{path}, target {target}", {name: value}, cure)
    numbers = np.array(levels, np.float64)  # None becomes NaN
    if np.isnan(numbers[:, 0]).all():
        return matrix
    return dataclasses.replace(matrix, chance=numbers[:, 0], errors=numbers[:, 1:])


def _table(record: Any, name: str) -> dict[str, Any]:
    """Return an object of a JSON record, empty if there is none."""
    found = record.get(name) if isinstance(record, dict) else None
    return found if isinstance(found, dict) else {}


def write_activations(path: str | Path, activations: Activations) -> None:
    """Write activations as ``names`` [K], ``activations`` [K, L, F] and ``probe``."""
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
    """Read activations; raise InputError if the file is invalid."""
    data = read_bytes(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names, values = arrays["names"], arrays["activations"]
            extra = {name: arrays[name] for name in ("rates", "cka") if name in arrays}
            probe = json.loads(str(arrays["probe"])) if "probe" in arrays else {"kind": "start"}
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        raise InputError(
            f"{path}: expected an activations file (names [K], activations [K, L, F]); make it"
            " with jpt neurons"
        ) from None
    if values.ndim != 3 or names.shape != values.shape[:1] or values.dtype.kind != "f":
        raise InputError(
            f"{path}: expected names [K] and activations [K, L, F] of floats, got"
            f" {list(names.shape)} and {list(values.shape)} ({values.dtype})"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{path}: an activation is NaN or infinite; run jpt neurons again")
    _check_extra(path, values.shape, extra, probe)
    listed = tuple(str(name) for name in names)
    check_unique(listed, str(path))
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
    """Raise InputError if the arrays of a text probe have the wrong shape or range."""
    prompts, layers, neurons = shape
    expected = {"rates": (prompts, layers, neurons), "cka": (layers, prompts, prompts)}
    for name, values in arrays.items():
        if values.shape != expected[name] or values.dtype.kind != "f":
            raise InputError(
                f"{path}: expected {name} {list(expected[name])} of floats, got"
                f" {list(values.shape)} ({values.dtype}); run jpt neurons --probe text again"
            )
    if "rates" in arrays and not ((arrays["rates"] >= 0) & (arrays["rates"] <= 1)).all():
        raise InputError(f"{path}: a rate is outside 0 to 1; run jpt neurons again")
    if not isinstance(probe, dict) or probe.get("kind") not in ("start", "text"):
        raise InputError(f"{path}: expected a probe of kind start or text, got {probe!r}")


def check_unique(names: Sequence[str], where: str) -> None:
    """Raise InputError if a name is repeated."""
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise InputError(f"{where}: expected unique names, got {name} {count} times")


# --- In-task prompts


def match_in_task_prompts(
    targets: Iterable[str], cards: Mapping[str, PromptCard]
) -> tuple[dict[str, str], list[str]]:
    """Return the in-task prompt of each target, and notes on targets without one."""
    # The in-task prompt is the one whose card names the target. If no card does, it is the prompt
    # with the target's name (imported prompts have the authors' file names); if several do, the one
    # of them with that name.
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
                f"{target} has {len(found)} in-task prompts ({', '.join(found[:3])}), none with its"
                " name: relative performance is not defined"
            )
        else:
            notes.append(f"{target} has no in-task prompt: relative performance is not defined")
    return in_task, notes


def short_task(name: str) -> str:
    """Return the name of a task in tables."""
    return name.rstrip("/").rsplit("/", 1)[-1]


# --- Means by task type and rankings


def summarize_relative(
    relative: Float64[np.ndarray, "N K"],
    targets: Sequence[str],
    sources: Sequence[str],
    in_task: Mapping[str, str],
    target_types: Mapping[str, str | None],
    source_types: Mapping[str, str | None],
    baselines: Mapping[str, Float64[np.ndarray, "N"] | None],
    measure: str = "relative",
) -> dict[str, Any]:
    """Compute means by task type of target and source, and the best source of each target."""
    # In-task prompts, tasks without a type and missing values are left out.
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
        f"{measure}_transfer": {
            **compare_types(relative, other, same),
            **{f"{name}_mean": _mean_of_known(values) for name, values in baselines.items()},
            "best_other_source": best,
            "fraction_of_targets_whose_best_other_source_has_same_type": _mean(np.array(hits)),
        },
        f"{measure}_by_type": {
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
    """Rank the sources of each target, best first; ties by name."""
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
    """Return a mask of the pairs whose prompt is not the in-task prompt of the target."""
    marks = np.array(
        [[in_task.get(target) != name for name in sources] for target in targets], bool
    )
    return marks.reshape(len(targets), len(sources))


def compare_types(
    values: Float64[np.ndarray, "N K"], used: Bool[np.ndarray, "N K"], same: Bool[np.ndarray, "N K"]
) -> dict[str, Any]:
    """Compute the mean over pairs of the same task type and over pairs of different types."""
    used = used & ~np.isnan(values)
    within, across = values[used & same], values[used & ~same]
    return {
        "same_type_mean": _mean(within),
        "different_type_mean": _mean(across),
        "n_same": len(within),
        "n_diff": len(across),
    }


def _crossed(
    rows: Bool[np.ndarray, "N"], columns: Bool[np.ndarray, "K"]
) -> Bool[np.ndarray, "N K"]:
    return rows[:, None] & columns[None]


def _mean_of_known(values: Float64[np.ndarray, "N"] | None) -> float | None:
    return None if values is None else _mean(values[~np.isnan(values)])


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


# --- Relative performance

WIDTH = 80  # of a terminal
AT_CHANCE, AT_CHANCE_MEANING = "~", "within one standard error of chance"
MEASURES = {"above_chance": "above chance", "relative": "as in the paper"}


def relative_performance(
    matrix: TransferMatrix, in_task: Mapping[str, str] | None = None
) -> TransferMatrix:
    """Divide every score by that of the target's in-task prompt.

    This is the relative performance of the paper's text; the authors' code has no such step.

    Args:
        matrix: scores.
        in_task: in-task prompt of each target; defaults to the prompt with the target's name.

    Returns:
        A `TransferMatrix` of ratios; NaN for a target without an in-task prompt, or whose in-task
        score is not above 0.

    Example:
        >>> values = np.array([[0.4, 0.8]])
        >>> matrix = TransferMatrix(("imdb",), ("a", "b"), values, ("accuracy",))
        >>> relative_performance(matrix, {"imdb": "b"}).values
        array([[0.5, 1. ]])
    """
    zero = {"chance": np.zeros(len(matrix.targets)), "errors": np.zeros(matrix.values.shape)}
    return performance_above_chance(dataclasses.replace(matrix, **zero), in_task)


def performance_above_chance(
    matrix: TransferMatrix, in_task: Mapping[str, str] | None = None
) -> TransferMatrix:
    """Return (score - chance) / (in-task score - chance); NaN where that is undefined."""
    levels = (level[:, None] for level in in_task_levels(matrix, _in_task(matrix, in_task)))
    values = above_chance(matrix.values, *levels)
    return TransferMatrix(matrix.targets, matrix.prompts, values, matrix.metrics)


def performances(
    matrix: TransferMatrix, in_task: Mapping[str, str] | None = None
) -> dict[str, TransferMatrix]:
    """Return the relative performance and, if chance levels are known, that above chance."""
    found = {"relative": relative_performance(matrix, in_task)}
    if matrix.chance is not None:
        found["above_chance"] = performance_above_chance(matrix, in_task)
    return found


def in_task_levels(
    matrix: TransferMatrix, in_task: Mapping[str, str]
) -> Float64[np.ndarray, "3 N"]:
    """Return chance, in-task score and its standard error of each target; NaN if unknown."""
    levels = np.full((3, len(matrix.targets)), np.nan)
    if matrix.chance is not None:
        levels[0] = matrix.chance
    for row, target in enumerate(matrix.targets):
        if (name := in_task.get(target)) in matrix.prompts:
            column = matrix.prompts.index(name)
            levels[1, row] = matrix.values[row, column]
            if matrix.errors is not None:
                levels[2, row] = matrix.errors[row, column]
    return levels


def at_chance(matrix: TransferMatrix) -> Bool[np.ndarray, "N K"]:
    """Return which scores are within one standard error of chance."""
    if matrix.chance is None or matrix.errors is None:
        return np.zeros(matrix.values.shape, bool)
    return is_at_chance(matrix.values, matrix.chance[:, None], matrix.errors)


def tie_at_chance(matrix: TransferMatrix) -> TransferMatrix:
    """Set the scores within one standard error of chance to the chance level."""
    if matrix.chance is None:
        return matrix
    values = np.where(at_chance(matrix), matrix.chance[:, None], matrix.values)
    return dataclasses.replace(matrix, values=values)


def chance_notes(matrix: TransferMatrix, in_task: Mapping[str, str]) -> list[str]:
    """Return notes on targets whose performance above chance is undefined."""
    lines = []
    levels = in_task_levels(matrix, in_task).T.tolist()
    for target, metric, level in zip(matrix.targets, matrix.metrics, levels, strict=True):
        chance, score, error = level
        if matrix.chance is None or np.isnan(score) or score - chance > CLEAR_ERRORS * error:
            continue
        reason = (
            f"in-task {metric} {score:.3f} is not more than two standard errors"
            f" (2 x {error:.3f}) above chance ({chance:.3f})"
        )
        if np.isnan(chance + error):
            reason = f"chance level or standard error of its {metric} is unknown"
        lines.append(f"{target}: {reason}, performance above chance is not defined")
    return lines


def chance_record(matrix: TransferMatrix) -> dict[str, dict[str, Any]]:
    """Return chance level and standard errors of each target, ready for JSON."""
    assert matrix.chance is not None and matrix.errors is not None
    levels = zip(matrix.targets, matrix.chance.tolist(), matrix.errors.tolist(), strict=True)
    return {
        target: {
            "chance": _or_none(chance),
            "standard_errors": dict(zip(matrix.prompts, map(_or_none, errors), strict=True)),
        }
        for target, chance, errors in levels
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def summarize_transfer(
    matrix: TransferMatrix | str | Path,
    in_task: Mapping[str, str] | None = None,
    target_types: Mapping[str, str | None] | None = None,
    prompt_types: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Summarise a matrix: means by task type, and the ranking of each target's sources.

    In-task prompts, the untrained prompt and the model without a prompt are not ranked.

    Args:
        matrix: scores, or the CSV file with them.
        in_task: in-task prompt of each target; defaults to the prompt with the target's name.
        target_types: task type of each target; defaults to those of built-in, catalog and
            released tasks.
        prompt_types: task type of each prompt; defaults to that of the task with its name.

    Returns:
        ``relative_transfer`` and ``relative_by_type`` as in ``types.json``, for a matrix with
        chance levels also ``above_chance_transfer`` and ``above_chance_by_type``, and
        ``ranking``: the sources of each target, best first.

    Raises:
        InputError: The file is not a transfer matrix.

    Example:
        >>> values, names = np.array([[0.8, 0.6, 0.4]]), ("imdb", "sst2", "mnli")
        >>> found = summarize_transfer(TransferMatrix(("imdb",), names, values, ("accuracy",)))
        >>> found["ranking"], found["relative_by_type"]["sentiment"]["nli"]
        ({'imdb': ['sst2', 'mnli']}, 0.5)
    """
    if not isinstance(matrix, TransferMatrix):
        matrix = read_transfer(matrix)
    in_task = _in_task(matrix, in_task)
    found = performances(matrix, in_task)
    sources = [name for name in matrix.prompts if name not in BASELINES]
    columns = [matrix.prompts.index(name) for name in sources]
    kinds = {name: task_type(name) for name in (*matrix.targets, *sources)}
    summary: dict[str, Any] = {}
    for measure, performance in found.items():
        summary |= summarize_relative(
            performance.values[:, columns],
            matrix.targets,
            sources,
            in_task,
            kinds if target_types is None else target_types,
            kinds if prompt_types is None else prompt_types,
            baseline_columns(performance),
            measure,
        )
    relative = found["relative"].values[:, columns]
    ranking = rank_sources(relative, matrix.targets, sources, in_task)
    return {**summary, "ranking": {target: names for target, names in ranking.items() if names}}


def _in_task(matrix: TransferMatrix, in_task: Mapping[str, str] | None) -> Mapping[str, str]:
    if in_task is not None:
        return in_task
    names = (name for name in matrix.prompts if name not in BASELINES)
    return match_in_task_prompts(matrix.targets, {name: PromptCard("", name) for name in names})[0]


def baseline_columns(matrix: TransferMatrix) -> dict[str, Float64[np.ndarray, "N"] | None]:
    """Return the columns of the baselines; None for those not in the matrix."""
    return {
        key: matrix.values[:, matrix.prompts.index(name)] if name in matrix.prompts else None
        for key, name in {"random": RANDOM, "untouched": UNTOUCHED}.items()
    }


def describe_matrix(
    matrix: TransferMatrix,
    in_task: Mapping[str, str],
    notes: Sequence[str],
    deviations: Mapping[tuple[str, str], float] | None = None,
) -> str:
    """Return a matrix as a table, with its notes."""
    deviations, near = deviations or {}, at_chance(matrix)
    last = [] if matrix.chance is None else ["chance"]
    lines = [["", *matrix.prompts, *last]]
    width = 1 if in_task or near.any() else 0  # of the marks, so that the numbers are aligned
    for row, target in enumerate(matrix.targets):
        cells = []
        for column, prompt in enumerate(matrix.prompts):
            spread = deviations.get((target, prompt))
            text = f"{matrix.values[row, column]:.3f}"
            text += "" if spread is None else f"±{spread:.3f}"
            mark = "*" if in_task.get(target) == prompt else ""
            mark += AT_CHANCE if near[row, column] else ""
            cells.append(text + mark.ljust(width))
        lines.append([target, *cells, *(_figure(matrix.chance[row]) for _ in last)])
    legend = ["* in-task prompt"] if in_task else []
    legend += [f"{AT_CHANCE} {AT_CHANCE_MEANING}"] if near.any() else []
    wrapped = [line for note in notes for line in textwrap.wrap(f"note: {note}", WIDTH)]
    return "\n".join([*align_columns(lines), *legend, *wrapped])


def describe_relative(summary: Mapping[str, Any]) -> list[str]:
    """Return both relative performances as tables: means, and means by task type."""
    means = [["mean relative performance", "same type", "other types", *BASELINES]]
    by_type: list[str] = []
    for measure, label in MEASURES.items():
        found = summary.get(f"{measure}_transfer", {})
        cells = [
            found.get(f"{name}_mean")
            for name in ("same_type", "different_type", "random", "untouched")
        ]
        if cells != [None] * len(cells):
            means.append([label, *map(_figure, cells)])
            by_type += _describe_types(summary[f"{measure}_by_type"], label)
    if len(means) == 1:
        return []
    return [
        *align_columns(means),
        "(over pairs of a target and a prompt of another task)",
        *by_type,
    ]


def _describe_types(by_type: Mapping[str, Mapping[str, float | None]], label: str) -> list[str]:
    """Return means by task type as a table."""
    sources = list(next(iter(by_type.values()), {}))
    lines = [[kind, *(_figure(means[name]) for name in sources)] for kind, means in by_type.items()]
    head = f"mean relative performance by task type, {label} (rows: targets)"
    return [head, *align_columns([["", *sources], *lines])] if sources else []


def _figure(value: float | None) -> str:
    if value is None or np.isnan(value):
        return "-"
    return f"{round(float(value), 3) + 0.0:.3f}"  # adding 0 turns -0.0 into 0.0


def align_columns(lines: Sequence[Sequence[str]], least: int = 0) -> list[str]:
    """Align a table to 80 columns; further columns follow in blocks below."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] = max(widths[0], least)
    blocks: list[list[int]] = [[]]
    for column in range(1, len(widths)):
        used = widths[0] + sum(2 + widths[other] for other in blocks[-1])
        if blocks[-1] and used + 2 + widths[column] > WIDTH:
            blocks.append([])
        blocks[-1].append(column)
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(line[column].rjust(widths[column]) for column in block)]
        ).rstrip()
        for block in blocks
        for line in lines
    ]
