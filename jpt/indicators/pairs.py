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

from jpt.errors import InputError, unknown_name
from jpt.indicators.indicators import Indicators
from jpt.prompts.store import split_run_name
from jpt.results.prompt_table import (
    BASELINES,
    RANDOM,
    UNTOUCHED,
    compare_types,
    match_in_task_prompts,
    read_transfer,
    short_task,
    summarize_relative,
)
from jpt.tasks.catalog import REFERENCE_TASKS, task_type
from jpt.types import PromptCard, TransferMatrix

# --- Several seeds of a prompt count as one prompt: what is said of it is the mean over its runs


def over_seeds(indicators: Indicators, kept: Iterable[str] = ()) -> Indicators:
    """Joins the runs of each prompt, as the columns of a zero-shot matrix do."""
    # The value of two prompts is the mean over all pairs of their runs. That of a prompt with
    # itself is the mean over pairs of two different seeds; of a prompt with one run it stays.
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
    """Says whose run each name is."""
    kept = set(kept)
    return [name if name in kept else split_run_name(name)[0] for name in names]


def join_runs(
    owners: Sequence[str], columns: Mapping[str, Float64[np.ndarray, "R R"]]
) -> tuple[tuple[str, ...], dict[str, Float64[np.ndarray, "K K"]]]:
    """Takes the means of matrices over the runs of each prompt."""
    names, groups = np.unique(owners, return_inverse=True)
    means = {name: _mean(column, groups) for name, column in columns.items()}
    return tuple(names.tolist()), means


def is_seed_list(names: Iterable[str]) -> set[str]:
    """Finds the prompts of two seeds or more."""
    return {owner for owner, runs in Counter(prompt_names(names)).items() if runs > 1}


def _mean(column: Float64[np.ndarray, "R R"], groups: Int[np.ndarray, "R"]) -> np.ndarray:
    """Means over pairs of runs [K, K]; sums, not products, so that a NaN stays where it is."""
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


# --- Which targets and sources of a transfer matrix are looked at, and what counts as whose own

_SHOWN = 8


@dataclass(frozen=True)
class TransferPairs:
    """The part of a transfer matrix that is held against the indicators."""

    targets: tuple[str, ...]  # names of the tasks
    sources: tuple[str, ...]  # names of the prompts; the random one is left out
    in_task: dict[str, str]  # the own prompt of each target that has one
    values: Float64[np.ndarray, "N K"]  # the scores; NaN where a pair was not measured
    # each score over that of the target's own prompt; NaN where that is undefined
    relative: Float64[np.ndarray, "N K"]
    # the same of the random prompt; None where the matrix has none
    random_relative: Float64[np.ndarray, "N"] | None
    # the same of the model without a prompt; None where the matrix has none
    untouched_relative: Float64[np.ndarray, "N"] | None
    notes: tuple[str, ...]  # what was left out, and why


def select_pairs(
    indicators: Indicators, matrix: TransferMatrix, tasks: Iterable[str] | None = None
) -> TransferPairs:
    """Picks targets and sources, finds the own prompts, and computes relative performance."""
    cards = all_cards(indicators)
    _check_names(indicators, matrix)
    rows = [matrix.targets.index(target) for target in choose_targets(matrix.targets, tasks)]
    targets = tuple(matrix.targets[row] for row in rows)
    sources = tuple(
        name
        for name in matrix.prompts
        if name in cards
        and name != UNTOUCHED
        and not is_random(name, cards[name])
        and (tasks is None or serves(name, cards[name], targets))
    )
    in_task, notes = match_in_task_prompts(targets, cards)
    unmeasured = sorted(set(indicators.names) - set(matrix.prompts) - set(BASELINES))
    if tasks is None and unmeasured:
        notes.append(f"{shorten(unmeasured)}: no column in the transfer matrix, left out")
    values = matrix.values[rows][:, [matrix.prompts.index(name) for name in sources]]
    in_task_values, in_task_notes = _in_task_values(matrix, rows, in_task)
    missing = int(np.isnan(values).sum())
    if missing:
        in_task_notes.append(
            f"{missing} of {values.size} pairs of target and source have no value in the transfer"
            " matrix: they are left out"
        )
    relative = values / in_task_values[:, None]
    baselines = _baselines(matrix, rows, in_task_values)
    return TransferPairs(
        targets, sources, in_task, values, relative, *baselines, (*notes, *in_task_notes)
    )


def choose_targets(targets: Sequence[str], tasks: Iterable[str] | None) -> list[str]:
    """Picks targets by the names of their tasks."""
    if tasks is None:
        return list(targets)
    wanted = list(tasks)
    if not wanted:
        raise InputError("tasks is empty; name at least one, or leave it out for all")
    known = {catalog_task(target) for target in targets}
    for task in wanted:
        if catalog_task(task) not in known:
            raise unknown_name("target", task, targets)
    asked = {catalog_task(task) for task in wanted}
    return [target for target in targets if catalog_task(target) in asked]


def catalog_task(name: str) -> str:
    """Gives the one name under which tasks are compared."""
    short = short_task(name)
    return REFERENCE_TASKS.get(short, (short, ""))[0]


def serves(name: str, card: PromptCard, targets: Iterable[str]) -> bool:
    """Says whether a prompt is for one of some targets."""
    known = {catalog_task(target) for target in targets}
    return name in targets or catalog_task(card.task) in known


def is_random(name: str, card: PromptCard) -> bool:
    """Says whether a prompt is the untrained baseline."""
    return name == RANDOM or card.task == RANDOM


def all_cards(indicators: Indicators) -> dict[str, PromptCard]:
    """Gives every prompt a card; where none is known, its name counts as its task."""
    return {name: indicators.cards.get(name, PromptCard("", name)) for name in indicators.names}


def type_of(card: PromptCard) -> str | None:
    """Looks up the type of a prompt's task."""
    return card.task_type or task_type(card.task) or task_type(short_task(card.task))


def shorten(names: Sequence[str]) -> str:
    """Writes a list of names that may be long."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_names(indicators: Indicators, matrix: TransferMatrix) -> None:
    missing = sorted(set(matrix.prompts) - set(indicators.names) - set(BASELINES))
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(matrix.prompts)} prompts of the transfer matrix have no"
            f" indicators: {shorten(missing)}; compute the indicators of the prompts that were"
            " transferred"
        )


def _baselines(
    matrix: TransferMatrix, rows: Sequence[int], in_task_values: Float64[np.ndarray, "N"]
) -> tuple[Float64[np.ndarray, "N"] | None, ...]:
    """Relative performance of what is no source; None where the matrix has no such column."""
    columns = [matrix.prompts.index(name) if name in matrix.prompts else None for name in BASELINES]
    return tuple(None if c is None else matrix.values[rows, c] / in_task_values for c in columns)


def _in_task_values(
    matrix: TransferMatrix, rows: Sequence[int], in_task: Mapping[str, str]
) -> tuple[Float64[np.ndarray, "N"], list[str]]:
    """The score of each target's own prompt, NaN where a ratio to it would mean nothing."""
    values, notes = np.full(len(rows), np.nan), []
    for place, row in enumerate(rows):
        target = matrix.targets[row]
        prompt = in_task.get(target)
        if prompt is None:
            continue  # `match_in_task_prompts` has said so
        value = matrix.values[row, matrix.prompts.index(prompt)] if prompt in matrix.prompts else 0
        if value > 0:
            values[place] = value
        else:
            measured = f"scores {value:g}" if prompt in matrix.prompts else "has no column"
            notes.append(
                f"{target}: its own prompt {prompt} {measured} in the transfer matrix: relative"
                " performance is not defined"
            )
    return values, notes


# --- Are prompts for tasks of one type more alike, and do they transfer better? Means by type


def summarize_types(
    indicators: Indicators,
    transfer: TransferMatrix | str | Path | None = None,
    tasks: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Computes means over pairs of prompts for tasks of one type and of two types.

    Similarity is taken over unordered pairs of different prompts, relative performance over pairs
    of a target and a source that is not its own prompt. Prompts without a known type and the
    random prompt are left out. Several seeds of a prompt count as one; ``same_task_mean`` is over
    pairs of two of them.

    Args:
        indicators: of the prompts, with their cards.
        transfer: the zero-shot matrix, or its file.
        tasks: only prompts for these tasks; by default all.

    Returns:
        The means as ``types.json`` has them; None where a mean has no pair.

    Raises:
        InputError: no prompt is for a task, or the matrix names other prompts.

    Example:
        >>> rank = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.1], [0.2, 0.1, 1.0]])
        >>> found = Indicators(("imdb", "mnli", "sst2"), {"cosine_concat": rank})
        >>> summarize_types(found)["similarity_by_type"]["cosine_concat"]["same_type_mean"]
        0.2
    """
    matrix = read_transfer(transfer) if isinstance(transfer, (str, Path)) else transfer
    tasks = None if tasks is None else list(tasks)
    seeds = is_seed_list(indicators.names)
    indicators = over_seeds(indicators, () if matrix is None else matrix.prompts)
    cards = all_cards(indicators)
    if matrix is None:
        _check_tasks(tasks or [], cards)  # a matrix says itself which targets it has
    types = {
        name: type_of(card)
        for name, card in cards.items()
        if not is_random(name, card) and (tasks is None or serves(name, card, tasks))
    }
    unknown = [name for name, kind in types.items() if kind is None]
    types = {name: kind for name, kind in types.items() if kind is not None}
    notes = [f"{shorten(unknown)}: type of task not known, left out"] if unknown else []
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
    places = [place for place, name in enumerate(indicators.names) if name in types]
    kinds = np.array([types[indicators.names[place]] for place in places])
    upper = np.triu(np.ones((len(places), len(places)), bool), 1)
    same = kinds[:, None] == kinds[None]
    return {
        name: compare_types(column[np.ix_(places, places)], upper, same)
        for name, column in indicators.columns.items()
    }


def _between_seeds(indicators: Indicators, names: set[str]) -> dict[str, dict[str, Any]]:
    """Mean similarity of two seeds of a prompt; nothing where all prompts have one."""
    places = [place for place, name in enumerate(indicators.names) if name in names]
    if not places:
        return {}
    in_task = {name: np.diagonal(column)[places] for name, column in indicators.columns.items()}
    known = {name: values[~np.isnan(values)] for name, values in in_task.items()}
    return {
        name: {
            "same_task_mean": float(values.mean()) if len(values) else None,
            "n_same_task": len(values),
        }
        for name, values in known.items()
    }


def _transfers(pairs: TransferPairs, types: dict[str, str]) -> dict[str, Any]:
    """Relative performance by type of target and source, and the best source of each target."""
    target_types = {
        target: types.get(pairs.in_task[target]) if target in pairs.in_task else task_type(target)
        for target in pairs.targets
    }
    baselines = {"random": pairs.random_relative, "untouched": pairs.untouched_relative}
    return summarize_relative(
        pairs.relative, pairs.targets, pairs.sources, pairs.in_task, target_types, types, baselines
    )
