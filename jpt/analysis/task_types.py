"""Are prompts for tasks of one type more alike, and do they transfer better? Means by type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jpt.analysis.indicators import Indicators
from jpt.analysis.seed_means import over_seeds, several_seeds
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
from jpt.prompts.relative_means import compare_types, summarize_relative
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
    seeds = several_seeds(indicators.names)
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
    own = {name: np.diagonal(column)[places] for name, column in indicators.columns.items()}
    known = {name: values[~np.isnan(values)] for name, values in own.items()}
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
        target: types.get(pairs.own[target]) if target in pairs.own else task_type(target)
        for target in pairs.targets
    }
    baselines = {"random": pairs.random_relative, "untouched": pairs.untouched_relative}
    return summarize_relative(
        pairs.relative, pairs.targets, pairs.sources, pairs.own, target_types, types, baselines
    )
