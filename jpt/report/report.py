"""Write a study as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Bool, Float64
from matplotlib.figure import Figure

from jpt.errors import InputError
from jpt.indicators.indicators import (
    EMBEDDING,
    MEANINGS,
    OVERLAP,
    OVERLAP_ALL,
    WITH_ROW0,
    indicator_label,
    windows,
)
from jpt.indicators.source_selection import SAME_TYPE, shown_rankings
from jpt.io.files import read_json, read_number, read_table, write_text
from jpt.report.figures import (
    BLUE,
    FONT,
    GRAY,
    INK,
    LINE,
    MASK_RECORD,
    MUTED,
    WARM_START_RECORD,
    Curves,
    HeatMap,
    heat_map,
    indicator_panel,
    learning_curve,
    new_figure,
    plain,
    plot_curves,
    plot_shares,
    prompt_map,
    read_curves,
    read_shares,
    regret_figure,
    scale_to_plane,
    stick_rows,
    strips,
    to_svg,
    window_curve,
)
from jpt.report.findings import (
    AGREES,
    CONTRADICTS,
    UNCLEAR,
    UNKNOWN,
    Finding,
    counted,
    decimal,
    duration,
    find,
    percent,
    significant,
    standard_error,
)
from jpt.report.study import (
    BASELINE,
    NO_PROMPT,
    NO_TYPE,
    Fields,
    Ordering,
    Study,
    commands,
    order_study,
    random_scores,
    read_fields,
    read_study,
    transfer_pairs,
    values_at,
    with_performance,
)
from jpt.results.prompt_table import (
    AT_CHANCE,
    AT_CHANCE_MEANING,
    ERRORS,
    MEASURES,
    RANDOM,
    at_chance,
    chance_notes,
    read_scores,
)
from jpt.results.records import (
    ChosenSource,
    CorrelationRecord,
    CorrelationRecords,
    MaskRecord,
    PromptRecord,
    SelectionMeans,
    SelectionRecord,
    TaskTypeRecord,
)
from jpt.results.statistics import mean_interval
from jpt.results.value_checks import check_score
from jpt.tasks.catalog import task_type
from jpt.types import TransferMatrix
from jpt.version import __version__

# --- HTML elements


class Markup(str):
    """HTML; all other text is escaped when it enters an element."""


Child = str | Markup | None
_CHIPS = {
    AGREES: "agrees with the paper",
    CONTRADICTS: "contradicts the paper",
    UNCLEAR: "inconclusive",
}


def element(tag: str, *children: Child, **attributes: str | None) -> Markup:
    """Return an HTML element; attribute names may end in ``_``."""
    attributes_text = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{attributes_text}>{join(children)}</{tag}>")


def join(parts: Iterable[Child]) -> Markup:
    """Concatenate HTML."""
    return Markup("".join(_escaped(part) for part in parts))


def _escaped(part: Child) -> str:
    if part is None:
        return ""
    return part if isinstance(part, Markup) else escape(part)


def table(
    head: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    caption: str,
    numbers_from: int = 1,
    over: Sequence[tuple[str, int]] = (),
    source: Sequence[str] = (),
) -> Markup:
    """Return a scrollable table that sorts by its header."""
    lines = []
    if over:
        cells = [element("th", text, colspan=str(n), scope="colgroup") for text, n in over]
        lines.append(element("tr", *cells))
    lines.append(
        element(
            "tr",
            *(
                element("th", cell, scope="col", class_="number" if i >= numbers_from else None)
                for i, cell in enumerate(head)
            ),
        )
    )
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(_cell(cell, i >= numbers_from) for i, cell in enumerate(row[1:], 1)),
        )
        for row in rows
    ]
    content = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", *lines),
        element("tbody", *body),
    )
    return element("div", scrolling(content, caption), sources(source, "p"), class_="table")


def sources(paths: Sequence[str], tag: str = "span") -> Markup | None:
    """Link the files that numbers come from."""
    if not paths:
        return None
    links = [element("a", path, href=quote(path)) for path in dict.fromkeys(paths)]
    parts = [part for link in links for part in (", ", link)][1:]
    return element(tag, "Data: ", *parts, class_="source")


def value_cell(text: str, value: float) -> Markup:
    """Return a cell that sorts by value, not by text (a duration)."""
    return element("td", text, class_="number", data_sort=f"{value}" if value == value else None)


def _cell(cell: Child, number: bool) -> Markup:
    if isinstance(cell, Markup) and cell.startswith("<td"):
        return cell
    return element("td", cell, class_="number" if number else None)


def bar_cell(text: str, share: float, strong: bool = False) -> Markup:
    """Return a cell with a bar behind its number."""
    kind = "number bar" + (" negative" if share < 0 else "") + (" best" if strong else "")
    return element("td", text, class_=kind, style=f"--share:{100 * min(abs(share), 1):.0f}%")


def scrolling(content: Markup, label: str) -> Markup:
    """Wrap wide content so that it scrolls, not the page."""
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def figure(svg: str, label: str, caption: Child, source: Sequence[str] = ()) -> Markup:
    """Return a figure with its caption."""
    below = element("figcaption", caption, " " if source else None, sources(source))
    return element("figure", scrolling(Markup(svg), label), below)


def details(summary: str, *content: Child) -> Markup:
    """Return collapsed content."""
    return element("details", element("summary", summary), *content)


def section(name: str, title: str, *content: Child) -> Markup:
    """Return a section of the page."""
    return element("section", element("h2", title), *content, id=name)


def missing(what: str, command: str) -> Markup:
    """Name a missing part and the command that creates it."""
    return element("p", f"{what}. Create it with: ", element("code", command), class_="missing")


def finding_item(finding: Finding, anchor: str | None = None) -> Markup:
    """Return a finding with its verdict."""
    chip = None
    if finding.verdict is not None:
        chip = element("span", _CHIPS[finding.verdict], class_=f"chip {finding.verdict}")
    link = element("a", "details", href=f"#{anchor}", class_="where") if anchor else None
    return element("li", finding.text, " " if chip else None, chip, " " if link else None, link)


def whole_page(title: str, *content: Child) -> str:
    """Return a self-contained page, which loads nothing."""
    style, script = (
        files("jpt.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    # Names in the page are user input: the policy lets the browser run this one script only.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none';"
    policy += f" form-action 'none'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element("body", element("main", *content), element("script", Markup(script)))
    return f'<!doctype html>\n<html lang="en">{head}\n{body}</html>\n'


# What a measure (`MEASURES`) adds to a relative score; None where none is defined.
_ABOVE = {"above_chance": " above chance", "relative": "", None: ""}

# --- Source selection

_CHOICE_FILES = ("choice.json",)


def choice_section(study: Study, ordering: Ordering, found: Sequence[Finding]) -> Markup:
    """Return the section on source selection by indicators."""
    title = "Source selection by indicators"
    if study.choices is None:
        note = missing("choice.json is missing", commands(study.folder)["indicators"])
        return section("choice", title, note)
    if not study.choices.ranges:
        reason = element("p", *(study.choices.notes or ("Source selection cannot be evaluated.",)))
        return section("choice", title, reason)
    items = [finding_item(each) for each in found if each.topic == "choice"]
    lead = element(
        "p",
        "Leave-one-out evaluation: for each task, the source prompt that an indicator ranks as most"
        " similar to the in-task prompt is selected, and its score is compared with that of the"
        " best source. Hit rate: fraction of tasks for which the best source is selected. Regret:"
        " score of the best source minus that of the selected one, in points (1 point = 1% of the"
        " full score), averaged over tasks. Sources that tie for first place are averaged.",
    )
    names = shown_rankings(study.choices.means)
    return section(
        "choice",
        title,
        element("ul", *items, class_="findings") if items else None,
        lead,
        element(
            "div",
            _regret_figure(study.choices, names),
            _selection_means(study.choices, names),
            class_="columns",
        ),
        _by_target(study.choices, names, ordering),
        _row0(study.choices),
        element("p", *_selection_notes(study.choices), class_="meta"),
    )


def ranking_label(name: str) -> str:
    """Return the display name of a ranking."""
    return "same type" if name == SAME_TYPE else indicator_label(name)


def points(value: float, sign: bool = False) -> str:
    """Format a score difference in points."""
    return decimal(100 * value, 1, sign=sign)


def bounds(interval: tuple[float, float], sign: bool = False) -> str:
    """Format an interval in points."""
    if not np.isfinite(interval).all():
        return UNKNOWN
    return " to ".join(points(end, sign) for end in interval)


def _regret_figure(choices: SelectionRecord, names: Sequence[str]) -> Markup:
    means = choices.means
    ordered = sorted(names, key=lambda name: means[name].regret)
    chance = _chance(choices, names)
    plot = regret_figure(
        [ranking_label(name) for name in ordered],
        [means[name].regret for name in ordered],
        [means[name].regret_interval for name in ordered],
        chance.chance_regret,
    )
    label = "Mean regret of the source that each indicator selects: " + "; ".join(
        f"{ranking_label(name)} {points(means[name].regret)}" for name in ordered
    )
    caption = (
        f"Mean regret over {counted(chance.targets, 'task')} (dots) with 95% CI (lines); dashed: a"
        " random source. Lower is better."
    )
    return figure(to_svg(plot, "choice-costs", label), label, caption, _CHOICE_FILES)


def _chance(choices: SelectionRecord, names: Sequence[str]) -> SelectionMeans:
    """The ranking defined on the most targets, whose chance level is shown."""
    return max((choices.means[name] for name in names), key=lambda of: of.targets)


def _selection_means(choices: SelectionRecord, names: Sequence[str]) -> Markup:
    chance = _chance(choices, names)
    least = min(choices.means[name].regret for name in names)
    rows: list[list[Child]] = [
        [
            ranking_label(name),
            str(of.targets),
            percent(of.hits),
            bar_cell(
                points(of.regret), of.regret / (chance.chance_regret or 1), of.regret == least
            ),
            points(of.gain, sign=True),
            bounds(of.gain_interval, sign=True),
        ]
        for name in names
        for of in [choices.means[name]]
    ]
    cells = [percent(chance.chance_hits), points(chance.chance_regret), UNKNOWN, UNKNOWN]
    rows.append(["random", str(chance.targets), *cells])
    head = ["ranking", "n tasks", "hit rate", "regret", "gain over random", "95% CI"]
    caption = "Source selection by each ranking; regret and gain in points"
    return table(head, rows, caption, source=_CHOICE_FILES)


def _by_target(choices: SelectionRecord, names: Sequence[str], ordering: Ordering) -> Markup:
    targets = [name for name in ordering.targets if name in choices.ranges]
    targets += [name for name in choices.ranges if name not in targets]
    rows: list[list[Child]] = []
    for target in targets:
        of = choices.ranges[target]
        cells = [_chosen(choices.chosen[name].get(target), of.best) for name in names]
        best = f"{', '.join(of.best)} ({points(of.best_score)})"
        rows.append([target, best, *cells, f"−{points(of.best_score - of.mean_score)}"])
    head = ["task", "best source (score)", *map(ranking_label, names), "random"]
    caption = "Source selected by each ranking, and its regret in points"
    content = table(head, rows, caption, numbers_from=99, source=_CHOICE_FILES)
    return details("Selected source by task", content)


def _chosen(found: ChosenSource | None, best: Sequence[str]) -> Child:
    if found is None:
        return UNKNOWN
    names = ", ".join(found.sources)
    if len(found.sources) > 3:
        names = f"{len(found.sources)} tied"
    hit = set(found.sources) <= set(best)
    text = f"{names} ✓" if hit else f"{names} −{points(found.regret)}"
    return element("td", text, class_="best" if hit else None)


def _row0(choices: SelectionRecord) -> Markup | None:
    """Compare with indicators that include row 0, which the paper's RoBERTa prompts have."""
    pairs = [(name.removesuffix(WITH_ROW0), name) for name in choices.means]
    pairs = [(plain, name) for plain, name in pairs if plain != name and plain in choices.means]
    if not pairs:
        return None
    rows = [
        [ranking_label(plain)]
        + [percent(choices.means[name].hits) for name in (plain, with_row0)]
        + [points(choices.means[name].regret) for name in (plain, with_row0)]
        for plain, with_row0 in pairs
    ]
    over = [("", 1), ("hit rate", 2), ("regret, points", 2)]
    head = ["ranking", *["without row 0", "with row 0"] * 2]
    caption = "Row 0 of these prompts is trained but never read by their model"
    content = table(head, rows, caption, over=over, source=_CHOICE_FILES)
    return details("With and without row 0", content)


def _selection_notes(choices: SelectionRecord) -> list[str]:
    tasks = max(of.targets for of in choices.means.values())
    lines = [
        "Same type: all sources with the target's task type tie for first place; this ranking needs"
        " neither an in-task prompt nor labels."
    ]
    if tasks < 20:
        lines.append(f" With {counted(tasks, 'task')}, these means depend heavily on single tasks.")
    return lines


# --- Correlation of indicators with transfer

_CORRELATION_FILES = ("correlation.json",)
_EXCLUDING, _INCLUDING = "excluding in-task prompts", "including in-task prompts"
_CORRELATION_NUMBERS = ("mean_over_targets", "pooled_relative", "pooled_raw")


def correlation_section(study: Study, ordering: Ordering, found: Sequence[Finding]) -> Markup:
    """Return the section on the correlation of indicators with transfer."""
    title = "Do similar prompts transfer better?"
    if study.correlations is None:
        note = missing("correlation.json is missing", commands(study.folder)["indicators"])
        return section("correlation", title, note, _scatter_figures(study, ordering))
    items = [finding_item(each) for each in found if each.topic in ("correlation", "caution")]
    lead = element(
        "p",
        "Spearman's rank correlation of each indicator with zero-shot transfer: +1 if the more"
        " similar prompt is always the better source, 0 if similarity predicts nothing. A prompt is"
        " most similar to itself and usually best on its own task, so including in-task pairs"
        " favors every indicator; compare the columns that exclude them.",
    )
    return section(
        "correlation",
        title,
        element("ul", *items, class_="findings") if items else None,
        lead,
        _correlation_table(study.correlations),
        element(
            "div",
            _window_figure(study.correlations),
            element(
                "div",
                _interval_note(study.correlations),
                _best_window_note(study.correlations),
                _row0_table(study.correlations),
                class_="text",
            ),
            class_="columns",
        ),
        _per_target_table(study.correlations),
        _scatter_figures(study, ordering),
    )


def _shown(table_: Mapping[str, CorrelationRecord]) -> list[str]:
    """Select the embedding indicators, ON, its best window, and ON over all layers."""
    best = _best_window(table_)
    wanted = [*EMBEDDING, OVERLAP, best, OVERLAP_ALL]
    return [name for name in wanted if name is not None and name in table_]


def _best_window(table_: Mapping[str, CorrelationRecord]) -> str | None:
    known = [n for n in windows(table_) if np.isfinite(table_[n].mean_over_targets)]
    return max(known, key=lambda n: table_[n].mean_over_targets, default=None)


def _correlation_table(found: CorrelationRecords) -> Markup:
    without, including = found.excluding_in_task, found.including_in_task
    names = _shown(without or including)
    parts = ((without, found.excluding_in_task_tied), (including, found.including_in_task_tied))
    columns = [_correlation_columns(names, *part) for part in parts if part[0]]
    flat = [values for part in columns for values in part.values()]
    best = [max(values, key=_rank) for values in flat]
    rows: list[list[Child]] = []
    for row, name in enumerate(names):
        cells = [_rho_cell(of[row], of[row] == top) for of, top in zip(flat, best, strict=True)]
        first = (without or including)[name]
        known = [v for v in first.per_target.values() if np.isfinite(v)]
        error = [f"±{decimal(standard_error(known), 2)}", _correlation_bounds(known)]
        label = _row_label(name, without or including)
        rows.append([label, str(first.n_targets), cells[0], *error, *cells[1:]])
    over, labels = [("", 2)], [label for part in columns for label in part]
    which = [label for label, part in ((_EXCLUDING, without), (_INCLUDING, including)) if part]
    for number, (label, part) in enumerate(zip(which, columns, strict=True)):
        over.append((label, len(part) + (0 if number else 2)))
    head = ["indicator", "n targets", labels[0], "standard error", "95% CI", *labels[1:]]
    caption = "Spearman's rho; the highest value of each column is bold"
    return table(head, rows, caption, over=over, source=_CORRELATION_FILES)


def _correlation_columns(
    names: Sequence[str],
    part: Mapping[str, CorrelationRecord],
    tied: Mapping[str, CorrelationRecord],
) -> dict[str, list[float]]:
    """Return the columns of one part of the table; those that are unknown are left out."""
    columns = {
        label: [getattr(of[name], number) if name in of else np.nan for name in names]
        for label, of, number in (
            ("mean over targets", part, "mean_over_targets"),
            ("mean, ties at chance", tied, "mean_over_targets"),
            ("pooled, above chance", part, "pooled_above_chance"),
            ("pooled, relative", part, "pooled_relative"),
            ("pooled, raw", part, "pooled_raw"),
        )
    }
    optional = ("mean, ties at chance", "pooled, above chance")
    return {n: of for n, of in columns.items() if n not in optional or np.isfinite(of).any()}


def _rank(value: float) -> float:
    return value if np.isfinite(value) else -2.0


def _rho_cell(value: float, strong: bool) -> Markup:
    known = bool(np.isfinite(value))
    return bar_cell(decimal(value, 2, sign=True), value if known else 0.0, strong and known)


def _row_label(name: str, table_: Mapping[str, CorrelationRecord]) -> str:
    if name == OVERLAP:
        return "ON, default layers"
    if name == _best_window(table_):
        return f"{indicator_label(name)} (best window)"
    return indicator_label(name)


def _best_window_note(found: CorrelationRecords) -> Markup | None:
    if _best_window(found.excluding_in_task or found.including_in_task) is None:
        return None
    return element(
        "p",
        "The best window is selected on the same tasks that it is evaluated on, so its correlation"
        " is optimistic; the default layers were fixed in advance. Mean over targets: sources are"
        " ranked within each task. Ties at chance: all scores within one standard error of chance"
        " tie. Pooled: all pairs in one ranking, by relative or raw score.",
        class_="meta",
    )


def _per_target_table(found: CorrelationRecords) -> Markup | None:
    part = found.excluding_in_task or found.including_in_task
    targets = list(dict.fromkeys(t for each in part.values() for t in each.per_target))
    if not targets:
        return None
    which = _EXCLUDING if found.excluding_in_task else _INCLUDING
    rows = [
        [
            indicator_label(name),
            *(decimal(each.per_target.get(t, np.nan), 2, sign=True) for t in targets),
            *(decimal(getattr(each, number), 2, sign=True) for number in _CORRELATION_NUMBERS),
        ]
        for name, each in part.items()
    ]
    head = ["indicator", *targets, "mean", "pooled, relative", "pooled, raw"]
    caption = f"Spearman's rho by indicator and task, {which}"
    content = table(head, rows, caption, source=_CORRELATION_FILES)
    return details("All indicators by task", content)


def _correlation_bounds(values: Sequence[float]) -> str:
    interval = mean_interval(values)
    return UNKNOWN if interval is None else " to ".join(decimal(v, 2, sign=True) for v in interval)


def _interval_note(found: CorrelationRecords) -> Markup:
    count = max(
        (of.n_targets for of in (found.excluding_in_task or found.including_in_task).values()),
        default=0,
    )
    few = " With so few tasks, the CIs are approximate."
    return element(
        "p",
        f"95% CIs of the means: percentile bootstrap over {counted(count, 'task')}, widened for few"
        " tasks. Two indicators are compared by the CI of their per-task difference, which can be"
        " much narrower." + (few if count < 20 else ""),
        class_="meta",
    )


def _row0_table(found: CorrelationRecords) -> Markup | None:
    """Compare with indicators that include row 0, which the paper's RoBERTa prompts have."""
    parts = {_EXCLUDING: found.excluding_in_task, _INCLUDING: found.including_in_task}
    parts = {which: part for which, part in parts.items() if part}
    first = next(iter(parts.values()))
    names = [name for name in first if f"{name}{WITH_ROW0}" in first]
    if not names:
        return None
    rows = [
        [indicator_label(name)]
        + [
            decimal(part[each].mean_over_targets, 2, sign=True) if each in part else UNKNOWN
            for part in parts.values()
            for each in (name, f"{name}{WITH_ROW0}")
        ]
        for name in names
    ]
    over = [("", 1), *((which, 2) for which in parts)]
    head = ["indicator", *["without row 0", "with row 0"] * len(parts)]
    caption = (
        "Mean rho over targets. Row 0 of these prompts is trained but never read by their model"
    )
    content = table(head, rows, caption, over=over, source=_CORRELATION_FILES)
    return details("With and without row 0", content)


def _scatter_figures(study: Study, ordering: Ordering) -> Markup | None:
    """One scatter plot per indicator; those beyond the paper's are collapsed."""
    columns = study.similarities.values if study.similarities else {}
    names = [n for n in (OVERLAP, *EMBEDDING) if n in columns]
    names += [n for n in shown_rankings(columns) if n not in names and n in MEANINGS]
    points = {name: _correlation_points(study, ordering, name) for name in names}
    points = {name: groups for name, groups in points.items() if groups}
    if not points:
        return None
    limits = _limits(np.concatenate([y for of in points.values() for _, y in of.values()]))
    panels = {
        name: _correlation_panel(study, name, groups, limits) for name, groups in points.items()
    }
    first = [panels[name] for name in panels if name in (OVERLAP, *EMBEDDING)]
    more = [panels[name] for name in panels if name not in (OVERLAP, *EMBEDDING)]
    caption = (
        "Each point is a pair of a task and another task's prompt: similarity of that prompt to"
        f" the in-task prompt (x), and zero-shot score{_ABOVE[study.measure]} relative to the"
        " in-task prompt (y). rho: rank correlation, mean over tasks; in-task pairs are excluded."
    )
    return join(
        [
            element("h3", "Indicators and transfer by pair"),
            element("p", caption, class_="meta"),
            element("div", *first, class_="panels"),
            details("Other indicators", element("div", *more, class_="panels")) if more else None,
        ]
    )


def _correlation_panel(
    study: Study,
    name: str,
    groups: Mapping[str, tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"]]],
    limits: tuple[float, float],
) -> Markup:
    found = study.correlations.excluding_in_task.get(name) if study.correlations else None
    n_pairs = sum(len(x) for x, _ in groups.values())
    label = f"{indicator_label(name)} and relative score of {counted(n_pairs, 'pair')}"
    plot = indicator_panel(groups, indicator_label(name), limits)
    meaning = MEANINGS.get(name, "")
    caption = f"{meaning[:1].upper()}{meaning[1:]}; {counted(n_pairs, 'pair')}"
    if found:
        caption += f", rho {decimal(found.mean_over_targets, 2, sign=True)}"
    files = ["indicators.csv", *study.files]
    svg = to_svg(plot, f"scatter-{name.replace('_', '-')}", label)
    return element(
        "div",
        element("h3", indicator_label(name)),
        figure(svg, label, f"{caption}.", [*files, *(_CORRELATION_FILES if found else ())]),
    )


def _limits(scores: Float64[np.ndarray, "M"]) -> tuple[float, float]:
    """Shared y limits of all panels, with a margin."""
    low, high = float(min(scores.min(), 0.95)), float(max(scores.max(), 1.05))
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _correlation_points(
    study: Study, ordering: Ordering, name: str
) -> dict[str, tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"]]]:
    """Indicator and relative score of all pairs, grouped by same or other type."""
    assert study.similarities is not None
    index = {prompt: i for i, prompt in enumerate(study.similarities.names)}
    values = study.similarities.values[name]
    kinds = {True: "same type", False: "other type", None: "unknown type"}
    groups: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds.values()}
    for pair in transfer_pairs(study, ordering, study.measure):
        in_task = ordering.in_task.get(pair.target, "")
        if in_task in index and pair.source in index:
            value = float(values[index[in_task], index[pair.source]])
            if np.isfinite(value):
                groups[kinds[pair.same_type]].append((value, pair.score))
    found = {kind: np.array(points).T for kind, points in groups.items() if points}
    return {kind: (x, y) for kind, (x, y) in found.items()}


def _window_figure(found: CorrelationRecords) -> Markup | None:
    without, including = found.excluding_in_task, found.including_in_task
    layers = windows(without or including)
    if len(layers) < 2:
        return None
    lines = {
        label: [part[n].mean_over_targets if n in part else np.nan for n in layers]
        for label, part in ((_EXCLUDING, without), ("including", including))
        if part
    }
    label = "Rank correlation of neuron overlap with transfer by layer window"
    first = without or including
    known = [[v for v in first[n].per_target.values() if np.isfinite(v)] for n in layers]
    bands = [mean_interval(values) or (np.nan, np.nan) for values in known]
    caption = "Rank correlation of ON with transfer, mean over tasks, for each window of three"
    caption += f" consecutive layers; band: 95% CI{f', {_EXCLUDING}' if without else ''}."
    plot = window_curve(list(layers.values()), lines, bands)
    return figure(to_svg(plot, "window-curve", label), label, caption, _CORRELATION_FILES)


# --- Similarity of prompts

_INDICATORS_FILES = ("indicators.csv",)
_WHOLE_COSINE = "cosine_concat"  # the embedding indicator with self-similarity 1: can be mapped


def overlap_section(study: Study, ordering: Ordering) -> Markup:
    """Return the section on the overlap of activated neurons."""
    title = "Overlap of activated neurons"
    make = commands(study.folder)
    parts: list[Markup | None] = [
        element(
            "p",
            "Each prompt is fed to the model without any text; a feed-forward neuron is activated"
            " if its value is above 0. ON is the cosine similarity of two binary activation"
            " patterns: 1 for identical patterns, 0 for no neuron in common.",
        )
    ]
    if study.neurons is None:
        parts.append(missing("neurons.npz is missing", make["neurons"]))
    if study.similarities is None:
        parts.append(missing("indicators.csv is missing", make["indicators"]))
    elif OVERLAP not in study.similarities.values:
        parts.append(missing("indicators.csv has no column neuron_overlap", make["indicators"]))
    else:
        parts.append(_similarity_map(study, ordering, OVERLAP, 900, _layer_caption(study)))
        parts.append(_similarity_table(study, ordering, OVERLAP))
        parts.append(_plane(study, ordering, OVERLAP))
    return section("overlap", title, *parts)


def embedding_section(study: Study, ordering: Ordering) -> Markup:
    """Return the section on the embedding indicators."""
    title = "Similarity of prompt embeddings"
    lead = element(
        "p",
        "The paper's four embedding indicators compare the vectors of two prompts. Pairs of a"
        " prompt with itself are gray and not part of the color scale.",
    )
    if study.similarities is None:
        make = commands(study.folder)["indicators"]
        return section("embeddings", title, lead, missing("indicators.csv is missing", make))
    shown = [name for name in EMBEDDING if name in study.similarities.values]
    maps = [
        element(
            "div",
            element("h3", EMBEDDING[name]),
            _similarity_map(study, ordering, name, 540, f"{EMBEDDING[name]}: {MEANINGS[name]}."),
            _similarity_table(study, ordering, name),
        )
        for name in shown
    ]
    plane = None
    if OVERLAP not in study.similarities.values and _WHOLE_COSINE in shown:
        plane = _plane(study, ordering, _WHOLE_COSINE)
    return section("embeddings", title, lead, element("div", *maps, class_="pair"), plane)


def _layer_caption(study: Study) -> str:
    """Name the layers of ON: those of the window with equal values."""
    assert study.similarities is not None
    values = study.similarities.values
    for name, (first, last) in windows(values).items():
        if np.array_equal(values[name], values[OVERLAP], equal_nan=True):
            total = f" of {study.neurons[1]}" if study.neurons else ""
            return f"ON over layers {first} to {last}{total} (layer 0 is next to the input)."
    return "ON over the layers passed to jpt indicators."


def _similarity_map(
    study: Study, ordering: Ordering, name: str, width_px: float, caption: str
) -> Markup:
    values = _ordered(study, ordering, name)
    np.fill_diagonal(values, np.nan)
    types = [ordering.prompt_types[prompt] for prompt in ordering.prompts]
    digits = 2 if name == OVERLAP else 3
    plot = heat_map(
        HeatMap(
            rows=ordering.prompts,
            columns=ordering.prompts,
            row_types=types,
            column_types=types,
            values=values,
            texts=[[_similarity_text(value, digits) for value in line] for line in values],
            scale_label=indicator_label(name),
            width_px=width_px,
            row_axis="prompt",
            column_axis="prompt",
        ),
        percent=False,
    )
    count = counted(len(ordering.prompts), "prompt")
    label = (
        f"Heat map of {indicator_label(name)} for all pairs of {count}; values in the table below."
    )
    anchor = f"map-{name.replace('_', '-')}"
    svg = stick_rows(to_svg(plot, anchor, label), anchor)
    return figure(svg, label, caption, _INDICATORS_FILES)


def _similarity_text(value: float, digits: int) -> str:
    """Format without the leading zero; empty for a gray cell."""
    if not np.isfinite(value):
        return ""
    return decimal(value, digits).replace("0.", ".", 1) if abs(value) < 1 else decimal(value, 1)


def _ordered(study: Study, ordering: Ordering, name: str) -> np.ndarray:
    assert study.similarities is not None
    order = [study.similarities.names.index(prompt) for prompt in ordering.prompts]
    return study.similarities.values[name][np.ix_(order, order)].copy()


def _similarity_table(study: Study, ordering: Ordering, name: str) -> Markup:
    values = _ordered(study, ordering, name)
    rows = [
        [prompt, *(significant(value) for value in line)]
        for prompt, line in zip(ordering.prompts, values, strict=True)
    ]
    label = indicator_label(name)
    caption = f"{label} of all pairs of prompts"
    content = table(["prompt", *ordering.prompts], rows, caption, source=_INDICATORS_FILES)
    return details(f"{label} as a table", content)


def _plane(study: Study, ordering: Ordering, name: str) -> Markup | None:
    """Map the prompts to points in the plane by classical multidimensional scaling."""
    similarity = _ordered(study, ordering, name)
    # Drops untrained prompts and those that activate no neuron, whose similarity is undefined.
    trained = [ordering.prompt_types[prompt] != BASELINE for prompt in ordering.prompts]
    kept = np.isfinite(np.diag(similarity)) & np.array(trained, bool)
    similarity = similarity[np.ix_(kept, kept)]
    if len(similarity) < 3 or not np.isfinite(similarity).all():
        return None
    distances = 1 - (similarity + similarity.T) / 2
    np.fill_diagonal(distances, 0)
    points, share = scale_to_plane(distances)
    names = [prompt for prompt, is_kept in zip(ordering.prompts, kept, strict=True) if is_kept]
    types = [ordering.prompt_types[prompt] for prompt in names]
    indicator = indicator_label(name)
    plot = prompt_map(points, names, types, (NO_TYPE,), f" (distance: 1 − {indicator})")
    label = f"Map of {counted(len(names), 'prompt')} by 1 − {indicator}; values in the table above."
    caption = (
        f"Classical multidimensional scaling of 1 − {indicator}; the axes are arbitrary."
        f" The plane explains {percent(share)} of the squared distances"
        + ("." if share > 0.7 else ", so neighbors are not necessarily similar.")
    )
    return figure(to_svg(plot, "prompt-map", label), label, caption, _INDICATORS_FILES)


# --- Neuron masking

_MASK_HEADS = {
    "in_task": "in-task",
    "random": "random",
    "other": "other tasks'",
    "common": "common",
    "specific": "task-specific",
}
_MASK_MEANINGS = {
    "in_task": "most active under the in-task prompt",
    "random": "the same number of random neurons in each layer",
    "other": "most active under the prompts of other tasks",
    "common": "activated by the most prompts",
    "specific": "activated by the in-task prompt and by the fewest others",
}


def mask_section(study: Study, found: Sequence[Finding]) -> Markup:
    """Return the section on neuron masking."""
    title = "Neuron masking"
    masks = study.masks
    if masks is None or not masks.tasks:
        what = "mask.json is missing: no neurons were masked"
        return section("masks", title, missing(what, commands(study.folder)["mask"]))
    items = [finding_item(each) for each in found if each.topic == "masks"]
    lead = element("p", _mask_lead(masks))
    return section(
        "masks",
        title,
        element("ul", *items, class_="findings") if items else None,
        lead,
        _masks_figure(study, masks),
        *_type_parts(masks),
        _mask_score_table(masks),
    )


def kind_label(kind: str) -> str:
    """Return the display name of a kind of mask."""
    return _MASK_HEADS.get(kind, kind)


def _mask_lead(masks: MaskRecord) -> str:
    first, last = masks.layers
    layers = f"layer {first}" if first == last else f"layers {first} to {last}"
    split = f" on {masks.split}" if masks.split else ""
    kinds = "; ".join(
        f"{kind_label(kind)}: {_MASK_MEANINGS.get(kind, kind)}" for kind in masks.kinds
    )
    return (
        f"{masks.masked:,} of the {masks.neurons:,} neurons in {layers} are masked (set to 0) while"
        f" each task is evaluated with its in-task prompt{split}. Kinds of masks: {kinds}."
    )


def _masks_figure(study: Study, masks: MaskRecord) -> Markup | None:
    known = [t for t in masks.tasks.values() if t.unmasked > 0]
    if not known or not all(np.isfinite([*t.scores.values()]).all() for t in known):
        return None
    shares = [task.performance["relative"] for task in known]
    means = "; ".join(
        f"{kind_label(kind)} {percent(float(np.mean([of[kind] for of in shares])))}"
        for kind in masks.kinds
        if all(kind in of for of in shares)
    )
    label = f"Score relative to no mask, by kind of mask: {means}."
    caption = (
        f"Bars: means over {counted(len(known), 'task')}; points: single scores; dashed: chance"
        " level."
    )
    plot = plot_shares(read_shares(study.folder / MASK_RECORD))
    plot.axes[0].set_title("", loc="left")
    return figure(to_svg(plot, "mask-shares", label), label, caption, [MASK_RECORD])


def _type_parts(masks: MaskRecord) -> list[Markup]:
    parts: list[Markup] = []
    head = ["type", *map(kind_label, masks.kinds)]
    for measure, means in masks.by_type.items():
        rows = [
            [name, *(percent(of.get(kind, np.nan)) for kind in masks.kinds)]
            for name, of in means.items()
        ]
        caption = f"Score{_ABOVE[measure]} relative to no mask, by task type and kind of mask"
        parts.append(table(head, rows, caption, source=[MASK_RECORD]))
    known = {name: of for name, of in masks.other_types.items() if np.isfinite(of).all()}
    for measure, (same, other) in list(known.items())[:1]:
        text = (
            f"Masking the neurons of another task's prompt leaves {percent(same)} of the"
            f" score{_ABOVE[measure]} if that task has the same type and {percent(other)} if not."
        )
        parts.append(element("p", text, class_="meta"))
    return parts


def _mask_score_table(masks: MaskRecord) -> Markup:
    kinds = masks.kinds
    rows: list[list[Child]] = [
        [
            name,
            task.type or UNKNOWN,
            decimal(task.unmasked, 3),
            *(decimal(task.scores.get(kind, np.nan), 3) for kind in kinds),
            decimal(task.chance, 3),
        ]
        for name, task in masks.tasks.items()
    ]
    head = ["task", "type", "no mask", *map(kind_label, kinds), "chance"]
    metrics = ", ".join(dict.fromkeys(task.metric for task in masks.tasks.values()))
    caption = f"Score ({metrics}) by kind of mask"
    return table(head, rows, caption, numbers_from=2, source=[MASK_RECORD])


# --- Methods and provenance

_TRAINING_METHOD = (
    "The model is frozen; only the prompt is trained. The checkpoint with the best validation score"
    " is used."
)

STUDY_FILES = (
    "transfer.csv",
    "relative.csv",
    "above_chance.csv",
    ERRORS,
    "transfer.json",
    "neurons.npz",
    "indicators.csv",
    "correlation.json",
    "types.json",
    "choice.json",
    "mask.json",
)

# Config fields that are shown elsewhere or that always differ between tasks.
_HIDDEN = ("task", "template", "label_words", "label_ids", "data", "fingerprint")


def methods_text(study: Study) -> list[str]:
    """Describe how each part that the study has was computed."""
    texts = {
        _TRAINING_METHOD: study.prompts,
        "Zero-shot transfer: a prompt is used on another task without further training. The"
        " relative score is the score divided by that of the in-task prompt.": study.transfer,
        "Above chance: (score - chance) / (in-task score - chance), undefined where the in-task"
        " score is not more than two standard errors above chance. Chance is the score of the best"
        " constant prediction, and 0 for Matthews correlation and generated answers. Standard"
        " errors are over rows, bootstrapped for F1 and Matthews correlation.": study.has_chance,
        "A neuron is a unit of a feed-forward layer; its activation is read after the non-linearity"
        " with only the prompt as input, and it is activated if its value is above 0. ON is the"
        " cosine similarity of two binary activation patterns; E is 1 / (1 + Euclidean distance)"
        " and C the cosine similarity of two prompts, flattened (concat) or averaged over all pairs"
        " of prompt tokens (average).": study.similarities,
        "Correlations are Spearman's rho over the sources of each task, averaged over tasks; CIs"
        " are percentile bootstraps over tasks, widened for few tasks.": study.correlations,
        "Source selection is evaluated by leaving one task out at a time and comparing the source"
        " that an indicator ranks first with the best one.": (
            study.choices and study.choices.ranges
        ),
        "Masking sets the activations of the selected neurons to 0 in the forward pass, with the"
        " in-task prompt.": study.masks,
    }
    return [text for text, part in texts.items() if part]


def methods_list(texts: Iterable[str]) -> Markup | None:
    """List the methods, with the paper they follow."""
    items = [element("li", text) for text in texts]
    if not items:
        return None
    paper = (
        "Following Su et al., On Transferability of Prompt Tuning for Natural Language Processing,"
    )
    items.append(element("li", paper, " NAACL 2022 (arXiv 2111.06719)."))
    return element("ul", *items, class_="notes")


def definition_list(entries: Iterable[tuple[str, Child]]) -> Markup:
    """Return a definition list without its empty entries."""
    pairs = [(element("dt", name), element("dd", text)) for name, text in entries if text]
    return element("dl", *(part for pair in pairs for part in pair))


def version_items(
    versions: Mapping[str, str], machine: str | None, device: str | None, files: Iterable[Path]
) -> list[tuple[str, Child]]:
    """Return versions, machine, devices and dates."""
    return [
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("machine", machine),
        ("devices", device),
        ("results written", written_between(files)),
        ("page created by", f"jpt report, jpt {__version__}"),
    ]


def written_between(files: Iterable[Path]) -> str | None:
    """Return the range of the files' modification times."""
    times = sorted(file.stat().st_mtime for file in files if file.exists())
    if not times:
        return None
    ends = [f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M}" for t in (times[0], times[-1])]
    return " to ".join(dict.fromkeys(ends)) + " UTC"


def shared_settings(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, Child]]:
    """Return the settings that all runs share, and those that differ."""
    shared, differing = [], []
    for name in dict.fromkeys(name for run in configs for name in run if name not in _HIDDEN):
        values = {_setting_text(run.get(name)) for run in configs}
        if len(values) == 1:
            shared.append(f"{name} {values.pop()}")
        else:
            differing.append(f"{name} ({', '.join(sorted(values)[:6])})")
    return [
        ("shared settings", ", ".join(shared)),
        ("differing settings", ", ".join(differing)),
    ]


def _setting_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# --- Page of projected prompts

PROJECTION_TABLE, PROJECTION_RECORD = "projection.csv", "projection.json"
_PROJECTION_COMMAND = "jpt project evaluate"
# Baseline columns of the table, as the command names them.
IN_TASK, TUNED = "in_task", ("warm", "vanilla")
_PROJECTION_METHODS = (
    "A projector maps a prompt of the source model to one of the target model; both models are"
    " frozen. Projected prompts are evaluated on the target model without further training.",
    "in_task: the prompt tuned for the task on the target model. random: a randomly initialized"
    " prompt. untrained: projected by a randomly initialized projector. least_squares: projected by"
    " the matrix that best maps the embeddings of the tokens both models share. relative: each"
    " prompt token keeps its similarities to such tokens.",
)


def is_projection(folder: Path) -> bool:
    """Return whether a folder holds projection results and no transfer matrix."""
    complete = (folder / PROJECTION_RECORD).exists() and (folder / PROJECTION_TABLE).exists()
    return complete and not (folder / "transfer.csv").exists()


def projection_parts(folder: Path) -> tuple[str, list[str], list[Markup]]:
    """Build title, findings and sections of the page of projected prompts."""
    path = folder / PROJECTION_RECORD
    record = Fields(read_json(path), path, _PROJECTION_COMMAND)
    matrix = read_scores(folder / PROJECTION_TABLE)
    missing_targets = [t for t in matrix.targets if t not in record.fields("targets").value]
    if missing_targets:
        raise InputError(
            f"{path}: no entry for target {missing_targets[0]} of {PROJECTION_TABLE}; regenerate it"
            f" with {_PROJECTION_COMMAND}"
        )
    trained = _trained_on(record, matrix)
    names = [record.text(f"{side}_backbone") or UNKNOWN for side in ("source", "target")]
    parts = [
        section("scores", "Scores of projected prompts", _projection_map(record, matrix, trained)),
        section("means", "Mean scores by method", _projection_means(matrix, trained)),
        _projection_methods(folder, record),
    ]
    return (
        f"Prompts of {names[0]} projected to {names[1]}",
        _projection_findings(record, matrix, trained),
        parts,
    )


def _trained_on(record: Fields, matrix: TransferMatrix) -> dict[str, Bool[np.ndarray, "N"]]:
    """Return the mask of its training tasks for each trained projector."""
    trained = record.fields("trained_on")
    return {
        name: np.array([target in trained.texts(name) for target in matrix.targets])
        for name in trained.value
        if name in matrix.prompts
    }


def _mean(matrix: TransferMatrix, name: str, rows: Bool[np.ndarray, "N"]) -> float:
    """Return the mean score of a column over the selected tasks, or NaN."""
    if name not in matrix.prompts:
        return np.nan
    values = matrix.values[rows, matrix.prompts.index(name)]
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def _projection_findings(
    record: Fields, matrix: TransferMatrix, trained: dict[str, Bool[np.ndarray, "N"]]
) -> list[str]:
    found = []
    for name, rows in trained.items():
        parts = []
        for chosen, which in ((rows, "training"), (~rows, "unseen")):
            count = int(chosen.sum())
            if count:
                score = percent(_mean(matrix, name, chosen), 1)
                tasks = counted(count, f"{which} task")
                parts.append(f"{score} on {tasks}{_baseline_text(matrix, chosen)}")
        found.append(f"Prompts projected by “{name}” reach {' and '.join(parts)}.")
    start, steps, every = record.text("warm_start"), record.count("warm_steps"), _all(matrix)
    if start and all(name in matrix.prompts for name in TUNED):
        ends = [percent(_mean(matrix, name, every), 1) for name in TUNED]
        found.append(
            f"After {steps} training steps the score is {ends[0]} from prompts projected by"
            f" “{start}” and {ends[1]} from random initialization (mean over"
            f" {counted(len(every), 'task')})."
        )
    return found


def _baseline_text(matrix: TransferMatrix, rows: Bool[np.ndarray, "N"]) -> str:
    means = {"in-task": _mean(matrix, IN_TASK, rows), "random": _mean(matrix, RANDOM, rows)}
    known = [f"{name} {percent(mean, 1)}" for name, mean in means.items() if np.isfinite(mean)]
    return f" ({', '.join(known)})" if known else ""


def _all(matrix: TransferMatrix) -> Bool[np.ndarray, "N"]:
    return np.ones(len(matrix.targets), bool)


def _method_group(name: str, trained: dict[str, Bool[np.ndarray, "N"]]) -> str:
    if name in trained:
        return "projected"
    if name in TUNED:
        return "tuned"
    return "target model" if name in (IN_TASK, RANDOM) else "no training"


def _projection_map(
    record: Fields, matrix: TransferMatrix, trained: dict[str, Bool[np.ndarray, "N"]]
) -> Markup:
    framed = {
        (row, matrix.prompts.index(name))
        for name, rows in trained.items()
        for row in np.flatnonzero(rows).tolist()
    }
    texts = [
        [_score_text(value) + AT_CHANCE * int(mark) for value, mark in zip(*line, strict=True)]
        for line in zip(matrix.values, at_chance(matrix), strict=True)
    ]
    levels = [] if matrix.chance is None else [list(map(_score_text, matrix.chance))]
    plot = heat_map(
        HeatMap(
            rows=matrix.targets,
            columns=matrix.prompts,
            row_types=[task_type(target) or "" for target in matrix.targets],
            column_types=[_method_group(name, trained) for name in matrix.prompts],
            values=matrix.values,
            texts=texts,
            scale_label="score",
            outlined=frozenset(framed),
            side_label=["chance"] * len(levels),
            side_texts=levels,
            row_axis="task",
            column_axis="prompt",
        ),
        percent=True,
    )
    sizes = (counted(len(matrix.targets), "task"), counted(len(matrix.prompts), "column"))
    label = f"Heat map of scores, {sizes[0]} by {sizes[1]}; means in the table below."
    metrics = ", ".join(dict.fromkeys(matrix.metrics))
    caption = f"Scores in percent ({metrics}). Framed: tasks that the projector was trained on."
    caption += _legend(texts)
    if set(TUNED) & set(matrix.prompts):
        steps, start = record.count("warm_steps"), record.text("warm_start")
        caption += f" warm: {steps} training steps from prompts projected by “{start}”; vanilla:"
        caption += " from random initialization."
    svg = stick_rows(to_svg(plot, "projection-map", label), "projection-map")
    return figure(svg, label, caption, [PROJECTION_TABLE, PROJECTION_RECORD])


def _projection_means(matrix: TransferMatrix, trained: dict[str, Bool[np.ndarray, "N"]]) -> Markup:
    rows: list[list[Child]] = []
    every = _all(matrix)
    for name in matrix.prompts:
        parts = (trained[name], ~trained[name]) if name in trained else (~every, ~every)
        means = [_mean(matrix, name, part) for part in (every, *parts)]
        rows.append([name, *(value_cell(percent(mean, 1), mean) for mean in means)])
    head = ["prompt", "all tasks", "training tasks", "unseen tasks"]
    return table(head, rows, "Mean score over tasks", source=[PROJECTION_TABLE, PROJECTION_RECORD])


def _projection_methods(folder: Path, record: Fields) -> Markup:
    versions = {name: str(value) for name, value in record.fields("versions").value.items()}
    projectors = record.fields("projectors").value
    entries: list[tuple[str, Child]] = [
        ("source", record.text("source_backbone")),
        ("target", record.text("target_backbone")),
        ("prompt tokens", str(record.count("length") or "")),
        ("scored rows", _scored_rows(record)),
        *((f"projector {name}", str(of)) for name, of in projectors.items()),
        ("seed", str(record.count("seed"))),
    ]
    files = [folder / PROJECTION_RECORD, folder / PROJECTION_TABLE]
    entries += version_items(versions, record.text("machine"), record.text("device"), files)
    listed: Sequence[Markup | None] = (
        element(
            "p", "Each projector has one seed; differences of a few points are not conclusive."
        ),
        methods_list(_PROJECTION_METHODS),
        definition_list(entries),
        sources(
            [PROJECTION_RECORD, *(["projected/"] if (folder / "projected").is_dir() else [])], "p"
        ),
    )
    return section("provenance", "Methods and versions", *listed)


def _scored_rows(record: Fields) -> str:
    rows = [
        f"{name} {each.count('rows')} of {each.text('split')}"
        for name, each in record.fields("targets").each()
    ]
    return ", ".join(rows)


# --- Training runs, provenance and notes of a study

_MAX_PANELS = 40


def training_section(study: Study, ordering: Ordering) -> Markup:
    """Return the section with learning curves and the list of prompts."""
    title = "Training of the prompts"
    records = ordered_prompts(study, ordering)
    if not records:
        note = missing("prompts/ is missing or empty", commands(study.folder)["tune"])
        return section("training", title, note)
    logged = [record for record in records if record.curve is not None]
    parts: list[Markup | None] = []
    if logged:
        parts.append(
            element(
                "p",
                "Top: validation score (blue), chance level (dashed) and the selected checkpoint"
                " (dot). Bottom: validation loss (orange) and training loss (gray).",
            )
        )
        panels = [
            _run_panel(index, record, ordering.prompt_types[record.name])
            for index, record in enumerate(logged[:_MAX_PANELS])
        ]
        parts.append(element("div", *panels, class_="panels"))
        if len(logged) > _MAX_PANELS:
            rest = counted(len(logged) - _MAX_PANELS, "run")
            parts.append(element("p", f"{rest} more, not plotted.", class_="meta"))
    else:
        parts.append(element("p", "No learning curves: the runs have no metrics.jsonl."))
    return section("training", title, *parts, _prompt_table(records, ordering))


def ordered_prompts(study: Study, ordering: Ordering) -> list[PromptRecord]:
    """Return the prompts in the order of the page."""
    return [study.prompts[name] for name in ordering.every if name in study.prompts]


def provenance_section(study: Study, ordering: Ordering) -> Markup:
    """Return the section on methods, settings and versions."""
    record = study.record
    written = [study.folder / name for name in STUDY_FILES]
    written += [study.folder / "prompts" / name / "result.json" for name in study.prompts]
    entries: list[tuple[str, Child]] = []
    if record is not None:
        random = ", ".join(f"{name} {value}" for name, value in record.random_start.items())
        entries += [
            ("backbone", record.backbone),
            ("scored rows", _row_counts(study)),
            ("untrained prompt", random or None),
            ("time to compute the matrix", duration(record.elapsed_s)),
            ("command", element("code", record.command) if record.command else None),
        ]
    if study.neurons is not None:
        n_prompts, n_layers, n_neurons = study.neurons
        sizes = (counted(n_prompts, "prompt"), counted(n_layers, "layer"))
        entries.append(("neurons", f"{', '.join(sizes)} of {counted(n_neurons, 'neuron')}"))
    entries += _run_settings(list(study.prompts.values()))
    versions = (record.versions, record.machine, record.device) if record else ({}, None, None)
    entries += version_items(*versions, written)
    note = None
    if record is None:
        note = missing(
            "transfer.json is missing: versions and device are unknown",
            commands(study.folder)["transfer"],
        )
    files = [name for name in ("transfer.json", "prompts/") if (study.folder / name).exists()]
    return section(
        "provenance",
        "Methods and versions",
        methods_list(methods_text(study)),
        note,
        definition_list(entries),
        sources(files, "p"),
        _row_table(study, ordering),
    )


def note_section(study: Study, ordering: Ordering) -> Markup:
    """Return the section with notes."""
    lines = notes(study, ordering)
    if not lines:
        return section("notes", "Notes", element("p", "No notes: nothing is missing or undefined."))
    items = [element("li", line) for line in lines]
    return section("notes", "Notes", element("ul", *items, class_="notes"))


def notes(study: Study, ordering: Ordering) -> list[str]:
    """Collect what is missing or undefined, and the notes of the commands."""
    lines = list(study.record.notes if study.record else ())
    lines += study.types.notes if study.types else ()
    lines += _matrix_notes(study, ordering, lines)
    if study.correlations is not None:
        # Without the notes of the command, which give reasons, list the gaps themselves.
        lines += study.correlations.notes or _undefined_notes(study.correlations)
    for part in (study.choices, study.masks):
        lines += part.notes if part else ()
    compared = set(study.similarities.names if study.similarities else ())
    transferred = set(ordering.sources)
    if compared and transferred:
        extra = compared - transferred - {study.random}
        lines += _mismatch("indicators.csv", transferred - compared, "transfer.csv")
        lines += _mismatch("transfer.csv", extra, "indicators.csv")
    unfinished = [record.name for record in study.prompts.values() if not record.finished]
    if unfinished:
        lines.append(f"Unfinished runs, not used elsewhere: {_names(unfinished)}.")
    without = [
        n for n, t in {**ordering.target_types, **ordering.prompt_types}.items() if t == NO_TYPE
    ]
    if without and not (study.types and study.types.notes):
        lines.append(f"Unknown task type, excluded from means by type: {_names(without)}.")
    return list(dict.fromkeys(lines))


def _matrix_notes(study: Study, ordering: Ordering, noted: Sequence[str]) -> list[str]:
    """List gaps of the matrix, except those in the notes of the command."""
    lines = []
    noted = [line for line in noted if "prompt" in line]
    lacking = [t for t in ordering.targets if t not in ordering.in_task]
    without = [t for t in lacking if not any(t in line for line in noted)]
    if without:
        lines.append(f"No in-task prompt, relative scores undefined: {_names(without)}.")
    if study.transfer is not None:
        lines += chance_notes(study.transfer, ordering.in_task)
        gaps = int(np.isnan(study.transfer.values).sum())
        if gaps:
            lines.append(f"Not measured: {counted(gaps, 'pair')} of task and prompt.")
    return lines


def _undefined_notes(found: CorrelationRecords) -> list[str]:
    """List undefined correlations."""
    lines = []
    for part, which in (
        (found.excluding_in_task, _EXCLUDING),
        (found.including_in_task, _INCLUDING),
    ):
        for name, each in part.items():
            undefined = [target for target, v in each.per_target.items() if np.isnan(v)]
            if undefined:
                lines.append(
                    f"Undefined correlation of {name} ({which}) for {_names(undefined)}: fewer than"
                    " three sources, or constant values or scores."
                )
    return lines


def _mismatch(lacks: str, names: set[str], has: str) -> list[str]:
    if not names:
        return []
    return [f"Prompts of {has} missing in {lacks}: {_names(sorted(names))}; regenerate both files."]


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _run_panel(index: int, record: PromptRecord, kind: str) -> Markup:
    assert record.curve is not None
    task = record.card.task if record.card else UNKNOWN
    about = kind if task == record.name else f"{task} · {kind}"
    metric, score = record.metric or "score", decimal(record.score, 3)
    plot = learning_curve(record.curve, metric, record.chance, record.best_step)
    label = f"Training of {record.name}: validation {metric} {score}"
    caption = f"{about}: validation {metric} {score} at step {_steps(record)}."
    files = [f"prompts/{record.name}/metrics.jsonl"]
    svg = to_svg(plot, f"curve-{index}", label)
    return element("div", element("h3", record.name), figure(svg, label, caption, files))


def _prompt_table(records: Sequence[PromptRecord], ordering: Ordering) -> Markup:
    rows = [
        [
            record.name,
            record.card.task if record.card else UNKNOWN,
            ordering.prompt_types.get(record.name, NO_TYPE),
            record.metric or UNKNOWN,
            decimal(record.score, 3),
            decimal(record.chance, 3),
            _steps(record),
            value_cell(duration(record.elapsed_s), record.elapsed_s),
        ]
        for record in records
    ]
    head = ["prompt", "task", "type", "metric", "score", "chance", "best step / steps", "time"]
    caption = "Prompts; scores on validation"
    return table(head, rows, caption, numbers_from=4, source=["prompts/"])


def _steps(record: PromptRecord) -> str:
    kept = UNKNOWN if record.best_step is None else f"{record.best_step:,}"
    return kept if record.steps is None else f"{kept} / {record.steps:,}"


def _row_counts(study: Study) -> str | None:
    assert study.record is not None
    rows = [target.rows for target in study.record.targets.values() if target.rows is not None]
    split = f" of {study.record.split}" if study.record.split else ""
    return f"{sum(rows):,}{split} per prompt, over {counted(len(rows), 'task')}"


def _row_table(study: Study, ordering: Ordering) -> Markup | None:
    if study.record is None or not study.record.targets:
        return None
    records = study.record.targets
    rows = [
        [
            name,
            records[name].task,
            ordering.target_types[name],
            records[name].split or study.record.split or UNKNOWN,
            records[name].in_task_prompt or UNKNOWN,
            UNKNOWN if records[name].rows is None else f"{records[name].rows:,}",
            decimal(records[name].majority, 4),
        ]
        for name in ordering.targets
        if name in records
    ]
    head = ["target", "task", "type", "split", "in-task prompt", "rows", "majority"]
    caption = "Target tasks and scored rows"
    content = table(head, rows, caption, numbers_from=5, source=["transfer.json"])
    return details("Scored rows by task", content)


def _run_settings(records: Sequence[PromptRecord]) -> list[tuple[str, Child]]:
    """Return the number of runs and their settings."""
    runs = [record for record in records if record.settings]
    if not runs:
        return []
    seconds = [record.elapsed_s for record in runs if np.isfinite(record.elapsed_s)]
    total = f"{len(runs)}, {duration(sum(seconds))} in total"
    return [("training runs", total), *shared_settings([record.settings for record in runs])]


# --- Page of a sweep

RUNS, SETTINGS, SWEEP_RECORD = "runs.csv", "settings.csv", "sweep.json"
_SWEEP_METHODS = (
    _TRAINING_METHOD,
    "A setting groups the runs that differ only in their seed; mean and standard deviation (n - 1)"
    " are over its seeds. The best setting of a task is selected on validation, not on test.",
)
_RUN_COLUMNS = ("run", "setting", "state", "task", "backbone", "seed")
_COLUMNS = ("setting", "task", "backbone", "metric", "seeds", "best", "validation")
_SWEEP_NUMBERS = ("validation", "validation_std", "test", "test_std")

Row = Mapping[str, str]


def is_sweep(folder: Path) -> bool:
    """Return whether a folder holds the tables of a sweep."""
    return (folder / RUNS).exists() and (folder / SETTINGS).exists()


def sweep_parts(folder: Path) -> tuple[str, list[str], list[Markup]]:
    """Build title, findings and sections of the page of a sweep."""
    runs = read_table(folder / RUNS, _RUN_COLUMNS)
    settings = read_table(folder / SETTINGS, _COLUMNS)
    for line, row in enumerate(settings, 2):
        for column in _SWEEP_NUMBERS:
            if row.get(column):
                read_number(folder / SETTINGS, line, row, column)
    for file, rows in ((RUNS, runs), (SETTINGS, settings)):
        _check_sweep_scores(folder / file, rows)
    by_task: dict[tuple[str, str], list[Row]] = {}
    for row in settings:
        by_task.setdefault((row["task"], row["backbone"]), []).append(row)
    title = f"Sweep of {len(runs)} runs"
    parts = [
        section(f"task-{number}", f"{task} on {backbone}", *_settings_parts(number, task, rows))
        for number, ((task, backbone), rows) in enumerate(by_task.items())
    ]
    parts += [_runs_section(runs), _sweep_methods(folder, runs)]
    return title, _sweep_findings(runs, by_task), parts


def _check_sweep_scores(path: Path, rows: Sequence[Row]) -> None:
    """Raise InputError if a score is out of the range of its metric."""
    for line, row in enumerate(rows, 2):
        for split in ("validation", "test"):
            if row.get(split) and row.get("metric"):
                value = read_number(path, line, row, split)
                check_score(f"{path}, line {line}", row["metric"], value, "run jpt sweep again")


def _sweep_findings(
    runs: Sequence[Row], by_task: Mapping[tuple[str, str], Sequence[Row]]
) -> list[str]:
    found = []
    for (task, backbone), rows in by_task.items():
        best = next(row for row in rows if row["best"] == "True")
        text = f"{task} on {backbone}: validation {best['metric']} {_spread(best, 'validation')}"
        text += f" (test {_spread(best, 'test')})" if best.get("test") else ""
        found.append(f"{text} with {best['setting']}, the best of {counted(len(rows), 'setting')}.")
    waiting = [row for row in runs if row["state"] != "done"]
    if waiting:
        states = sorted({row["state"] for row in waiting})
        found.append(f"{len(waiting)} of {len(runs)} runs are not included ({', '.join(states)}).")
    return found


def _spread(row: Row, split: str) -> str:
    mean, deviation = (_number(row, name) for name in (split, f"{split}_std"))
    return f"{mean:.3f}" + ("" if math.isnan(deviation) else f" ± {deviation:.3f}")


def _number(row: Row, name: str) -> float:
    text = row.get(name, "")
    return float(text) if text else math.nan


def _settings_parts(number: int, task: str, rows: Sequence[Row]) -> list[Markup]:
    ordered = sorted(rows, key=lambda row: -_number(row, "validation"))
    label = f"Validation score by setting for {task}"
    svg = to_svg(plot_settings(ordered), f"sweep-{number}", label)
    caption = "Mean validation score, best setting first (blue); bars: plus or minus one standard"
    caption += " deviation over seeds."
    cells: list[list[Child]] = [
        [
            row["setting"],
            row["seeds"],
            bar_cell(_spread(row, "validation"), _number(row, "validation"), row is ordered[0]),
            _spread(row, "test") if row.get("test") else "",
        ]
        for row in ordered
    ]
    head = ["setting", "seeds", f"validation {rows[0]['metric']}", "test"]
    content = table(head, cells, f"Settings for {task}", source=[SETTINGS])
    return [figure(svg, label, caption, [SETTINGS]), content]


def plot_settings(rows: Sequence[Row]) -> Figure:
    """Plot the mean of each setting with its standard deviation over seeds."""
    plot, axes = new_figure(560, 46 + 26 * len(rows))
    for y, row in enumerate(rows):
        mean, deviation = _number(row, "validation"), _number(row, "validation_std")
        color = BLUE if y == 0 else GRAY
        if not math.isnan(deviation):
            axes.hlines(y, mean - deviation, mean + deviation, color=color, linewidth=2)
        axes.scatter([mean], [y], s=40, color=color, zorder=3)
    names = [plain(row["setting"].partition("+")[2] or row["setting"], 40) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=FONT)
    axes.grid(axis="x", color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    metric = plain(rows[0].get("metric") or "score")
    axes.set_xlabel(f"validation {metric}", color=MUTED, fontsize=FONT, parse_math=False)
    axes.set_ylabel("setting", color=MUTED, fontsize=FONT)
    return plot


def _runs_section(runs: Sequence[Row]) -> Markup:
    columns = [name for name in runs[0] if name not in ("setting", "backbone")]
    rows = [[_short(row[name]) for name in columns] for row in runs]
    content = table(columns, rows, "All runs", source=[RUNS])
    return section("runs", "All runs", details(counted(len(runs), "run"), content))


def _sweep_methods(folder: Path, runs: Sequence[Row]) -> Markup:
    record = read_fields(folder / SWEEP_RECORD, "jpt sweep") or Fields(
        {}, folder / SWEEP_RECORD, "jpt sweep"
    )
    configs = [f"runs/{row['run']}/config.json" for row in runs]
    read = [read_fields(folder / config, "jpt sweep") for config in configs]
    versions = {name: str(v) for name, v in record.fields("versions").value.items()}
    files = [folder / name for name in (RUNS, SETTINGS)]
    entries = shared_settings([config.value for config in read if config is not None])
    entries += version_items(versions, record.text("machine"), record.text("device"), files)
    named = [name for name in (SWEEP_RECORD, "runs/") if (folder / name).exists()]
    parts = (methods_list(_SWEEP_METHODS), definition_list(entries), sources(named, "p"))
    return section("provenance", "Methods and versions", *parts)


def _short(text: str) -> str:
    """Round numbers to three decimals."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if text.lstrip("-").isdigit() or len(text) < 6 else f"{value:.3f}"


def sweep_header(title: str, findings: Sequence[str]) -> Markup:
    """Return the header with title and findings."""
    items = [element("li", text) for text in findings]
    return element("header", element("h1", title), element("ul", *items, class_="findings"))


# --- Zero-shot transfer and task types


def transfer_section(study: Study, ordering: Ordering) -> Markup:
    """Return the section with the zero-shot matrix."""
    title = "Zero-shot transfer"
    if study.transfer is None:
        note = missing(
            "transfer.csv is missing: no prompt was evaluated on another task",
            commands(study.folder)["transfer"],
        )
        return section("transfer", title, note)
    lead = element(
        "p",
        "Each prompt is evaluated on each task without further training. Numbers are scores in"
        " percent",
        _metrics(study),
        "; colors show the score relative to the task's in-task prompt, as in the paper."
        if study.measure
        else ". No target has an in-task prompt with a score above 0, so colors show the scores.",
    )
    parts: list[Markup] = [
        lead,
        _matrix_figure(study, ordering),
        _transfer_score_table(study, ordering),
        *(_relative_table(study, ordering, name) for name in MEASURES if name in study.performance),
    ]
    return section("transfer", title, *parts)


def type_section(study: Study, ordering: Ordering, found: Sequence[Finding]) -> Markup:
    """Return the section on means within and across task types."""
    items = [finding_item(each) for each in found if each.topic in ("types", "overlap")]
    parts: list[Markup | None] = [element("ul", *items, class_="findings") if items else None]
    strip = _strip_figure(study, ordering)
    tables: list[Markup] = []
    if study.types is not None:
        tables = _type_tables(study.types, _type_order(ordering))
    else:
        parts.append(
            missing(
                "types.json is missing: no means by task type",
                commands(study.folder)["indicators"],
            )
        )
    parts.append(element("div", strip, element("div", *tables), class_="columns"))
    return section("types", "Transfer and similarity by task type", *parts)


def _score_texts(
    study: Study, ordering: Ordering, text: Callable[[float], str]
) -> tuple[list[str], list[list[str]]]:
    """Name the columns next to the matrix, and format the scores of the sources and of these."""
    matrix, baselines = study.transfer, _baselines(study)
    assert matrix is not None
    marked = replace(matrix, values=at_chance(matrix).astype(np.float64))
    levels = {} if matrix.chance is None else dict(zip(matrix.targets, matrix.chance, strict=True))
    lines = []
    for target in ordering.targets:
        names = [*ordering.sources, *baselines.values(), ordering.in_task.get(target, "")]
        scores, marks = (values_at(of, [target], names)[0] for of in (matrix, marked))
        texts = [text(s) + AT_CHANCE * int(m == 1) for s, m in zip(scores, marks, strict=True)]
        lines.append([*texts, text(levels.get(target, np.nan))])
    return [*baselines, "in-task prompt", "chance"], lines


def _baselines(study: Study) -> dict[str, str]:
    """Map the label of each baseline to its column."""
    found = {BASELINE: study.random}
    if study.transfer is not None and study.untouched in study.transfer.prompts:
        found[NO_PROMPT] = study.untouched
    return found


def _metrics(study: Study) -> str:
    assert study.transfer is not None
    names = list(dict.fromkeys(study.transfer.metrics))
    return f" ({', '.join(names)})"


def _matrix_figure(study: Study, ordering: Ordering) -> Markup:
    n_sources = len(ordering.sources)
    labels, lines = _score_texts(study, ordering, _score_text)
    sides = dict(zip(labels, [*zip(*lines, strict=True)][n_sources:], strict=True))
    sides = {name: texts for name, texts in sides.items() if set(texts) != {UNKNOWN}}
    shown = study.performance.get("relative", study.transfer)
    colors = values_at(shown, ordering.targets, ordering.sources)
    columns = [_baselines(study).get(label, "") for label in sides]
    plot = heat_map(
        HeatMap(
            rows=ordering.targets,
            columns=ordering.sources,
            row_types=[ordering.target_types[name] for name in ordering.targets],
            column_types=[ordering.prompt_types[name] for name in ordering.sources],
            values=colors,
            texts=[line[:n_sources] for line in lines],
            scale_label="score relative to the in-task prompt" if study.measure else "score",
            outlined=_in_task_cells(ordering),
            side_label=list(sides),
            side_texts=list(sides.values()),
            side_values=values_at(shown, ordering.targets, columns).T if sides else None,
            row_axis="target task",
            column_axis="source prompt",
        ),
        percent=True,
    )
    label = (
        f"Heat map of {counted(len(ordering.targets), 'target task')} by"
        f" {counted(len(ordering.sources), 'source prompt')}; values in the table below."
    )
    caption = "Rows: target tasks; columns: source prompts; both grouped by task type."
    caption += " Framed: in-task prompts." if ordering.in_task else ""
    for name, meaning in (
        (BASELINE, f"a random prompt without training ({study.random} in the tables)"),
        (NO_PROMPT, "the model without a prompt"),
        ("in-task prompt", "the reference of relative scores"),
        ("chance", "the score of the best constant prediction"),
    ):
        caption += f" {name.capitalize()}: {meaning}." if name in sides else ""
    caption += _legend(lines)
    caption += " Gray: not measured, or no in-task prompt." if np.isnan(colors).any() else ""
    svg = stick_rows(to_svg(plot, "transfer-map", label), "transfer-map")
    return figure(svg, label, caption, study.files)


def _in_task_cells(ordering: Ordering) -> frozenset[tuple[int, int]]:
    column = {name: index for index, name in enumerate(ordering.sources)}
    pairs = ((i, ordering.in_task.get(target)) for i, target in enumerate(ordering.targets))
    return frozenset((i, column[in_task]) for i, in_task in pairs if in_task in column)


def _score_text(value: float) -> str:
    return decimal(100 * value, 1)


def _legend(texts: Iterable[Iterable[str]]) -> str:
    marked = any(text.endswith(AT_CHANCE) for line in texts for text in line)
    return f" {AT_CHANCE}: {AT_CHANCE_MEANING}." if marked else ""


def _transfer_score_table(study: Study, ordering: Ordering) -> Markup:
    assert study.transfer is not None
    metric = dict(zip(study.transfer.targets, study.transfer.metrics, strict=True))
    labels, lines = _score_texts(study, ordering, lambda value: decimal(value, 4))
    rows = [
        [target, ordering.target_types[target], metric[target], *line]
        for target, line in zip(ordering.targets, lines, strict=True)
    ]
    names = [study.random if label == BASELINE else label for label in labels]
    head = ["target", "type", "metric", *ordering.sources, *names]
    files = [*study.files, *([ERRORS] if (study.folder / ERRORS).exists() else [])]
    content = table(head, rows, "Score of each prompt on each task", numbers_from=3, source=files)
    legend = _legend(lines)
    return details(
        "Scores as a table", content, element("p", legend, class_="meta") if legend else None
    )


def _relative_table(study: Study, ordering: Ordering, measure: str) -> Markup:
    baselines = _baselines(study)
    columns = (*ordering.sources, *baselines.values())
    heads = [*ordering.sources, *(study.random if n == BASELINE else n for n in baselines)]
    values = values_at(study.performance[measure], ordering.targets, columns)
    rows = [
        [target, *(decimal(value, 4) for value in line)]
        for target, line in zip(ordering.targets, values, strict=True)
    ]
    caption = f"Score of each prompt{_ABOVE[measure]} relative to the in-task prompt"
    content = table(["target", *heads], rows, caption, source=study.files)
    return details(f"Relative scores{_ABOVE[measure]} as a table", content)


def _strip_figure(study: Study, ordering: Ordering) -> Markup | None:
    groups = _pair_groups(study, ordering, study.measure)
    if not groups["same type"] and not groups["other type"]:
        return None
    above, means = _ABOVE[study.measure], _group_means(groups)
    label = f"Relative scores{above} of all pairs, by type. Means: {means}."
    caption = (
        f"Each point is a pair of task and prompt{above}; in-task pairs are excluded."
        f" Lines: means ({means})."
    )
    if above:
        as_paper = _group_means(_pair_groups(study, ordering, "relative"))
        caption += f" Means with chance, as in the paper: {as_paper}."
    plot = strips(groups, f"score{above} relative to in-task prompt", "type of the source task")
    return figure(to_svg(plot, "type-strips", label), label, caption, study.files)


def _pair_groups(study: Study, ordering: Ordering, measure: str | None) -> dict[str, list[float]]:
    """Return the relative scores of pairs by same or other type, and of the untrained prompt."""
    pairs = transfer_pairs(study, ordering, measure)
    return {
        "same type": [pair.score for pair in pairs if pair.same_type],
        "other type": [pair.score for pair in pairs if pair.same_type is False],
        BASELINE: random_scores(study, ordering, measure),
    }


def _group_means(groups: Mapping[str, Sequence[float]]) -> str:
    return "; ".join(
        f"{name} {percent(float(np.mean(values)))} over {counted(len(values), 'pair')}"
        for name, values in groups.items()
        if values
    )


def _type_order(ordering: Ordering) -> list[str]:
    kinds = [ordering.target_types[name] for name in ordering.targets]
    return list(dict.fromkeys([*kinds, *(ordering.prompt_types[name] for name in ordering.every)]))


def _type_tables(types: TaskTypeRecord, order: Sequence[str]) -> list[Markup]:
    parts = []
    for measure, means in types.by_type.items():
        known = {name for line in means.values() for name in line}
        sources = [name for name in order if name in known]
        rows = [
            [target, *(percent(means[target].get(s, np.nan)) for s in sources)]
            for target in order
            if target in means
        ]
        caption = f"Mean relative score{_ABOVE[measure]} by target type (rows) and source type,"
        caption += " excluding in-task pairs"
        parts.append(table(["target", *sources], rows, caption, source=["types.json"]))
    if types.similarity:
        seeds = any(np.isfinite(means.seeds) for means in types.similarity.values())
        rows = [
            [
                indicator_label(name),
                *([significant(means.seeds)] if seeds else []),
                significant(means.same),
                significant(means.different),
                str(means.n_same if means.n_same is not None else UNKNOWN),
                str(means.n_different if means.n_different is not None else UNKNOWN),
            ]
            for name, means in types.similarity.items()
        ]
        head = ["indicator", *(["other seed"] if seeds else []), "same type", "different types"]
        head += ["n same", "n different"]
        files = ["types.json"]
        every = table(head, rows, "Mean similarity of prompt pairs, all indicators", source=files)
        shown = [row for row in rows if "layers" not in row[0] and "row 0" not in row[0]]
        parts.append(element("h3", "Similarity of prompts"))
        caption = "Mean similarity of prompt pairs by task type"
        parts.append(table(head, shown, caption, source=files))
        if len(shown) < len(rows):
            parts.append(details("All indicators", every))
    return [join(parts)]


# --- Page of a warm-start study

WARM_START_TABLE = "curves.csv"
_WARM_START_COMMAND = "jpt warm-start"
_SPEEDS = ("convergence_speed_up", "comparable_speed_up")


def is_warm_start(folder: Path) -> bool:
    """Return whether a folder holds a warm-start study and no transfer matrix."""
    return (folder / WARM_START_RECORD).exists() and not (folder / "transfer.csv").exists()


def warm_start_parts(folder: Path) -> tuple[str, list[str], list[Markup]]:
    """Build title, findings and sections of the page of a warm-start study."""
    path = folder / WARM_START_RECORD
    record = Fields(read_json(path), path, _WARM_START_COMMAND)
    curves = read_curves(record, path)
    title = f"Warm start of {record.text('task')} on {record.text('backbone')}"
    parts = [
        section("curves", "Learning curves", _warm_start_figure(record, curves)),
        section("speed", "Speed-up and gain", _scores(record), _speeds(record)),
        _warm_start_methods(folder, record),
    ]
    return title, _warm_start_findings(record), parts


def _warm_start_findings(record: Fields) -> list[str]:
    found = []
    for name, compared in record.fields("comparisons").each():
        speeds = [compared.fields(kind).number("mean") for kind in _SPEEDS]
        gain = compared.fields("gain")
        ci = _warm_start_bounds(gain, 100)
        metric, change = record.text("metric"), points(gain.number("mean"), sign=True)
        text = f"Compared with random initialization, a warm start from {name} changes the final"
        text += f" {metric} by {change} points" + ("" if ci == UNKNOWN else f" (95% CI {ci})")
        if math.isfinite(speeds[0]):
            text += f", converges in {_times(speeds[0])},"
        if math.isfinite(speeds[1]):
            text += f" and reaches the best score of random initialization in {_times(speeds[1])}"
        else:
            text += " and never reaches the best score of random initialization"
        found.append(f"{text}.")
    return found


def _times(speed_up: float) -> str:
    return f"{percent(1 / speed_up)} of the steps" if speed_up > 0 else "an unknown number of steps"


def _warm_start_figure(record: Fields, curves: Curves) -> Markup:
    metric = record.text("metric") or "score"
    plot = plot_curves(curves, "", metric, "")
    plot.axes[0].set_title("", loc="left")
    seeds = max(len(values) for _, values in curves.values())
    ends = "; ".join(f"{name} {float(v.mean(0).max()):.3f}" for name, (_, v) in curves.items())
    label = f"Validation {metric} over training; best means: {ends}."
    caption = f"Random initialization: gray circles. Lines: means over {counted(seeds, 'seed')}"
    caption += "; bands: minimum to maximum over seeds." if seeds > 1 else "."
    files = [WARM_START_RECORD, WARM_START_TABLE]
    return figure(to_svg(plot, "warm-start", label), label, caption, files)


def _scores(record: Fields) -> Markup:
    runs = [
        Fields(run, record.path, _WARM_START_COMMAND, "a run")
        for run in record.value.get("runs") or []
    ]
    names = dict.fromkeys(run.text("run") or UNKNOWN for run in runs)
    rows: list[list[Child]] = []
    for name in names:
        of_name = [run for run in runs if run.text("run") == name]
        means = [
            np.mean([run.number(of, record.text("metric")) for run in of_name])
            for of in ("at_start", "best", "final")
        ]
        gain = record.fields("comparisons").fields(name).fields("gain")
        cells = [decimal(float(mean), 3) for mean in means]
        rows.append(
            [
                name,
                str(len(of_name)),
                *cells,
                points(gain.number("mean"), sign=True),
                _warm_start_bounds(gain, 100),
            ]
        )
    split = record.text("final_split") or "the end"
    head = ["start", "seeds", "at step 0", "best", split, "gain, points", "95% CI"]
    caption = f"Mean {record.text('metric')}; step 0 and best on validation"
    return table(head, rows, caption, source=[WARM_START_RECORD])


def _speeds(record: Fields) -> Markup:
    rows: list[list[Child]] = []
    for name, compared in record.fields("comparisons").each():
        cells: list[Child] = []
        for kind in _SPEEDS:
            found = compared.fields(kind)
            mean = found.number("mean")
            text = f"{mean:.2f}x" if math.isfinite(mean) else "not reached"
            cells += [value_cell(text, mean), _warm_start_bounds(found, 1)]
        rows.append([name, *cells])
    head = ["start", "convergence", "95% CI", "comparable result", "95% CI"]
    return table(head, rows, "Speed-up over random initialization", source=[WARM_START_RECORD])


def _warm_start_bounds(found: Fields, scale: float) -> str:
    ends = [scale * found.number(end) for end in ("low", "high")]
    if not all(map(math.isfinite, ends)):
        return UNKNOWN
    return " to ".join(decimal(end, 2 if scale == 1 else 1, sign=scale != 1) for end in ends)


def _warm_start_methods(folder: Path, record: Fields) -> Markup:
    texts = [
        f"{name.replace('_', ' ').capitalize()}: {text}."
        for name, text in record.fields("definitions").value.items()
    ]
    versions = {name: str(v) for name, v in record.fields("versions").value.items()}
    entries: list[tuple[str, Child]] = [
        ("task", record.text("task")),
        ("backbone", record.text("backbone")),
        ("sources", ", ".join(record.fields("sources").value)),
        ("seeds", ", ".join(map(str, record.value.get("seeds") or []))),
        *shared_settings([record.fields("settings").value]),
    ]
    files = [folder / WARM_START_RECORD, folder / WARM_START_TABLE]
    entries += version_items(versions, record.text("machine"), record.text("device"), files)
    notes = [element("li", note) for note in record.texts("notes")]
    listed: Sequence[Markup | None] = (
        methods_list(texts),
        definition_list(entries),
        element("h3", "Notes") if notes else None,
        element("ul", *notes, class_="notes") if notes else None,
        sources([WARM_START_RECORD], "p"),
    )
    return section("provenance", "Methods and versions", *listed)


# --- The page of a study

PAGE = "report.html"
# Topics of the findings at the top; others are shown in their section only.
_SUMMARY = ("training", "types", "best_source", "correlation", "choice", "masks", "caution")
# Sections of these topics; the other topics are named as their section.
_ANCHORS = {"best_source": "transfer", "caution": "correlation"}
_SECTIONS = (
    ("transfer", "transfer"),
    ("overlap", "neurons"),
    ("embeddings", "embeddings"),
    ("correlation", "correlation"),
    ("choice", "source selection"),
    ("masks", "masks"),
    ("types", "task types"),
    ("training", "training"),
    ("provenance", "methods"),
    ("notes", "notes"),
)


def write_report(folder: str | Path) -> Path:
    """Write the report of a study as one self-contained HTML page.

    The page has figures, tables and findings. It reads the result files only, without a backbone;
    equal files give equal bytes.

    Args:
        folder: Output folder of ``jpt transfer`` and ``jpt indicators``, of ``jpt sweep``, of
            ``jpt warm-start`` or of ``jpt project evaluate``. The page names missing parts with
            the command that creates them.

    Returns:
        Path of ``report.html`` in the folder.

    Raises:
        InputError: The folder does not exist or holds no results, a file is invalid, or the page
            cannot be written.

    Example:
        >>> import tempfile
        >>> study = Path(tempfile.mkdtemp())
        >>> text = "target_task,source_prompt,metric,value\\nimdb,imdb,accuracy,0.75\\n"
        >>> _ = (study / "transfer.csv").write_text(text)
        >>> write_report(study).name
        'report.html'
    """
    target = Path(folder) / PAGE
    parts_of = _other_study(Path(folder))
    if parts_of is not None:
        title, findings, parts = parts_of(Path(folder))
        write_text(target, whole_page(title, sweep_header(title, findings), *parts))
        return target
    study, ordering = prepare(folder)
    write_text(target, build_page(study, ordering, find(study, ordering)))
    return target


def _other_study(folder: Path) -> Callable[[Path], tuple[str, list[str], list[Markup]]] | None:
    """Return the page builder of a sweep, projection or warm-start folder."""
    if is_sweep(folder):
        return sweep_parts
    if is_projection(folder):
        return projection_parts
    return warm_start_parts if is_warm_start(folder) else None


def summarize(folder: str | Path) -> list[str]:
    """Return the findings at the top of the page of a study."""
    parts_of = _other_study(Path(folder))
    if parts_of is not None:
        return parts_of(Path(folder))[1]
    study, ordering = prepare(folder)
    return [found.text for found in find(study, ordering) if found.topic in _SUMMARY]


def prepare(folder: str | Path) -> tuple[Study, Ordering]:
    """Load a study with its relative scores, and order its tasks and prompts."""
    study = read_study(folder)
    ordering = order_study(study)
    return with_performance(study, ordering), ordering


def build_page(study: Study, ordering: Ordering, found: Sequence[Finding]) -> str:
    """Return the HTML page of a study."""
    return whole_page(
        _title(study),
        _header(study, ordering, found),
        transfer_section(study, ordering),
        overlap_section(study, ordering),
        embedding_section(study, ordering),
        correlation_section(study, ordering, found),
        choice_section(study, ordering, found),
        mask_section(study, found),
        type_section(study, ordering, found),
        training_section(study, ordering),
        provenance_section(study, ordering),
        note_section(study, ordering),
    )


def _backbones(study: Study) -> list[str]:
    names = [study.record.backbone] if study.record else []
    names += [record.card.backbone for record in study.prompts.values() if record.card]
    return list(dict.fromkeys(name for name in names if name))


def _title(study: Study) -> str:
    names = _backbones(study)
    return f"Prompt transfer on {', '.join(names)}" if names else "Prompt transfer"


def _header(study: Study, ordering: Ordering, found: Sequence[Finding]) -> Markup:
    n_prompts = len(ordering.sources or ordering.prompts or study.prompts)
    sizes = [counted(n_prompts, "prompt")]
    if ordering.targets:
        sizes.append(counted(len(ordering.targets), "target task"))
        kinds = dict.fromkeys(ordering.target_types[name] for name in ordering.targets)
        sizes.append(f"{counted(len(kinds), 'task type')} ({', '.join(kinds)})")
    shown = [finding for finding in found if finding.topic in _SUMMARY]
    items = [finding_item(each, _ANCHORS.get(each.topic, each.topic)) for each in shown]
    if not items:
        items = [element("li", "No findings yet: parts of the study are missing.")]
    links = [element("a", name, href=f"#{anchor}") for anchor, name in _SECTIONS]
    return element(
        "header",
        element("h1", _title(study)),
        element("p", " · ".join(sizes), class_="meta"),
        element("ul", *items, class_="findings"),
        element("nav", join(links), aria_label="Sections"),
    )
