"""The order of the tasks and prompts of a study, their types, and whose own prompt is whose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from jpt.analysis.seed_means import prompt_names
from jpt.analysis.study import Study
from jpt.prompts.own import own_prompts, short_task
from jpt.tasks.reference_names import task_type
from jpt.types import PromptCard, TransferMatrix

# The order of the paper's figures; other types follow in the order of the alphabet.
PAPER_TYPES = ("sentiment", "nli", "ethics", "paraphrase", "qa", "summarization")
NO_TYPE = "no type"
BASELINE = "untrained"
NO_PROMPT = "no prompt"


@dataclass(frozen=True)
class Layout:
    """The order of everything in figures and tables: by type, then as the files have it."""

    targets: tuple[str, ...]  # the target tasks
    sources: tuple[str, ...]  # the prompts that were moved, without the untrained one
    prompts: tuple[str, ...]  # the prompts of the indicators
    # all prompts of the study, the untrained one and unfinished runs included
    every: tuple[str, ...]
    target_types: Mapping[str, str]
    prompt_types: Mapping[str, str]
    own: Mapping[str, str]  # the own prompt of each target that has one


def lay_out(study: Study) -> Layout:
    """Finds order, types and own prompts of a study."""
    matrix = study.transfer or study.relative
    targets = matrix.targets if matrix else ()
    columns = matrix.prompts if matrix else ()
    compared = study.similarities.names if study.similarities else ()
    every = dict.fromkeys([*columns, *compared, *study.prompts])
    names = tuple(name for name in every if name != study.untouched)  # no prompt at all
    # Runs of several seeds are columns under the name of their prompt.
    whose = dict(zip(names, prompt_names(names, columns), strict=True))
    own = _own(study, targets, [n for n in names if whose[n] == n or whose[n] not in columns])
    target_types = {name: _target_type(study, name) for name in targets}
    prompt_types = {name: _prompt_type(study, name) for name in names}
    ordered = _by_type(targets, target_types)
    # A prompt stands where its task stands, so that own pairs form the diagonal.
    owners = {prompt: target for target, prompt in own.items()}
    place = {prompt: ordered.index(target) for prompt, target in owners.items()}
    following = sorted(names, key=lambda name: place.get(whose[name], len(ordered)))
    prompts = _by_type(following, prompt_types)
    return Layout(
        targets=ordered,
        sources=tuple(n for n in prompts if n in columns and n != study.random),
        prompts=tuple(n for n in prompts if n in compared),
        every=prompts,
        target_types=target_types,
        prompt_types=prompt_types,
        own=own,
    )


def with_relative(study: Study, layout: Layout) -> Study:
    """Computes relative performance where ``relative.csv`` is missing."""
    matrix = study.transfer
    if study.relative is not None or matrix is None:
        return study
    own = np.array([own_score(study, layout, target) for target in matrix.targets])
    known = np.flatnonzero(own > 0)
    if not known.size:
        return study
    relative = TransferMatrix(
        targets=tuple(matrix.targets[i] for i in known),
        prompts=matrix.prompts,
        values=matrix.values[known] / own[known, None],
        metrics=tuple(matrix.metrics[i] for i in known),
    )
    return replace(study, relative=relative, computed_relative=True)


def values_at(
    matrix: TransferMatrix | None, targets: Iterable[str], prompts: Iterable[str]
) -> Float64[np.ndarray, "N K"]:
    """Takes a matrix in another order."""
    rows, columns = list(targets), list(prompts)
    values = np.full((len(rows), len(columns)), np.nan)
    if matrix is None:
        return values
    row_of = {name: index for index, name in enumerate(matrix.targets)}
    column_of = {name: index for index, name in enumerate(matrix.prompts)}
    for i, target in enumerate(rows):
        for j, prompt in enumerate(columns):
            if target in row_of and prompt in column_of:
                values[i, j] = matrix.values[row_of[target], column_of[prompt]]
    return values


@dataclass(frozen=True)
class Move:
    """A prompt on the task of another prompt."""

    target: str  # the task
    source: str  # the prompt
    relative: float  # its performance over that of the target's own prompt
    same_type: bool | None  # whether both tasks have one type; None where a type is not known


def moves(study: Study, layout: Layout) -> list[Move]:
    """Lists the measured pairs of a target and another task's prompt."""
    values = values_at(study.relative, layout.targets, layout.sources)
    found = []
    for i, target in enumerate(layout.targets):
        for j, source in enumerate(layout.sources):
            if layout.own.get(target) == source or np.isnan(values[i, j]):
                continue
            kinds = (layout.target_types[target], layout.prompt_types[source])
            same = None if NO_TYPE in kinds else kinds[0] == kinds[1]
            found.append(Move(target, source, float(values[i, j]), same))
    return found


def by_target(moved: Iterable[Move]) -> dict[str, list[Move]]:
    """Puts the moves to one target together."""
    found: dict[str, list[Move]] = {}
    for move in moved:
        found.setdefault(move.target, []).append(move)
    return found


def random_values(study: Study, layout: Layout) -> dict[str, float]:
    """Takes the relative performance of the untrained prompt."""
    column = values_at(study.relative, layout.targets, [study.random])[:, 0]
    known = zip(layout.targets, column.tolist(), strict=True)
    return {target: value for target, value in known if np.isfinite(value)}


def own_score(study: Study, layout: Layout, target: str) -> float:
    """Takes the score of a target's own prompt."""
    own = layout.own.get(target, "")
    return float(values_at(study.transfer, [target], [own])[0, 0])


def _own(study: Study, targets: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """As transfer.json has it; without that file as the cards have it."""
    if study.facts is not None and study.facts.targets:
        told = study.facts.targets
        return {t: told[t].own_prompt or "" for t in targets if t in told and told[t].own_prompt}
    cards = {}
    for name in names:
        record = study.prompts.get(name)
        cards[name] = (record and record.card) or PromptCard("", name)
    return own_prompts(targets, cards)[0]


def _target_type(study: Study, name: str) -> str:
    told = study.facts.targets.get(name) if study.facts else None
    return (told and told.type) or task_type(name) or NO_TYPE


def _prompt_type(study: Study, name: str) -> str:
    if name == study.random:
        return BASELINE
    told = study.facts.prompt_types.get(name) if study.facts else None
    record = study.prompts.get(name)
    card = record.card if record else None
    of_card = card and (card.task_type or task_type(short_task(card.task)))
    return told or of_card or task_type(name) or NO_TYPE


def _by_type(names: Iterable[str], types: Mapping[str, str]) -> tuple[str, ...]:
    """Sorts by type; within a type the order stays."""
    last = {NO_TYPE: 1, BASELINE: 2}

    def key(name: str) -> tuple[int, int, str]:
        kind = types[name]
        known = PAPER_TYPES.index(kind) if kind in PAPER_TYPES else len(PAPER_TYPES)
        return last.get(kind, 0), known, kind

    return tuple(sorted(names, key=key))
