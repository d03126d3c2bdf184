"""From prompts, activations and a transfer matrix on disk to the tables of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jpt.analysis.choice_table import CHOICE, judge_indicators
from jpt.analysis.correlation import (
    CORRELATION,
    TYPES,
    CorrelationResult,
    RankCorrelation,
    correlate,
)
from jpt.analysis.correlation_text import choice_lines, interval_lines
from jpt.analysis.indicators import INDICATORS, Indicators, indicators, write_indicators
from jpt.analysis.overlap import OVERLAP_ALL, WINDOW_PREFIX
from jpt.analysis.seed_means import over_seeds
from jpt.analysis.task_types import summarize_types
from jpt.analysis.transfer_pairs import select_pairs
from jpt.files.atomic import make_folder, write_json
from jpt.files.study_files import read_transfer
from jpt.prompts.seed_prompts import Prompts, load_runs
from jpt.types import Activations, Prompt, TransferMatrix


@dataclass(frozen=True)
class IndicatorStudy:
    """What `study_indicators` computed.

    Attributes:
        indicators: of all pairs of prompts.
        types: means by type of task, as in ``types.json``.
        correlation: with the transfer matrix, where there was one.
        files: what was written.
        subject: the prompts in a few words.
        missing: what the study would have with other files.
        choices: which source each indicator would have chosen, where there was a matrix.
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
        """What is undefined or left out, each said once."""
        found = [*self.missing, *self.indicators.notes, *self.types["notes"]]
        found += self.correlation.notes if self.correlation else ()
        found += self.choices["notes"] if self.choices else ()
        return list(dict.fromkeys(found))

    @property
    def record(self) -> dict[str, Any]:
        """The study as JSON."""
        correlation = self.correlation.record if self.correlation else {}
        return {
            "prompts": list(self.indicators.names),
            "files": [str(file) for file in self.files],
            "own_in": correlation.get("own_in"),
            "own_out": correlation.get("own_out"),
            "overlap_lead": correlation.get("overlap_lead"),
            "choices": self.choices,
            **{key: value for key, value in self.types.items() if key != "notes"},
            "notes": self.notes,
        }

    def describe(self) -> str:
        """Lays the study out for reading."""
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
    """Computes the indicators of all prompts, and holds them against a transfer matrix."""
    loaded = load_runs(prompts)
    tasks = None if tasks is None else list(tasks)
    # Read and matched before the long work, so that a wrong path or name is told at once.
    matrix = read_transfer(transfer) if isinstance(transfer, (str, Path)) else transfer
    if matrix is not None:
        known = Indicators(tuple(loaded), {}, {n: prompt.card for n, prompt in loaded.items()})
        select_pairs(over_seeds(known, matrix.prompts), matrix, tasks)
    found = indicators(loaded, neurons, layers=layers, progress=progress)
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
    more = ", and the row 0 that the model does not read" if has_row0 else ""
    count = f"{len(prompts)} prompt{'s' if len(prompts) > 1 else ''}"
    return f"{count} of {first.card.backbone}, {rows} rows x {width}{more}"


def _missing(prompts: Prompts, no_neurons: bool, out: str | Path | None) -> tuple[str, ...]:
    """What to say of files that were not given."""
    notes = []
    if no_neurons:
        place = prompts if isinstance(prompts, (str, Path)) else "DIR"
        notes.append(
            "neuron overlap is left out, for want of activations: jpt neurons --prompts"
            f" {place} --out FILE makes them, --neurons FILE reads them"
        )
    if out is not None and (Path(out) / CORRELATION).exists():
        notes.append(
            f"{Path(out) / CORRELATION} is of an earlier run: there was no transfer matrix now"
        )
    return tuple(notes)


def _table(study: IndicatorStudy) -> list[str]:
    """One line an indicator; of the windows of layers only the best, which is named."""
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
    if correlation:
        above = [
            "Spearman with zero-shot transfer: mean over targets, and all pairs with relative"
            " performance; then mean similarity"
        ]
        head = ["", "own in: mean", "pooled", "own out: mean", "pooled", *head[1:]]
    lines = [head]
    for name in names:
        means = study.types["similarity_by_type"][name]
        cells = [_number(means[f"{kind}_mean"]) for kind in kinds]
        if correlation:
            cells = [
                *_correlation_cells(correlation.own_in[name]),
                *_correlation_cells(correlation.own_out[name]),
                *cells,
            ]
        lines.append([name, *cells])
    chosen = f"{best} is the best of {len(windows)} windows, found by looking" if best else ""
    more = [chosen] if chosen else []
    if correlation:
        more += interval_lines(correlation, names)
    if study.choices:
        more += choice_lines(study.choices)
    return [*above, *_aligned(lines), *more]


def _best_window(correlation: CorrelationResult | None, windows: list[str]) -> str | None:
    """The window whose overlap goes best with transfer, own prompts left out."""
    if correlation is None:
        return None
    means = {name: correlation.own_out[name].mean_over_targets for name in windows}
    means = {name: mean for name, mean in means.items() if mean is not None}
    return max(means, key=means.__getitem__, default=None)


def _correlation_cells(found: RankCorrelation) -> list[str]:
    return [_number(found.mean_over_targets), _number(found.pooled_relative)]


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
