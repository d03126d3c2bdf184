"""Are prompts for tasks of one type more alike, and do they transfer better? Means by type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from jpt.analysis.indicators import Indicators
from jpt.analysis.transfer_pairs import (
    TransferPairs,
    all_cards,
    is_random,
    select_pairs,
    serves,
    shorten,
    type_of,
)
from jpt.errors import unknown_name
from jpt.files.study_files import read_transfer
from jpt.prompts.own import short_task
from jpt.tasks.reference_names import task_type
from jpt.types import PromptCard, TransferMatrix


def summarize_types(
    indicators: Indicators,
    transfer: TransferMatrix | str | Path | None = None,
    tasks: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Computes means over pairs of prompts for tasks of one type and of two types.

    Similarity is taken over unordered pairs of different prompts, relative performance over pairs
    of a target and a source that is not its own prompt. Prompts without a known type and the
    random prompt are left out.

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
    cards = all_cards(indicators)
    tasks = None if tasks is None else list(tasks)
    if transfer is None:
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
    if transfer is not None:
        matrix = transfer if isinstance(transfer, TransferMatrix) else read_transfer(transfer)
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
        name: _means(column[np.ix_(places, places)], upper, same)
        for name, column in indicators.columns.items()
    }


def _means(
    values: Float64[np.ndarray, "N K"],
    used: Bool[np.ndarray, "N K"],
    same: Bool[np.ndarray, "N K"],
) -> dict[str, Any]:
    used = used & ~np.isnan(values)
    alike, unlike = values[used & same], values[used & ~same]
    return {
        "same_type_mean": _mean(alike),
        "different_type_mean": _mean(unlike),
        "n_same": len(alike),
        "n_diff": len(unlike),
    }


def _transfers(pairs: TransferPairs, types: dict[str, str]) -> dict[str, Any]:
    """Relative performance by type of target and source, and the best source of each target."""
    sources = [column for column, name in enumerate(pairs.sources) if name in types]
    names = [pairs.sources[column] for column in sources]
    target_types = {
        target: types.get(pairs.own[target]) if target in pairs.own else task_type(target)
        for target in pairs.targets
    }
    rows = [row for row, target in enumerate(pairs.targets) if target_types[target]]
    targets = [pairs.targets[row] for row in rows]
    relative = pairs.relative[np.ix_(rows, sources)]
    other = np.array([[pairs.own.get(t) != name for name in names] for t in targets], bool)
    other = other.reshape(relative.shape) & ~np.isnan(relative)
    row_types = np.array([target_types[target] for target in targets])
    column_types = np.array([types[name] for name in names])
    same = row_types[:, None] == column_types[None]
    best = _best_sources(targets, names, np.where(other, relative, -np.inf))
    hits = [types[source] == target_types[target] for target, source in best.items()]
    random = pairs.random_relative
    return {
        "relative_transfer": {
            **_means(relative, other, same),
            "random_mean": None if random is None else _mean(random[~np.isnan(random)]),
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


def _best_sources(
    targets: list[str], sources: list[str], scores: Float64[np.ndarray, "N K"]
) -> dict[str, str]:
    """The source that does best on each target; of equal ones the first by name."""
    best = {}
    for target, row in zip(targets, scores, strict=True):
        ranked = sorted(zip(-row, sources, strict=True))
        if ranked and ranked[0][0] < np.inf:
            best[target] = ranked[0][1]
    return best


def _crossed(
    rows: Bool[np.ndarray, "N"], columns: Bool[np.ndarray, "K"]
) -> Bool[np.ndarray, "N K"]:
    return rows[:, None] & columns[None]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
