"""Correlate indicators with measured transfer, per target and over all pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from jpt.errors import InputError
from jpt.indicators.indicators import (
    INDICATORS,
    OVERLAP,
    OVERLAP_ALL,
    PAPER,
    WINDOW_PREFIX,
    Indicators,
    compute_indicators,
    write_indicators,
)
from jpt.indicators.pairs import (
    TransferPairs,
    all_cards,
    over_seeds,
    select_pairs,
    serves,
    shorten,
    summarize_types,
)
from jpt.indicators.source_selection import CHOICE, judge_indicators, shown_rankings
from jpt.io.files import make_folder, write_json
from jpt.prompts.store import Prompts, load_runs
from jpt.results.prompt_table import AT_CHANCE_MEANING, read_scores, tie_at_chance
from jpt.results.records import CORRELATION_PARTS as PARTS
from jpt.results.records import OverlapLead, RankCorrelation
from jpt.results.statistics import LEVEL, METHOD, RESAMPLES, SEED, lead, mean_interval
from jpt.types import Activations, Prompt, TransferMatrix

# --- Spearman's rank correlation (paper, section 5)
# Per target, over source prompts: similarity of in-task prompt and source with the source's score
# on the target; then the mean over targets, which is all the paper reports (there is no published
# code for it). Additionally all pairs pooled, with relative performance and with scores, and all of
# it with the scores at chance as ties: their order is noise, which ranks amplify.

CORRELATION, TYPES = "correlation.json", "types.json"
FEWEST_SOURCES = 3  # with two, a rank correlation is always 1 or -1


@dataclass(frozen=True)
class CorrelationResult:
    """Result of `correlate`.

    Attributes:
        including_in_task: Correlations by indicator, the target's in-task prompt among the sources.
        excluding_in_task: The same without the in-task prompt.
        notes: What is undefined or left out, and why.
        including_in_task_tied: Correlations with all scores within one standard error of chance as
            ties; empty if chance levels are unknown.
        excluding_in_task_tied: The same without the in-task prompt.
    """

    including_in_task: dict[str, RankCorrelation]
    excluding_in_task: dict[str, RankCorrelation]
    notes: tuple[str, ...] = ()
    including_in_task_tied: dict[str, RankCorrelation] = field(default_factory=dict)
    excluding_in_task_tied: dict[str, RankCorrelation] = field(default_factory=dict)

    @property
    def leads(self) -> dict[str, OverlapLead]:
        """Lead of ON in both tables; empty without ON."""
        parts = {part: getattr(self, part) for part in PARTS[:2]}
        return {part: overlap_lead(table) for part, table in parts.items() if OVERLAP in table}

    @property
    def record(self) -> dict[str, Any]:
        """Content of ``correlation.json``."""
        tables = {
            part: {name: _as_json(found) for name, found in getattr(self, part).items()}
            for part in PARTS
            if getattr(self, part) or part in PARTS[:2]
        }
        leads = {part: _as_json(found) for part, found in self.leads.items()}
        intervals = {"method": METHOD, "level": LEVEL, "resamples": RESAMPLES, "seed": SEED}
        return {**tables, "overlap_lead": leads, "intervals": intervals, "notes": list(self.notes)}


def _as_json(found: RankCorrelation | OverlapLead) -> dict[str, Any]:
    """Return the fields with lists for tuples, as JSON has them after reading."""
    return dataclasses.asdict(
        found,
        dict_factory=lambda items: {
            name: list(value) if isinstance(value, tuple) else value for name, value in items
        },
    )


def overlap_lead(table: Mapping[str, RankCorrelation]) -> OverlapLead:
    """Return the lead of ON over the paper's embedding indicators."""
    # The best of them is selected on the same targets, which favours it.
    rivals = {name: table[name] for name in PAPER if name in table}
    means = {name: each.mean_over_targets for name, each in rivals.items()}
    known = {name: mean for name, mean in means.items() if mean is not None}
    best = max(known, key=known.__getitem__, default=None)
    in_task = table[OVERLAP].per_target
    return OverlapLead(
        best, {name: lead(in_task, each.per_target) for name, each in rivals.items()}
    )


@dataclass(frozen=True)
class _Setting:
    """Pairs and scores, the same for all indicators."""

    pairs: TransferPairs
    in_task_rows: Int[np.ndarray, "N"]
    source_columns: Int[np.ndarray, "K"]
    used: Bool[np.ndarray, "N K"]


def correlate(
    indicators: Indicators,
    transfer: TransferMatrix | str | Path,
    out: str | Path | None = None,
    *,
    tasks: Iterable[str] | None = None,
) -> CorrelationResult:
    """Correlate every indicator with zero-shot transfer (Spearman; paper, section 5).

    Sources are prompts of the target tasks; random prompts are left out. Seeds of a prompt are
    averaged. Ties get average ranks, as in scipy's spearmanr. Relative performance is the score
    divided by that of the target's in-task prompt. If the matrix has chance levels, correlations
    are also given with all scores within one standard error of chance as ties.

    Args:
        indicators: Indicators of the matrix's prompts; their cards name the tasks.
        transfer: Transfer matrix, or its file.
        out: Folder for ``correlation.json`` and ``types.json``.
        tasks: Restrict targets and prompts to these tasks; defaults to all.

    Returns:
        The :class:`CorrelationResult`, including and excluding in-task prompts.

    Raises:
        InputError: If the matrix has prompts without indicators, no target has an in-task prompt,
            or a task is not a target.

    Example:
        >>> rank = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.1], [0.2, 0.1, 1.0]])
        >>> found = Indicators(("a", "b", "c"), {"cosine_concat": rank})
        >>> scores = np.array([[0.9, 0.5, 0.6], [0.7, 0.8, 0.6], [0.5, 0.4, 0.9]])
        >>> matrix = TransferMatrix(("a", "b", "c"), ("a", "b", "c"), scores, ("accuracy",) * 3)
        >>> correlate(found, matrix).including_in_task["cosine_concat"].per_target
        {'a': 0.5, 'b': 1.0, 'c': 1.0}
    """
    tasks = None if tasks is None else list(tasks)
    matrix = transfer if isinstance(transfer, TransferMatrix) else read_scores(transfer)
    indicators = over_seeds(indicators, matrix.prompts)
    variants = (
        {"": matrix} if matrix.chance is None else {"": matrix, "_tied": tie_at_chance(matrix)}
    )
    parts: dict[str, dict[str, RankCorrelation]] = {}
    notes: list[str] = []
    for variant, scores in variants.items():
        pairs, found = _of_targets(indicators, select_pairs(indicators, scores, tasks))
        notes += [] if variant else found  # ties are no scores
        for part in ("including_in_task", "excluding_in_task"):
            setting = _setting(indicators, pairs, part.startswith("including"))
            faults = _Faults(part.replace("_in_task", " in-task prompts"), bool(variant))
            parts[part + variant] = {
                name: _correlate_one(name, column, setting, faults)
                for name, column in indicators.columns.items()
            }
            notes += faults.notes(len(indicators.columns))
    result = CorrelationResult(**parts, notes=tuple(notes))
    if out is not None:
        folder = make_folder(out)
        write_json(folder / TYPES, summarize_types(indicators, matrix, tasks))
        write_json(folder / CORRELATION, result.record)
    return result


def spearman(first: Float64[np.ndarray, "N"], second: Float64[np.ndarray, "N"]) -> float | None:
    """Return Spearman's rank correlation with average ranks for ties; None if undefined."""
    return None if _fault(first, second) else _rank_correlation(first, second)


def _of_targets(indicators: Indicators, pairs: TransferPairs) -> tuple[TransferPairs, list[str]]:
    """Drop targets without an in-task prompt, and prompts of other tasks."""
    kept = [row for row, target in enumerate(pairs.targets) if target in pairs.in_task]
    if not kept:
        raise InputError(
            f"targets: expected an in-task prompt among the {len(indicators.names)} prompts, got"
            f" none for the {len(pairs.targets)} targets ({shorten(pairs.targets)}); transfer"
            " prompts tuned on the targets"
        )
    cards = all_cards(indicators)
    columns, others = [], []
    for column, name in enumerate(pairs.sources):
        is_source = name in pairs.in_task.values() or serves(name, cards[name], pairs.targets)
        (columns if is_source else others).append(column)
    notes = list(pairs.notes)
    if others:
        names = [pairs.sources[column] for column in others]
        notes.append(f"{shorten(names)}: not of a target task, left out of the correlations")
    smaller = dataclasses.replace(
        pairs,
        targets=tuple(pairs.targets[row] for row in kept),
        sources=tuple(pairs.sources[column] for column in columns),
        values=pairs.values[np.ix_(kept, columns)],
        performance={n: each[np.ix_(kept, columns)] for n, each in pairs.performance.items()},
    )
    return smaller, notes


def _setting(indicators: Indicators, pairs: TransferPairs, including_in_task: bool) -> _Setting:
    index = {name: number for number, name in enumerate(indicators.names)}
    prompts = np.array([pairs.in_task[target] for target in pairs.targets], object)
    in_task = prompts[:, None] == np.array(pairs.sources, object)[None]  # [N, K]
    return _Setting(
        pairs,
        np.array([index[prompt] for prompt in prompts]),
        np.array([index[source] for source in pairs.sources], int),
        ~np.isnan(pairs.values) & (including_in_task | ~in_task),
    )


def _correlate_one(
    name: str, column: Float64[np.ndarray, "K K"], setting: _Setting, faults: _Faults
) -> RankCorrelation:
    pairs = setting.pairs
    indicator = column[np.ix_(setting.in_task_rows, setting.source_columns)]  # [N, K]
    used = setting.used & ~np.isnan(indicator)
    faults.undefined(name, int((setting.used & ~used).sum()))
    per_target: dict[str, float | None] = {}
    for row, target in enumerate(pairs.targets):
        sides = indicator[row, used[row]], pairs.values[row, used[row]]
        faults.found(name, target, _fault(*sides))
        per_target[target] = spearman(*sides)
    defined = [value for value in per_target.values() if value is not None]
    faults.found(name, "all pairs", _fault(indicator[used], pairs.values[used]))
    known = {n: (used & ~np.isnan(values), values) for n, values in pairs.performance.items()}
    return RankCorrelation(
        mean_over_targets=float(np.mean(defined)) if defined else None,
        pooled_raw=spearman(indicator[used], pairs.values[used]),
        n_targets=len(defined),
        per_target=per_target,
        interval=mean_interval(defined),
        **{f"pooled_{n}": spearman(indicator[of], values[of]) for n, (of, values) in known.items()},
    )


def _fault(first: Float64[np.ndarray, "N"], second: Float64[np.ndarray, "N"]) -> str | None:
    """Return why the correlation is undefined, or None if it is defined."""
    if len(second) < FEWEST_SOURCES:
        return f"fewer than {FEWEST_SOURCES} sources"
    if np.ptp(second) == 0:
        return "all sources have the same score"
    return "the same value for all sources" if np.ptp(first) == 0 else None


def _rank_correlation(first: Float64[np.ndarray, "N"], second: Float64[np.ndarray, "N"]) -> float:
    ranks = np.stack([_ranks(first), _ranks(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    covariance = ranks @ ranks.T
    found = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    return float(np.clip(found, -1, 1))


def _ranks(values: Float64[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
    """Return ranks from 1, averaged over ties."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[inverse]


class _Faults:
    """Reasons why correlations are undefined."""

    def __init__(self, part: str, tied: bool = False) -> None:
        self._part, self._tied = f"{part}, ties at chance" if tied else part, tied
        self._where: dict[tuple[str, str], list[str]] = {}  # (reason, indicator) -> targets
        self._undefined: dict[str, int] = {}

    def found(self, indicator: str, target: str, reason: str | None) -> None:
        """Add a target without correlation with an indicator."""
        if reason:
            self._where.setdefault((reason, indicator), []).append(target)

    def undefined(self, indicator: str, count: int) -> None:
        """Add the number of pairs without a value of an indicator."""
        if count:
            self._undefined[indicator] = count

    def notes(self, n_indicators: int) -> list[str]:
        """Return one note per reason and group of targets."""
        groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for (reason, indicator), targets in self._where.items():
            groups.setdefault((reason, tuple(targets)), []).append(indicator)
        lines = []
        for (reason, targets), names in groups.items():
            which = "all indicators" if len(names) == n_indicators else shorten(names)
            lines.append(
                f"{shorten(targets)} ({self._part}): correlation with {which} undefined: {reason}"
            )
        for name, count in self._undefined.items() if not self._tied else ():
            lines.append(f"{name} ({self._part}): undefined for {count} pairs, left out")
        return lines


# --- Intervals and source selection as text

FEW_TARGETS = 20  # means over fewer targets depend on single tasks


def interval_lines(correlation: CorrelationResult, names: Sequence[str]) -> list[str]:
    """Return the intervals of the means over targets as text."""
    counts = [of.n_targets for of in correlation.excluding_in_task.values() if of.interval]
    if not counts:
        return []
    few = "; few, so intervals are wide" if max(counts) < FEW_TARGETS else ""
    head = f"{_level()} intervals of the means (bootstrap over {max(counts)} targets{few})"
    width = max(len(name) for name in names)
    lines = [f"  {'':{width}}{'with in-task':>14}{'without in-task':>17}"]
    for name in names:
        cells = [
            _range(part[name].interval)
            for part in (correlation.including_in_task, correlation.excluding_in_task)
        ]
        lines.append(f"  {name:{width}}{cells[0]:>14}{cells[1]:>17}")
    return [head, *lines, *_lead_lines(correlation.leads.get("excluding_in_task"))]


def choice_lines(record: Mapping[str, Any]) -> list[str]:
    """Return hit rate and regret of selecting a source by each indicator as text."""
    names = shown_rankings(record["rankings"])
    if not names:
        return []
    whole = max((record["rankings"][name] for name in names), key=lambda of: of["targets"])
    width = max(len(name) for name in names)
    head = (
        f"Selecting the top-ranked source for each of {whole['targets']} targets: share of targets"
        " on which it"
    )
    below = (
        "is the best (hit), and mean regret in points (100 x score); at random"
        f" {100 * whole['chance_hits']:.0f} % and {100 * whole['chance_regret']:.1f}"
    )
    lines = [f"  {'':{width}}  hit regret{_level():>15}     gain over random{_level():>15}"]
    for name in names:
        of = record["rankings"][name]
        cost = _range(of["regret_interval"], 100, sign="")
        gain = _range(of["gain_interval"], 100)
        lines.append(
            f"  {name:{width}}{100 * of['hits']:4.0f} %{100 * of['regret']:6.1f}{cost:>15}"
            f"{100 * of['gain']:>+22.1f}{gain:>15}"
        )
    return [head, below, *lines]


def _lead_lines(found: OverlapLead | None) -> list[str]:
    """Compare ON with the best of the paper's other indicators."""
    if found is None or found.best is None:
        return []
    over = found.over[found.best]
    if over.mean is None or over.interval is None:
        return []
    low, high = over.interval
    verdict = "higher" if low > 0 else "lower" if high < 0 else "difference not significant"
    return [
        f"  neuron_overlap minus {found.best}, the paper's best embedding indicator, without"
        " in-task:"
        f" {over.mean:+.2f}, {_range(over.interval)}: {verdict}"
    ]


def _level() -> str:
    return f"{100 * LEVEL:.0f} %"


def _range(interval: Sequence[float] | None, scale: float = 1, sign: str = "+") -> str:
    if interval is None:
        return "-"
    digits = 2 if scale == 1 else 1
    return "..".join(f"{scale * bound:{sign}.{digits}f}" for bound in interval)


# --- The study of `jpt indicators`


@dataclass(frozen=True)
class IndicatorStudy:
    """Result of `study_indicators`.

    Attributes:
        indicators: Indicators of all pairs of prompts.
        types: Means by task type, as in ``types.json``.
        correlation: Correlation with the transfer matrix; None without one.
        files: Written files.
        subject: Short description of the prompts.
        missing: Notes on missing inputs.
        choices: Source selection by each indicator; None without a matrix.
    """

    indicators: Indicators
    types: dict[str, Any]
    correlation: CorrelationResult | None
    files: tuple[Path, ...]
    subject: str
    missing: tuple[str, ...] = ()
    choices: dict[str, Any] | None = None

    @property
    def notes(self) -> list[str]:
        """What is undefined or left out, without repetitions."""
        found = [*self.missing, *self.indicators.notes, *self.types["notes"]]
        found += self.correlation.notes if self.correlation else ()
        found += self.choices["notes"] if self.choices else ()
        return list(dict.fromkeys(found))

    @property
    def record(self) -> dict[str, Any]:
        """JSON form of the study."""
        correlation = self.correlation.record if self.correlation else {}
        return {
            "prompts": list(self.indicators.names),
            "files": [str(file) for file in self.files],
            **{name: correlation.get(name) for name in (*PARTS, "overlap_lead")},
            "choices": self.choices,
            **{key: value for key, value in self.types.items() if key != "notes"},
            "notes": self.notes,
        }

    def describe(self) -> str:
        """Return the study as text."""
        lines = [self.subject, *_table(self), *(f"note: {note}" for note in self.notes)]
        return "\n".join([*lines, *(f"written: {file}" for file in self.files)])


def study_indicators(
    prompts: Prompts,
    out: str | Path | None = None,
    *,
    neurons: Activations | str | Path | None = None,
    transfer: TransferMatrix | str | Path | None = None,
    tasks: Iterable[str] | None = None,
    layers: str | tuple[int, int] | None = None,
    progress: bool = False,
) -> IndicatorStudy:
    """Compute the indicators of all prompts and correlate them with a transfer matrix."""
    loaded = load_runs(prompts)
    tasks = None if tasks is None else list(tasks)
    # Read and match the matrix first, so that a wrong path or name is reported at once.
    matrix = read_scores(transfer) if isinstance(transfer, (str, Path)) else transfer
    if matrix is not None:
        known = Indicators(tuple(loaded), {}, {n: prompt.card for n, prompt in loaded.items()})
        select_pairs(over_seeds(known, matrix.prompts), matrix, tasks)
    found = compute_indicators(loaded, neurons, layers=layers, progress=progress)
    correlation = None if matrix is None else correlate(found, matrix, tasks=tasks)
    types = summarize_types(found, matrix, tasks)
    choices = None if matrix is None else judge_indicators(found, matrix, tasks)
    missing = _missing(prompts, neurons is None, out if matrix is None else None)
    files = () if out is None else _write(Path(out), found, types, correlation, choices)
    return IndicatorStudy(found, types, correlation, files, _subject(loaded), missing, choices)


def _write(
    out: Path,
    found: Indicators,
    types: dict[str, Any],
    correlation: CorrelationResult | None,
    choices: dict[str, Any] | None,
) -> tuple[Path, ...]:
    folder = make_folder(out)
    write_indicators(folder / INDICATORS, found)
    records = {TYPES: types}
    if correlation is not None:
        records |= {CORRELATION: correlation.record, CHOICE: choices}
    for name, record in records.items():
        write_json(folder / name, record)
    return tuple(folder / name for name in (INDICATORS, *records))


def _subject(prompts: Mapping[str, Prompt]) -> str:
    first = next(iter(prompts.values()))
    rows, width = first.values.shape
    has_row0 = all(prompt.unused_row is not None for prompt in prompts.values())
    more = ", plus row 0, which the model does not read" if has_row0 else ""
    count = f"{len(prompts)} prompt{'s' if len(prompts) > 1 else ''}"
    return f"{count} of {first.card.backbone}, {rows} tokens x {width}{more}"


def _missing(prompts: Prompts, no_neurons: bool, out: str | Path | None) -> tuple[str, ...]:
    notes = []
    if no_neurons:
        folder = prompts if isinstance(prompts, (str, Path)) else "DIR"
        notes.append(
            "no neuron overlap without activations; create them with jpt neurons --prompts"
            f" {folder} --out FILE and pass --neurons FILE"
        )
    if out is not None and (Path(out) / CORRELATION).exists():
        notes.append(
            f"{Path(out) / CORRELATION} is from an earlier run; this one had no transfer matrix"
        )
    return tuple(notes)


def _table(study: IndicatorStudy) -> list[str]:
    """Return a line per indicator; of the layer windows only the best."""
    names = [name for name in study.indicators.columns if not name.startswith(WINDOW_PREFIX)]
    windows = [name for name in study.indicators.columns if name.startswith(WINDOW_PREFIX)]
    best = _best_window(study.correlation, windows)
    if best:
        names.insert(names.index(OVERLAP_ALL), best)
    correlation = study.correlation
    seeds = any("same_task_mean" in means for means in study.types["similarity_by_type"].values())
    kinds = {"same_task": "other seed"} if seeds else {}
    kinds |= {"same_type": "same type", "different_type": "other type"}
    head = ["", *kinds.values()]
    above: list[str] = []
    tied = correlation.excluding_in_task_tied if correlation else {}
    if correlation:
        above = [
            "Spearman's rho with zero-shot transfer, with and without in-task prompts: mean over"
            f" targets, and pooled over all pairs by relative score{' above chance' * bool(tied)};"
            " then mean similarity"
        ]
        ties = ["tied: mean"] if tied else []
        head = ["", "with: mean", "pooled", "without: mean", "pooled", *ties, *head[1:]]
    lines = [head]
    for name in names:
        means = study.types["similarity_by_type"][name]
        cells = [_number(means[f"{kind}_mean"]) for kind in kinds]
        if correlation:
            cells = [
                *_correlation_cells(correlation.including_in_task[name], bool(tied)),
                *_correlation_cells(correlation.excluding_in_task[name], bool(tied)),
                *([_number(tied[name].mean_over_targets)] if tied else []),
                *cells,
            ]
        lines.append([name, *cells])
    chosen = f"{best} is the best of {len(windows)} windows, selected on these targets"
    more = [chosen] if best else []
    if tied:
        more.append(f"tied: without in-task prompts, scores {AT_CHANCE_MEANING} as ties")
    if correlation:
        more += interval_lines(correlation, names)
    if study.choices:
        more += choice_lines(study.choices)
    return [*above, *_aligned(lines), *more]


def _best_window(correlation: CorrelationResult | None, windows: list[str]) -> str | None:
    """Return the window with the highest mean correlation, excluding in-task prompts."""
    if correlation is None:
        return None
    means = {name: correlation.excluding_in_task[name].mean_over_targets for name in windows}
    means = {name: mean for name, mean in means.items() if mean is not None}
    return max(means, key=means.__getitem__, default=None)


def _correlation_cells(found: RankCorrelation, above: bool) -> list[str]:
    pooled = found.pooled_above_chance if above else found.pooled_relative
    return [_number(found.mean_over_targets), _number(pooled)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
