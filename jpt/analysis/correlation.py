"""What the indicators say, held against what the transfers did: Spearman's rank correlation.

For each target, over the source prompts: the indicator between the target's own prompt and the
source, against the source's score on the target; then the mean over the targets. Beside it, all
pairs at once, with relative performance and with the scores as they are. The authors published no
code for this; what their paper says of it is the mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from jpt.analysis.correlation_intervals import DRAWS, LEVEL, METHOD, SEED, Lead, lead, mean_interval
from jpt.analysis.indicator_table import PAPER
from jpt.analysis.indicators import Indicators
from jpt.analysis.overlap import OVERLAP
from jpt.analysis.seed_means import over_seeds
from jpt.analysis.task_types import summarize_types
from jpt.analysis.transfer_pairs import TransferPairs, all_cards, select_pairs, serves, shorten
from jpt.errors import InputError
from jpt.files.atomic import make_folder, write_json
from jpt.files.study_files import read_transfer
from jpt.types import TransferMatrix

CORRELATION, TYPES = "correlation.json", "types.json"

FEWEST_SOURCES = 3
"""With two sources a rank correlation can only be 1 or -1."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of one indicator with zero-shot transfer.

    Attributes:
        mean_over_targets: the mean of ``per_target`` where that is defined; None where nowhere.
        pooled_relative: over all pairs of target and source, with relative performance.
        pooled_raw: over all pairs, with the scores as they are.
        n_targets: how many targets have a defined correlation.
        per_target: over the sources of each target; None where it is not defined.
        interval: of the mean over targets (`jpt.analysis.correlation_intervals`); None for fewer
            than two targets.
    """

    mean_over_targets: float | None
    pooled_relative: float | None
    pooled_raw: float | None
    n_targets: int
    per_target: dict[str, float | None]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class OverlapLead:
    """How far ON leads the paper's indicators of vectors, target by target.

    Attributes:
        best: the one of these with the highest mean over targets; None where none is defined.
        over: the lead over each.
    """

    best: str | None
    over: dict[str, Lead]


@dataclass(frozen=True)
class CorrelationResult:
    """The correlations of every indicator.

    Attributes:
        own_in: by indicator, the target's own prompt among the sources.
        own_out: the same without it.
        notes: what is undefined or left out, and why.
    """

    own_in: dict[str, RankCorrelation]
    own_out: dict[str, RankCorrelation]
    notes: tuple[str, ...] = ()

    @property
    def leads(self) -> dict[str, OverlapLead]:
        """ON's lead with own prompts and without; empty where there is no ON."""
        parts = {"own_in": self.own_in, "own_out": self.own_out}
        return {part: overlap_lead(table) for part, table in parts.items() if OVERLAP in table}

    @property
    def record(self) -> dict[str, Any]:
        """The result as ``correlation.json`` has it."""
        parts = {"own_in": self.own_in, "own_out": self.own_out}
        tables = {
            part: {name: _as_json(found) for name, found in table.items()}
            for part, table in parts.items()
        }
        leads = {part: _as_json(found) for part, found in self.leads.items()}
        made = {"method": METHOD, "level": LEVEL, "draws": DRAWS, "seed": SEED}
        return {**tables, "overlap_lead": leads, "intervals": made, "notes": list(self.notes)}


def _as_json(found: RankCorrelation | OverlapLead) -> dict[str, Any]:
    """The fields as JSON has them after reading: lists for tuples."""
    return dataclasses.asdict(
        found,
        dict_factory=lambda items: {
            name: list(value) if isinstance(value, tuple) else value for name, value in items
        },
    )


def overlap_lead(table: Mapping[str, RankCorrelation]) -> OverlapLead:
    """Says how far ON leads the paper's indicators of vectors."""
    # The best of them is found by looking at the same targets, which is to its advantage.
    rivals = {name: table[name] for name in PAPER if name in table}
    means = {name: each.mean_over_targets for name, each in rivals.items()}
    known = {name: mean for name, mean in means.items() if mean is not None}
    best = max(known, key=known.__getitem__, default=None)
    own = table[OVERLAP].per_target
    return OverlapLead(best, {name: lead(own, each.per_target) for name, each in rivals.items()})


@dataclass(frozen=True)
class _Setting:
    """One side of the comparison, the same for all indicators."""

    pairs: TransferPairs
    own_rows: Int[np.ndarray, "N"]
    source_columns: Int[np.ndarray, "K"]
    used: Bool[np.ndarray, "N K"]


def correlate(
    indicators: Indicators,
    transfer: TransferMatrix | str | Path,
    out: str | Path | None = None,
    *,
    tasks: Iterable[str] | None = None,
) -> CorrelationResult:
    """Holds every indicator against a zero-shot transfer matrix.

    Sources are the prompts that are for one of the targets; the random prompt is none. Several
    seeds of a prompt count as one (`jpt.analysis.seed_means`). Ties take average ranks, as scipy's
    spearmanr has it. Relative performance is a score over that of the target's own prompt.

    Args:
        indicators: of the prompts of the matrix; their cards say whose own they are.
        transfer: the matrix, or its file.
        out: folder for ``correlation.json`` and ``types.json``.
        tasks: only these targets and only prompts for them; by default all.

    Returns:
        The correlations, with the targets' own prompts among the sources and without.

    Raises:
        InputError: the matrix names prompts that the indicators do not, no target has a prompt of
            its own, or a task is no target.

    Example:
        >>> rank = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.1], [0.2, 0.1, 1.0]])
        >>> found = Indicators(("a", "b", "c"), {"cosine_concat": rank})
        >>> scores = np.array([[0.9, 0.5, 0.6], [0.7, 0.8, 0.6], [0.5, 0.4, 0.9]])
        >>> matrix = TransferMatrix(("a", "b", "c"), ("a", "b", "c"), scores, ("accuracy",) * 3)
        >>> correlate(found, matrix).own_in["cosine_concat"].per_target
        {'a': 0.5, 'b': 1.0, 'c': 1.0}
    """
    tasks = None if tasks is None else list(tasks)
    matrix = transfer if isinstance(transfer, TransferMatrix) else read_transfer(transfer)
    indicators = over_seeds(indicators, matrix.prompts)
    pairs, notes = _of_targets(indicators, select_pairs(indicators, matrix, tasks))
    parts = {}
    for part, own_in in (("own_in", True), ("own_out", False)):
        setting = _setting(indicators, pairs, own_in)
        faults = _Faults("own prompt among the sources" if own_in else "own prompt left out")
        parts[part] = {
            name: _correlate_one(name, column, setting, faults)
            for name, column in indicators.columns.items()
        }
        notes += faults.notes(len(indicators.columns))
    result = CorrelationResult(parts["own_in"], parts["own_out"], tuple(notes))
    if out is not None:
        folder = make_folder(out)
        write_json(folder / TYPES, summarize_types(indicators, matrix, tasks))
        write_json(folder / CORRELATION, result.record)
    return result


def spearman(first: Float64[np.ndarray, "N"], second: Float64[np.ndarray, "N"]) -> float | None:
    """Computes Spearman's rank correlation; ties take average ranks."""
    return None if _fault(first, second) else _rank_correlation(first, second)


def _of_targets(indicators: Indicators, pairs: TransferPairs) -> tuple[TransferPairs, list[str]]:
    """Leaves out targets without an own prompt, and prompts that are for none of the targets."""
    kept = [row for row, target in enumerate(pairs.targets) if target in pairs.own]
    if not kept:
        raise InputError(
            f"none of the {len(pairs.targets)} targets ({shorten(pairs.targets)}) has a prompt of"
            f" its own among the {len(indicators.names)} prompts; transfer prompts that were tuned"
            " for the targets"
        )
    cards = all_cards(indicators)
    columns, others = [], []
    for column, name in enumerate(pairs.sources):
        is_source = name in pairs.own.values() or serves(name, cards[name], pairs.targets)
        (columns if is_source else others).append(column)
    notes = list(pairs.notes)
    if others:
        names = [pairs.sources[column] for column in others]
        notes.append(f"{shorten(names)}: for none of the targets, left out of the correlations")
    smaller = dataclasses.replace(
        pairs,
        targets=tuple(pairs.targets[row] for row in kept),
        sources=tuple(pairs.sources[column] for column in columns),
        values=pairs.values[np.ix_(kept, columns)],
        relative=pairs.relative[np.ix_(kept, columns)],
    )
    return smaller, notes


def _setting(indicators: Indicators, pairs: TransferPairs, own_in: bool) -> _Setting:
    places = {name: place for place, name in enumerate(indicators.names)}
    owners = np.array([pairs.own[target] for target in pairs.targets], object)
    own = owners[:, None] == np.array(pairs.sources, object)[None]  # [N, K]
    return _Setting(
        pairs,
        np.array([places[owner] for owner in owners]),
        np.array([places[source] for source in pairs.sources], int),
        ~np.isnan(pairs.values) & (own_in | ~own),
    )


def _correlate_one(
    name: str, column: Float64[np.ndarray, "K K"], setting: _Setting, faults: _Faults
) -> RankCorrelation:
    pairs = setting.pairs
    indicator = column[np.ix_(setting.own_rows, setting.source_columns)]  # [N, K]
    used = setting.used & ~np.isnan(indicator)
    faults.undefined(name, int((setting.used & ~used).sum()))
    per_target: dict[str, float | None] = {}
    for row, target in enumerate(pairs.targets):
        sides = indicator[row, used[row]], pairs.values[row, used[row]]
        faults.found(name, target, _fault(*sides))
        per_target[target] = spearman(*sides)
    defined = [value for value in per_target.values() if value is not None]
    related = used & ~np.isnan(pairs.relative)
    faults.found(name, "all pairs", _fault(indicator[used], pairs.values[used]))
    return RankCorrelation(
        float(np.mean(defined)) if defined else None,
        spearman(indicator[related], pairs.relative[related]),
        spearman(indicator[used], pairs.values[used]),
        len(defined),
        per_target,
        mean_interval(defined),
    )


def _fault(first: Float64[np.ndarray, "N"], second: Float64[np.ndarray, "N"]) -> str | None:
    """Why there is no rank correlation of an indicator and scores, or None where there is."""
    if len(second) < FEWEST_SOURCES:
        return f"fewer than {FEWEST_SOURCES} sources"
    if np.ptp(second) == 0:
        return "all sources score the same"
    return "it is the same for all sources" if np.ptp(first) == 0 else None


def _rank_correlation(first: Float64[np.ndarray, "N"], second: Float64[np.ndarray, "N"]) -> float:
    ranks = np.stack([_ranks(first), _ranks(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    covariance = ranks @ ranks.T
    found = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    return float(np.clip(found, -1, 1))


def _ranks(values: Float64[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
    """Ranks from 1 on; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


class _Faults:
    """Collects why correlations are undefined, and says it in few lines."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._where: dict[tuple[str, str], list[str]] = {}  # (reason, indicator) -> targets
        self._undefined: dict[str, int] = {}

    def found(self, indicator: str, target: str, reason: str | None) -> None:
        """Notes that a target has no correlation with an indicator."""
        if reason:
            self._where.setdefault((reason, indicator), []).append(target)

    def undefined(self, indicator: str, count: int) -> None:
        """Notes how many pairs have no value of an indicator."""
        if count:
            self._undefined[indicator] = count

    def notes(self, n_indicators: int) -> list[str]:
        """Gives one line for each reason and group of targets."""
        groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for (reason, indicator), targets in self._where.items():
            groups.setdefault((reason, tuple(targets)), []).append(indicator)
        lines = []
        for (reason, targets), names in groups.items():
            whose = "any indicator" if len(names) == n_indicators else shorten(names)
            lines.append(f"{shorten(targets)} ({self._part}): no Spearman with {whose}: {reason}")
        for name, count in self._undefined.items():
            lines.append(f"{name} ({self._part}): not defined for {count} pairs, left out")
        return lines
