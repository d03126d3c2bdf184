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
from jpt.results.statistics import above_chance, binomial_error, error_over_seeds, is_at_chance
from jpt.results.value_checks import check_score
from jpt.tasks.catalog import task_type
from jpt.types import Activations, PromptCard, TransferMatrix

# --- Transfer matrices and activations

TRANSFER_COLUMNS = ("target_task", "source_prompt", "metric", "value")

# Columns of a matrix that are no sources: an untrained prompt, and the model without a prompt.
RANDOM, UNTOUCHED = "random", "none"
BASELINES = (RANDOM, UNTOUCHED)

ERRORS = "standard_errors.csv"  # of a matrix, in the same folder


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
    """Read a matrix of scores; raise InputError if one is out of the range of its metric."""
    return _read_matrix(path, are_scores=True)


def _read_matrix(path: str | Path, are_scores: bool) -> TransferMatrix:
    rows = read_table(path, TRANSFER_COLUMNS)
    if not rows:
        raise InputError(f"{path} has a header and no rows; run jpt transfer again")
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
            check_score(f"{path}, line {number}", row["metric"], value, "run jpt transfer again")
    prompts = tuple(dict.fromkeys(prompt for _, prompt in values))
    table = [[values.get((target, prompt), np.nan) for prompt in prompts] for target in metrics]
    matrix = TransferMatrix(tuple(metrics), prompts, np.array(table), tuple(metrics.values()))
    return _with_errors(matrix, Path(path).with_suffix(".json"))


def _with_errors(matrix: TransferMatrix, path: Path) -> TransferMatrix:
    """Add chance levels and standard errors from the record of a matrix, if it has them."""
    record = read_json(path) if path.exists() else {}
    targets = record.get("targets") if isinstance(record, dict) else None
    if not isinstance(targets, dict):
        return matrix
    chance, errors = np.full(len(matrix.targets), np.nan), np.full(matrix.values.shape, np.nan)
    for row, (target, metric) in enumerate(zip(matrix.targets, matrix.metrics, strict=True)):
        found = targets.get(target)
        if not isinstance(found, dict) or found.get("metric", metric) != metric:
            continue
        if "chance" in found:
            listed = found.get("standard_errors")
            listed = listed if isinstance(listed, dict) else {}
            chance[row] = _number(path, f"{target}.chance", found["chance"], least=-1)
            errors[row] = [
                _number(path, f"{target}.standard_errors.{name}", listed.get(name))
                for name in matrix.prompts
            ]
        elif metric == "accuracy":  # a record of an older version
            chance[row] = _number(path, f"{target}.majority", found.get("majority"))
            errors[row] = _accuracy_errors(matrix, row, found.get("rows"), record.get("seeds"))
    if np.isnan(chance).all():
        return matrix
    return dataclasses.replace(matrix, chance=chance, errors=errors)


def _accuracy_errors(
    matrix: TransferMatrix, row: int, n_rows: Any, seeds: Any
) -> Float64[np.ndarray, "K"]:
    """Return the standard errors of a target's accuracies, from the number of rows."""
    if type(n_rows) is not int or n_rows < 1:
        return np.full(len(matrix.prompts), np.nan)
    errors = [binomial_error(value, n_rows) for value in matrix.values[row].clip(0, 1).tolist()]
    for column, name in enumerate(matrix.prompts):
        try:
            values = seeds[name]["targets"][matrix.targets[row]]["values"]
            of_seeds = [binomial_error(value, n_rows) for value in values]
        except (KeyError, TypeError, ValueError):
            continue  # one seed
        errors[column] = error_over_seeds(values, of_seeds)
    return np.array(errors)


def _number(path: Path, key: str, value: Any, least: float = 0) -> float:
    if value is None:
        return np.nan
    if type(value) not in (int, float) or not least <= value <= 1:
        command = "jpt project evaluate" if path.stem == "projection" else "jpt transfer"
        raise InputError(
            f"{path}: expected a number from {least} to 1 at targets.{key}, got {value!r};"
            f" regenerate it with {command}"
        )
    return float(value)


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
_MEASURES = {"above_chance": "above chance", "relative": "as in the paper"}


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
    scores, _ = _in_task_scores(matrix, _in_task(matrix, in_task))
    ratios = matrix.values / np.where(scores > 0, scores, np.nan)[:, None]
    return TransferMatrix(matrix.targets, matrix.prompts, ratios, matrix.metrics)


def performance_above_chance(
    matrix: TransferMatrix, in_task: Mapping[str, str] | None = None
) -> TransferMatrix:
    """Return (score - chance) / (in-task score - chance); NaN where that is undefined."""
    scores, errors = _in_task_scores(matrix, _in_task(matrix, in_task))
    chance = np.full(len(scores), np.nan) if matrix.chance is None else matrix.chance
    columns = (each[:, None] for each in (chance, scores, errors))
    values = above_chance(matrix.values, *columns)
    return TransferMatrix(matrix.targets, matrix.prompts, values, matrix.metrics)


def at_chance(matrix: TransferMatrix) -> Bool[np.ndarray, "N K"]:
    """Return which scores are within one standard error of chance."""
    if matrix.chance is None or matrix.errors is None:
        return np.zeros(matrix.values.shape, bool)
    return is_at_chance(matrix.values, matrix.chance[:, None], matrix.errors)


def chance_notes(matrix: TransferMatrix, in_task: Mapping[str, str]) -> list[str]:
    """Return notes on targets whose performance above chance is undefined."""
    scores, errors = _in_task_scores(matrix, in_task)
    if matrix.chance is None:
        return []
    blank = np.isnan(above_chance(scores, matrix.chance, scores, errors)) & ~np.isnan(scores)
    lines = []
    for row in np.flatnonzero(blank):
        target, metric = matrix.targets[row], matrix.metrics[row]
        if np.isnan([matrix.chance[row], errors[row]]).any():
            reason = f"chance level or standard error of its {metric} is unknown"
        else:
            reason = (
                f"in-task {metric} {scores[row]:.3f} is not more than two standard errors"
                f" ({errors[row]:.3f}) above chance ({matrix.chance[row]:.3f})"
            )
        lines.append(f"{target}: {reason}, performance above chance is not defined")
    return lines


def chance_record(matrix: TransferMatrix) -> dict[str, dict[str, Any]]:
    """Return chance level and standard errors of each target, ready for JSON."""
    if matrix.chance is None or matrix.errors is None:
        return {target: {} for target in matrix.targets}
    return {
        target: {
            "chance": _or_none(chance),
            "standard_errors": dict(zip(matrix.prompts, map(_or_none, line), strict=True)),
        }
        for target, chance, line in zip(
            matrix.targets, matrix.chance.tolist(), matrix.errors.tolist(), strict=True
        )
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def _in_task_scores(
    matrix: TransferMatrix, in_task: Mapping[str, str]
) -> tuple[Float64[np.ndarray, "N"], Float64[np.ndarray, "N"]]:
    """Return score and standard error of each target's in-task prompt, NaN without one."""
    scores, errors = np.full((2, len(matrix.targets)), np.nan)
    for row, target in enumerate(matrix.targets):
        if target in in_task and in_task[target] in matrix.prompts:
            column = matrix.prompts.index(in_task[target])
            scores[row] = matrix.values[row, column]
            if matrix.errors is not None:
                errors[row] = matrix.errors[row, column]
    return scores, errors


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
    relative = relative_performance(matrix, in_task)
    sources = [name for name in matrix.prompts if name not in BASELINES]
    columns = [matrix.prompts.index(name) for name in sources]
    kinds = {name: task_type(name) for name in (*matrix.targets, *sources)}
    measures = {"relative": relative}
    if matrix.chance is not None:
        measures["above_chance"] = performance_above_chance(matrix, in_task)
    summary: dict[str, Any] = {}
    for measure, found in measures.items():
        summary |= summarize_relative(
            found.values[:, columns],
            matrix.targets,
            sources,
            in_task,
            kinds if target_types is None else target_types,
            kinds if prompt_types is None else prompt_types,
            {"random": _column(found, RANDOM), "untouched": _column(found, UNTOUCHED)},
            measure,
        )
    ranking = rank_sources(relative.values[:, columns], matrix.targets, sources, in_task)
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
    """Return a matrix as a table, with its notes."""
    deviations = deviations or {}
    near, chance = at_chance(matrix), matrix.chance
    lines = [["", *matrix.prompts, *([] if chance is None else ["chance"])]]
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
        lines.append([target, *cells, *([] if chance is None else [_figure(chance[row])])])
    legend = ["* in-task prompt"] if in_task else []
    legend += [f"{AT_CHANCE} {AT_CHANCE_MEANING}"] if near.any() else []
    wrapped = [line for note in notes for line in textwrap.wrap(f"note: {note}", WIDTH)]
    return "\n".join([*align_columns(lines), *legend, *wrapped])


def describe_relative(summary: Mapping[str, Any]) -> list[str]:
    """Return both relative performances as tables: means, and means by task type."""
    rows = [["mean relative performance", "same type", "other types", *BASELINES]]
    for measure, label in _MEASURES.items():
        means = summary.get(f"{measure}_transfer")
        if means:
            names = ("same_type", "different_type", "random", "untouched")
            rows.append([label, *(_figure(means.get(f"{name}_mean")) for name in names)])
    if not any(summary.get("relative_by_type", {}).values()):
        return []
    by_type = [
        describe_types(summary.get(f"{measure}_by_type") or {}, label)
        for measure, label in _MEASURES.items()
    ]
    excluded = "(over pairs of a target and a prompt of another task)"
    return ["\n".join([*align_columns(rows), excluded]), *filter(None, by_type)]


def describe_types(by_type: Mapping[str, Mapping[str, float | None]], label: str) -> str:
    """Return means by task type as a table."""
    if not by_type:
        return ""
    sources = list(next(iter(by_type.values())))
    lines = [["", *sources]]
    for kind, means in by_type.items():
        lines.append([kind, *(_figure(means[source]) for source in sources)])
    head = f"mean relative performance by task type, {label} (rows: targets)"
    return "\n".join([head, *align_columns(lines)])


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
