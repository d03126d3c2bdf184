"""Several seeds of a prompt count as one prompt: what is said of it is the mean over its runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int

from jpt.analysis.indicators import Indicators
from jpt.prompts.seed_prompts import split_run_name


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


def several_seeds(names: Iterable[str]) -> set[str]:
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
    own = np.add.reduceat(np.diagonal(column)[order], starts)
    several = counts > 1
    pairs = np.where(several, counts * (counts - 1), 1)
    of_seeds = np.where(several, (np.diagonal(sums) - own) / pairs, own)
    np.fill_diagonal(means, of_seeds)
    return means
