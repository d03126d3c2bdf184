"""The rows of the built-in tasks: fixed, balanced splits made from the installed reviews.

A review belongs to one split for all tasks (:mod:`jpt.data.movie_reviews`). Within a task no text
stands twice, neither in one split nor in two: a text of test is left out of validation, one of
either out of train.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from jpt.data.builtin_units import RECIPES, Recipe, Unit
from jpt.data.draws import Draws
from jpt.data.movie_reviews import Split, reviews
from jpt.errors import InputError, unknown_name
from jpt.tasks.builtin import BUILTIN, CANDIDATES
from jpt.tasks.task import BUILTIN_PREFIX, Task

SIZES: dict[str, int] = {"test": 1000, "validation": 600, "train": 6000}
"""Rows of each split at most, in the order in which the splits take their texts."""

TASKS: dict[str, Task] = {**BUILTIN, **CANDIDATES}
"""Every task whose rows can be made."""

_NO_MARKS = str.maketrans("", "", string.punctuation + " ")

Row = dict[str, str]


class _Split(NamedTuple):
    rows: tuple[Row, ...]
    keys: frozenset[str]


def builtin_rows(name: str, split: str) -> list[Row]:
    """Makes the rows of a split of a built-in task."""
    short = name.removeprefix(BUILTIN_PREFIX)
    if short not in RECIPES or BUILTIN_PREFIX + short not in TASKS:
        raise unknown_name("built-in task", name, TASKS)
    if split not in SIZES:
        raise InputError(f"unknown split '{split}'; choose one of {', '.join(sorted(SIZES))}")
    return [dict(row) for row in _make_split(short, split).rows]


@lru_cache(maxsize=12)
def _make_split(name: str, split: str) -> _Split:
    recipe, task = RECIPES[name], TASKS[BUILTIN_PREFIX + name]
    draws = Draws(f"{name}/{split}")
    taken: set[str] = set()
    for earlier in list(SIZES)[: list(SIZES).index(split)]:
        taken |= _make_split(name, earlier).keys
    own: set[str] = set()
    units = _take_units(recipe, split, draws, taken, own)
    rows = _ROWS_OF[recipe.form](units, task, SIZES[split])
    return _Split(tuple(draws.shuffled(rows)), frozenset(own))


class _Labelled(NamedTuple):
    unit: Unit
    label: int


def _take_units(
    recipe: Recipe, split: Split, draws: Draws, taken: set[str], own: set[str]
) -> Iterator[_Labelled]:
    """Goes through the reviews of a split by chance and takes one unit from each."""
    for review in draws.shuffled(reviews(recipe.source, split)):
        if recipe.contains not in review.text:
            continue
        unit = recipe.make(review.text, draws)
        if unit is None:
            continue
        keys = {text.lower().translate(_NO_MARKS) for text in unit}
        alike = len(keys) < len(unit) and recipe.form != "review"
        if not alike and keys.isdisjoint(taken) and keys.isdisjoint(own):
            own |= keys
            yield _Labelled(unit, review.label)


def _row(task: Task, texts: tuple[str, ...], label: int) -> Row:
    return {**dict(zip(task.fields, texts, strict=True)), "label": task.labels[label]}


def _review_rows(units: Iterator[_Labelled], task: Task, size: int) -> list[Row]:
    by_label: dict[int, list[Row]] = {0: [], 1: []}
    for unit, label in units:
        if len(by_label[label]) < size // 2:
            by_label[label].append(_row(task, unit[:1], label))
        if min(map(len, by_label.values())) == size // 2:
            break
    even = min(map(len, by_label.values()))
    return by_label[0][:even] + by_label[1][:even]


def _contrast_rows(units: Iterator[_Labelled], task: Task, size: int) -> list[Row]:
    return [
        _row(task, (unit[place % 2],), place % 2)
        for place, (unit, _) in enumerate(_even(islice(units, size)))
    ]


def _twin_rows(units: Iterator[_Labelled], task: Task, size: int) -> list[Row]:
    return [
        _row(task, (text,), label)
        for unit, _ in islice(units, size // 2)
        for label, text in enumerate(unit)
    ]


def _pair_rows(units: Iterator[_Labelled], task: Task, size: int) -> list[Row]:
    """Every other unit stays a pair; the rest hand their second text on to the next of them."""
    pairs = [unit for unit, _ in _even(islice(units, size))]
    same, other = pairs[0::2], pairs[1::2]
    seconds = [second for _, second in other]
    handed_on = zip([first for first, _ in other], seconds[1:] + seconds[:1], strict=True)
    return [_row(task, pair, 1) for pair in same] + [_row(task, pair, 0) for pair in handed_on]


def _even(units: Iterator[_Labelled]) -> list[_Labelled]:
    taken = list(units)
    return taken[: len(taken) // 2 * 2]


_ROWS_OF = {
    "review": _review_rows,
    "contrast": _contrast_rows,
    "twins": _twin_rows,
    "pair": _pair_rows,
}
