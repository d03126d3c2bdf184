"""Which targets and sources of a transfer matrix are looked at, and what counts as whose own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from jpt.analysis.indicators import Indicators
from jpt.errors import InputError, unknown_name
from jpt.files.study_files import BASELINES, RANDOM, UNTOUCHED
from jpt.prompts.own import own_prompts, short_task
from jpt.tasks.reference_names import REFERENCE_TASKS, task_type
from jpt.types import PromptCard, TransferMatrix

_SHOWN = 8


@dataclass(frozen=True)
class TransferPairs:
    """The part of a transfer matrix that is held against the indicators."""

    targets: tuple[str, ...]  # names of the tasks
    sources: tuple[str, ...]  # names of the prompts; the random one is left out
    own: dict[str, str]  # the own prompt of each target that has one
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
    own, notes = own_prompts(targets, cards)
    unmeasured = sorted(set(indicators.names) - set(matrix.prompts) - set(BASELINES))
    if tasks is None and unmeasured:
        notes.append(f"{shorten(unmeasured)}: no column in the transfer matrix, left out")
    values = matrix.values[rows][:, [matrix.prompts.index(name) for name in sources]]
    own_values, own_notes = _own_values(matrix, rows, own)
    missing = int(np.isnan(values).sum())
    if missing:
        own_notes.append(
            f"{missing} of {values.size} pairs of target and source have no value in the transfer"
            " matrix: they are left out"
        )
    relative = values / own_values[:, None]
    baselines = _baselines(matrix, rows, own_values)
    return TransferPairs(targets, sources, own, values, relative, *baselines, (*notes, *own_notes))


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
    matrix: TransferMatrix, rows: Sequence[int], own_values: Float64[np.ndarray, "N"]
) -> tuple[Float64[np.ndarray, "N"] | None, ...]:
    """Relative performance of what is no source; None where the matrix has no such column."""
    columns = [matrix.prompts.index(name) if name in matrix.prompts else None for name in BASELINES]
    return tuple(None if c is None else matrix.values[rows, c] / own_values for c in columns)


def _own_values(
    matrix: TransferMatrix, rows: Sequence[int], own: Mapping[str, str]
) -> tuple[Float64[np.ndarray, "N"], list[str]]:
    """The score of each target's own prompt, NaN where a ratio to it would mean nothing."""
    values, notes = np.full(len(rows), np.nan), []
    for place, row in enumerate(rows):
        target = matrix.targets[row]
        prompt = own.get(target)
        if prompt is None:
            continue  # `own_prompts` has said so
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
