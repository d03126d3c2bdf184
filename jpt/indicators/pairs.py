"""Match indicators to the transfer matrix: target-source pairs, seeds and task types."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

from jpt.errors import InputError, shorten, unknown_name
from jpt.indicators.indicators import Indicators
from jpt.prompts.store import split_run_name
from jpt.results.prompt_table import (
    BASELINES,
    RANDOM,
    UNTOUCHED,
    baseline_columns,
    compare_types,
    in_task_levels,
    match_in_task_prompts,
    performances,
    read_scores,
    short_task,
    summarize_relative,
)
from jpt.tasks.catalog import REFERENCE_TASKS, task_type
from jpt.types import PromptCard, TransferMatrix

# --- Means over seeds


def over_seeds(indicators: Indicators, kept: Iterable[str] = ()) -> Indicators:
    """Average indicators over the seeds of each prompt."""
    # Two prompts: the mean over all pairs of their seeds. A prompt with itself: the mean over pairs
    # of different seeds, or with one seed its value.
    owners = prompt_names(indicators.names, kept)
    if owners == list(indicators.names):
        return indicators
    names, columns = join_runs(owners, indicators.columns)
    cards = {
        owner: dataclasses.replace(indicators.cards[name], seed=None, score=None)
        for owner, name in reversed(list(zip(owners, indicators.names, strict=True)))
        if name in indicators.cards
    }
    return dataclasses.replace(indicators, names=names, columns=columns, cards=cards)


def prompt_names(names: Iterable[str], kept: Iterable[str] = ()) -> list[str]:
    """Return the prompt of each run name."""
    kept = set(kept)
    return [name if name in kept else split_run_name(name)[0] for name in names]


def join_runs(
    owners: Sequence[str], columns: Mapping[str, Float64[np.ndarray, "R R"]]
) -> tuple[tuple[str, ...], dict[str, Float64[np.ndarray, "K K"]]]:
    """Average matrices over the runs of each prompt."""
    names, groups = np.unique(owners, return_inverse=True)
    means = {name: _mean(column, groups) for name, column in columns.items()}
    return tuple(names.tolist()), means


def is_seed_list(names: Iterable[str]) -> set[str]:
    """Return the prompts with two or more seeds."""
    return {owner for owner, runs in Counter(prompt_names(names)).items() if runs > 1}


def _mean(column: Float64[np.ndarray, "R R"], groups: Int[np.ndarray, "R"]) -> np.ndarray:
    """Return the means [K, K] over pairs of runs."""
    # Sums instead of a matrix product, so that a NaN does not spread.
    order, counts = np.argsort(groups, kind="stable"), np.bincount(groups)
    starts = np.cumsum(counts) - counts
    sums = np.add.reduceat(column[np.ix_(order, order)], starts, axis=0)
    sums = np.add.reduceat(sums, starts, axis=1)
    means = sums / (counts[:, None] * counts)
    means = (means + means.T) / 2  # sums along the two axes round differently
    in_task = np.add.reduceat(np.diagonal(column)[order], starts)
    several = counts > 1
    pairs = np.where(several, counts * (counts - 1), 1)
    of_seeds = np.where(several, (np.diagonal(sums) - in_task) / pairs, in_task)
    np.fill_diagonal(means, of_seeds)
    return means


# --- Pairs of target and source


@dataclass(frozen=True)
class TransferPairs:
    """The part of a transfer matrix that is compared with the indicators."""

    targets: tuple[str, ...]
    sources: tuple[str, ...]  # names of the prompts, without baselines
    in_task: dict[str, str]  # in-task prompt of each target that has one
    values: Float64[np.ndarray, "N K"]  # scores; NaN if not measured
    # `performances` of the pairs and of the baselines; NaN if undefined
    performance: dict[str, Float64[np.ndarray, "N K"]]
    baselines: dict[str, dict[str, Float64[np.ndarray, "N"] | None]]
    notes: tuple[str, ...]  # what was left out, and why


def select_pairs(
    indicators: Indicators, matrix: TransferMatrix, tasks: Iterable[str] | None = None
) -> TransferPairs:
    """Select targets and sources, match in-task prompts, and compute relative performance."""
    cards = all_cards(indicators)
    _check_names(indicators, matrix)
    matrix = _of_targets(matrix, choose_targets(matrix.targets, tasks))
    sources = tuple(
        name
        for name in matrix.prompts
        if name in cards
        and name != UNTOUCHED
        and not is_random(name, cards[name])
        and (tasks is None or serves(name, cards[name], matrix.targets))
    )
    in_task, notes = match_in_task_prompts(matrix.targets, cards)
    unmeasured = sorted(set(indicators.names) - set(matrix.prompts) - set(BASELINES))
    if tasks is None and unmeasured:
        notes.append(f"{shorten(unmeasured)}: no column in the transfer matrix, left out")
    columns = [matrix.prompts.index(name) for name in sources]
    values, found = matrix.values[:, columns], performances(matrix, in_task)
    notes += _in_task_notes(matrix, in_task)
    missing = int(np.isnan(values).sum())
    if missing:
        notes.append(
            f"{missing} of {values.size} pairs of target and source have no value in the transfer"
            " matrix, left out"
        )
    return TransferPairs(
        targets=matrix.targets,
        sources=sources,
        in_task=in_task,
        values=values,
        performance={measure: each.values[:, columns] for measure, each in found.items()},
        baselines={measure: baseline_columns(each) for measure, each in found.items()},
        notes=tuple(notes),
    )


def _of_targets(matrix: TransferMatrix, targets: Sequence[str]) -> TransferMatrix:
    rows = [matrix.targets.index(target) for target in targets]
    parts = {name: getattr(matrix, name) for name in ("values", "chance", "errors")}
    return dataclasses.replace(
        matrix,
        targets=tuple(targets),
        metrics=tuple(matrix.metrics[row] for row in rows),
        **{name: each if each is None else each[rows] for name, each in parts.items()},
    )


def choose_targets(targets: Sequence[str], tasks: Iterable[str] | None) -> list[str]:
    """Return the targets of some tasks."""
    if tasks is None:
        return list(targets)
    wanted = list(tasks)
    if not wanted:
        raise InputError("tasks: expected at least one, got none; leave it out for all")
    known = {catalog_task(target) for target in targets}
    for task in wanted:
        if catalog_task(task) not in known:
            raise unknown_name("target", task, targets)
    asked = {catalog_task(task) for task in wanted}
    return [target for target in targets if catalog_task(target) in asked]


def catalog_task(name: str) -> str:
    """Return the catalog name of a task, under which tasks are compared."""
    short = short_task(name)
    return REFERENCE_TASKS.get(short, (short, ""))[0]


def serves(name: str, card: PromptCard, targets: Iterable[str]) -> bool:
    """Return whether a prompt is of one of the target tasks."""
    known = {catalog_task(target) for target in targets}
    return name in targets or catalog_task(card.task) in known


def is_random(name: str, card: PromptCard) -> bool:
    """Return whether a prompt is the untrained baseline."""
    return name == RANDOM or card.task == RANDOM


def all_cards(indicators: Indicators) -> dict[str, PromptCard]:
    """Return a card for every prompt; without one, its name counts as its task."""
    return {name: indicators.cards.get(name, PromptCard("", name)) for name in indicators.names}


def type_of(card: PromptCard) -> str | None:
    """Return the task type of a prompt."""
    return card.task_type or task_type(card.task) or task_type(short_task(card.task))


def _check_names(indicators: Indicators, matrix: TransferMatrix) -> None:
    missing = sorted(set(matrix.prompts) - set(indicators.names) - set(BASELINES))
    if missing:
        raise InputError(
            f"transfer matrix: expected indicators of its {len(matrix.prompts)} prompts, got none"
            f" of {len(missing)} ({shorten(missing)}); compute them for the transferred prompts"
        )


def _in_task_notes(matrix: TransferMatrix, in_task: Mapping[str, str]) -> list[str]:
    """Return notes on in-task prompts, the missing ones aside, without a positive score."""
    notes = []
    for target, score in zip(matrix.targets, in_task_levels(matrix, in_task)[1], strict=True):
        prompt = in_task.get(target)
        if prompt is not None and not score > 0:
            measured = f"scores {score:g}" if prompt in matrix.prompts else "has no column"
            notes.append(
                f"{target}: in-task prompt {prompt} {measured} in the transfer matrix, relative"
                " performance undefined"
            )
    return notes


# --- Means by task type


def summarize_types(
    indicators: Indicators,
    transfer: TransferMatrix | str | Path | None = None,
    tasks: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Compare similarity and transfer within and across task types.

    Similarity is averaged over unordered pairs of different prompts, relative performance over
    pairs of a target and a source other than its in-task prompt. Random prompts and prompts of
    unknown task type are left out. Seeds of a prompt are averaged; ``same_task_mean`` is the mean
    over pairs of seeds.

    Args:
        indicators: Indicators of the prompts, with their cards.
        transfer: Transfer matrix, or its file.
        tasks: Restrict to prompts of these tasks; defaults to all.

    Returns:
        The content of ``types.json``; None for means without pairs. Keys that begin with
        ``above_chance`` need a matrix with chance levels.

    Raises:
        InputError: If a task has no prompt, or the matrix has prompts without indicators.

    Example:
        >>> rank = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.1], [0.2, 0.1, 1.0]])
        >>> found = Indicators(("imdb", "mnli", "sst2"), {"cosine_concat": rank})
        >>> summarize_types(found)["similarity_by_type"]["cosine_concat"]["same_type_mean"]
        0.2
    """
    matrix = read_scores(transfer) if isinstance(transfer, (str, Path)) else transfer
    tasks = None if tasks is None else list(tasks)
    seeds = is_seed_list(indicators.names)
    indicators = over_seeds(indicators, () if matrix is None else matrix.prompts)
    cards = all_cards(indicators)
    if matrix is None:
        _check_tasks(tasks or [], cards)  # with a matrix, `select_pairs` checks them
    types = {
        name: type_of(card)
        for name, card in cards.items()
        if not is_random(name, card) and (tasks is None or serves(name, card, tasks))
    }
    unknown = [name for name, kind in types.items() if kind is None]
    types = {name: kind for name, kind in types.items() if kind is not None}
    notes = [f"{shorten(unknown)}: unknown task type, left out"] if unknown else []
    record: dict[str, Any] = {"similarity_by_type": _similarities(indicators, types)}
    for name, mean in _between_seeds(indicators, seeds & set(types)).items():
        record["similarity_by_type"][name] |= mean
    if matrix is not None:
        record |= _transfers(select_pairs(indicators, matrix, tasks), types)
    return {**record, "notes": notes}


def _check_tasks(tasks: list[str], cards: Mapping[str, PromptCard]) -> None:
    for task in tasks:
        if not any(serves(name, card, [task]) for name, card in cards.items()):
            known = {short_task(card.task) for card in cards.values()}
            raise unknown_name("task of the prompts", task, known)


def _similarities(indicators: Indicators, types: dict[str, str]) -> dict[str, dict[str, Any]]:
    rows = [row for row, name in enumerate(indicators.names) if name in types]
    kinds = np.array([types[indicators.names[row]] for row in rows])
    upper = np.triu(np.ones((len(rows), len(rows)), bool), 1)
    same = kinds[:, None] == kinds[None]
    return {
        name: compare_types(column[np.ix_(rows, rows)], upper, same)
        for name, column in indicators.columns.items()
    }


def _between_seeds(indicators: Indicators, names: set[str]) -> dict[str, dict[str, Any]]:
    """Return the mean similarity of two seeds of a prompt; empty without seeds."""
    rows = [row for row, name in enumerate(indicators.names) if name in names]
    if not rows:
        return {}
    of_seeds = {name: np.diagonal(column)[rows] for name, column in indicators.columns.items()}
    known = {name: values[~np.isnan(values)] for name, values in of_seeds.items()}
    return {
        name: {
            "same_task_mean": float(values.mean()) if len(values) else None,
            "n_same_task": len(values),
        }
        for name, values in known.items()
    }


def _transfers(pairs: TransferPairs, types: dict[str, str]) -> dict[str, Any]:
    target_types = {
        target: types.get(pairs.in_task[target]) if target in pairs.in_task else task_type(target)
        for target in pairs.targets
    }
    names = (pairs.targets, pairs.sources, pairs.in_task, target_types, types)
    found: dict[str, Any] = {}
    for measure, values in pairs.performance.items():
        found |= summarize_relative(values, *names, pairs.baselines[measure], measure)
    return found
