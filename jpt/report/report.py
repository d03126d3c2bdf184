"""Write a study as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    cost_figure,
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
    TransferPair,
    commands,
    in_task_score,
    order_study,
    random_values,
    read_fields,
    read_study,
    transfer_pairs,
    values_at,
    with_relative,
)
from jpt.results.prompt_table import RANDOM, read_transfer
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
from jpt.tasks.catalog import task_type
from jpt.types import TransferMatrix
from jpt.version import __version__

# --- Pieces of an HTML page; text is escaped wherever it enters, markup is made here alone


class Markup(str):
    """Text that is HTML already and is not escaped again."""


Child = str | Markup | None
_CHIPS = {
    AGREES: "agrees with the paper",
    CONTRADICTS: "speaks against the paper",
    UNCLEAR: "not clear",
}


def element(tag: str, *children: Child, **attributes: str | None) -> Markup:
    """Makes an element."""
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{told}>{join(children)}</{tag}>")


def join(parts: Iterable[Child]) -> Markup:
    """Puts pieces in a row."""
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
    """Makes a table that scrolls sideways where the screen is narrow, and sorts by its header."""
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
    whole = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", *lines),
        element("tbody", *body),
    )
    return element("div", scrolling(whole, caption), sources(source, "p"), class_="table")


def sources(paths: Sequence[str], tag: str = "span") -> Markup | None:
    """Says which files the numbers stand in, with links to them."""
    if not paths:
        return None
    links = [element("a", path, href=quote(path)) for path in dict.fromkeys(paths)]
    parts = [part for link in links for part in (", ", link)][1:]
    return element(tag, "Numbers: ", *parts, class_="source")


def value_cell(text: str, value: float) -> Markup:
    """Makes a cell whose text does not sort as its number does, such as a duration."""
    return element("td", text, class_="number", data_sort=f"{value}" if value == value else None)


def _cell(cell: Child, number: bool) -> Markup:
    if isinstance(cell, Markup) and cell.startswith("<td"):
        return cell
    return element("td", cell, class_="number" if number else None)


def bar_cell(text: str, share: float, strong: bool = False) -> Markup:
    """Makes a cell of a table with a bar behind its number."""
    kind = "number bar" + (" negative" if share < 0 else "") + (" best" if strong else "")
    return element("td", text, class_=kind, style=f"--share:{100 * min(abs(share), 1):.0f}%")


def scrolling(content: Markup, label: str) -> Markup:
    """Wraps what may be wider than the screen, so that it scrolls and the page does not."""
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def figure(svg: str, label: str, caption: Child, source: Sequence[str] = ()) -> Markup:
    """Makes a figure with its caption."""
    told = element("figcaption", caption, " " if source else None, sources(source))
    return element("figure", scrolling(Markup(svg), label), told)


def details(summary: str, *content: Child) -> Markup:
    """Makes something that is folded away."""
    return element("details", element("summary", summary), *content)


def section(name: str, title: str, *content: Child) -> Markup:
    """Makes a part of the page."""
    return element("section", element("h2", title), *content, id=name)


def missing(what: str, command: str) -> Markup:
    """Says what the study does not hold, and how to make it."""
    return element("p", f"{what}. To make it: ", element("code", command), class_="missing")


def finding_item(finding: Finding, place: str | None = None) -> Markup:
    """Shows a finding with what it means for the paper."""
    chip = None
    if finding.verdict is not None:
        chip = element("span", _CHIPS[finding.verdict], class_=f"chip {finding.verdict}")
    link = element("a", "numbers", href=f"#{place}", class_="where") if place else None
    return element("li", finding.text, " " if chip else None, chip, " " if link else None, link)


def whole_page(title: str, *content: Child) -> str:
    """Puts the page together: nothing in it is loaded from anywhere."""
    style, script = (
        files("jpt.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    # The browser is told to load nothing and to run this one script, whatever a name might say.
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


# --- The part of the report on choosing: which source each indicator takes, and what that costs

_CHOICE_FILES = ("choice.json",)


def choice_section(study: Study, ordering: Ordering, found: Sequence[Finding]) -> Markup:
    """Shows which source each indicator would have chosen, and what that would have cost."""
    title = "What it costs to choose by an indicator"
    if study.choices is None:
        note = missing("There is no choice.json", commands(study.folder)["indicators"])
        return section("choice", title, note)
    if not study.choices.ranges:
        reason = element("p", *(study.choices.notes or ("No choice can be judged.",)))
        return section("choice", title, reason)
    items = [finding_item(each) for each in found if each.topic == "choice"]
    lead = element(
        "p",
        "Each task stands for a new one: an indicator compares its prompt with those of the other"
        " tasks, the most similar one is taken, and its measured score is held against the best"
        " one's. A point is 1% of the full score; costs are means over tasks. Where an indicator"
        " puts several sources first, each counts by the same share.",
    )
    names = shown_rankings(study.choices.means)
    return section(
        "choice",
        title,
        element("ul", *items, class_="findings") if items else None,
        lead,
        element(
            "div",
            _cost_figure(study.choices, names),
            _choice_means(study.choices, names),
            class_="columns",
        ),
        _by_target(study.choices, names, ordering),
        _row0(study.choices),
        element("p", *_notes(study.choices), class_="meta"),
    )


def ranking_label(name: str) -> str:
    """Gives a ranking's name for people."""
    return "same type" if name == SAME_TYPE else indicator_label(name)


def points(value: float, sign: bool = False) -> str:
    """Writes a share of the full score in points."""
    return decimal(100 * value, 1, sign=sign)


def bounds(interval: tuple[float, float], sign: bool = False) -> str:
    """Writes an interval in points."""
    if not np.isfinite(interval).all():
        return UNKNOWN
    return " to ".join(points(end, sign) for end in interval)


def _cost_figure(choices: SelectionRecord, names: Sequence[str]) -> Markup:
    means = choices.means
    ordered = sorted(names, key=lambda name: means[name].regret)
    chance = _chance(choices, names)
    plot = cost_figure(
        [ranking_label(name) for name in ordered],
        [means[name].regret for name in ordered],
        [means[name].regret_interval for name in ordered],
        chance.chance_regret,
    )
    label = "Mean cost of taking the source that each indicator puts first: " + "; ".join(
        f"{ranking_label(name)} {points(means[name].regret)}" for name in ordered
    )
    told = (
        f"Means over {counted(chance.targets, 'task')} (points) and their 95% intervals (lines);"
        " dashed: a source taken by chance. Further left is better."
    )
    return figure(to_svg(plot, "choice-costs", label), label, told, _CHOICE_FILES)


def _chance(choices: SelectionRecord, names: Sequence[str]) -> SelectionMeans:
    """The ranking that speaks of the most targets; chance is told on these."""
    return max((choices.means[name] for name in names), key=lambda of: of.targets)


def _choice_means(choices: SelectionRecord, names: Sequence[str]) -> Markup:
    whole = _chance(choices, names)
    least = min(choices.means[name].regret for name in names)
    rows: list[list[Child]] = [
        [
            ranking_label(name),
            str(of.targets),
            percent(of.hits),
            bar_cell(points(of.regret), of.regret / (whole.chance_regret or 1), of.regret == least),
            points(of.gain, sign=True),
            bounds(of.gain_interval, sign=True),
        ]
        for name in names
        for of in [choices.means[name]]
    ]
    chance = [percent(whole.chance_hits), points(whole.chance_regret), UNKNOWN, UNKNOWN]
    rows.append(["by chance", str(whole.targets), *chance])
    head = ["taken by", "n tasks", "is the best", "cost", "saved against chance", "95% interval"]
    told = "What the first source of each ranking is worth; costs in points"
    return table(head, rows, told, source=_CHOICE_FILES)


def _by_target(choices: SelectionRecord, names: Sequence[str], ordering: Ordering) -> Markup:
    targets = [name for name in ordering.targets if name in choices.ranges]
    targets += [name for name in choices.ranges if name not in targets]
    rows: list[list[Child]] = []
    for target in targets:
        of = choices.ranges[target]
        cells = [_chosen(choices.chosen[name].get(target), of.best) for name in names]
        best = f"{', '.join(of.best)} ({points(of.best_score)})"
        rows.append([target, best, *cells, f"−{points(of.best_score - of.mean_score)}"])
    head = ["task", "best source (score)", *map(ranking_label, names), "by chance"]
    caption = "The source that each ranking takes, and how many points below the best it scores"
    whole = table(head, rows, caption, numbers_from=99, source=_CHOICE_FILES)
    return details("Every choice, task by task", whole)


def _chosen(found: ChosenSource | None, best: Sequence[str]) -> Child:
    if found is None:
        return UNKNOWN
    names = ", ".join(found.sources)
    if len(found.sources) > 3:
        names = f"{len(found.sources)} alike"
    hit = set(found.sources) <= set(best)
    text = f"{names} ✓" if hit else f"{names} −{points(found.regret)}"
    return element("td", text, class_="best" if hit else None)


def _row0(choices: SelectionRecord) -> Markup | None:
    """The same with the row that no model reads, where prompts have one."""
    pairs = [(name.removesuffix(WITH_ROW0), name) for name in choices.means]
    pairs = [(plain, name) for plain, name in pairs if plain != name and plain in choices.means]
    if not pairs:
        return None
    rows = [
        [ranking_label(plain)]
        + [percent(choices.means[name].hits) for name in (plain, whole)]
        + [points(choices.means[name].regret) for name in (plain, whole)]
        for plain, whole in pairs
    ]
    over = [("", 1), ("is the best", 2), ("cost, points", 2)]
    head = ["taken by", *["without row 0", "with row 0"] * 2]
    caption = "Row 0 of these prompts is trained but never read by their model"
    whole = table(head, rows, caption, over=over, source=_CHOICE_FILES)
    return details("With row 0 and without", whole)


def _notes(choices: SelectionRecord) -> list[str]:
    tasks = max(of.targets for of in choices.means.values())
    told = [
        "Same type: any source whose task has the type of the target, all alike; it needs neither"
        " prompts nor labels."
    ]
    if tasks < 20:
        told.append(f" With {counted(tasks, 'task')} a single one moves these means a lot.")
    return told


# --- The part of the report on whether alike prompts move better: correlations, and their scatter

_CORRELATION_FILES = ("correlation.json",)
_CORRELATION_NUMBERS = ("mean_over_targets", "pooled_relative", "pooled_raw")


def correlation_section(study: Study, ordering: Ordering, found: Sequence[Finding]) -> Markup:
    """Holds the indicators against what the moves did."""
    title = "Do similar prompts move better?"
    if study.correlations is None:
        note = missing("There is no correlation.json", commands(study.folder)["indicators"])
        return section("correlation", title, note, _scatter_figures(study, ordering))
    items = [finding_item(each) for each in found if each.topic in ("correlation", "caution")]
    lead = element(
        "p",
        "Spearman's rank correlation of each indicator with zero-shot performance: +1 where the"
        " more similar prompt is always the better source, 0 where similarity says nothing. A"
        " prompt is most similar to itself and best on its own task, so own pairs flatter every"
        " indicator; the fair columns are those without them.",
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
    """The embedding indicators, ON, its best window, and all layers."""
    best = _best_window(table_)
    wanted = [*EMBEDDING, OVERLAP, best, OVERLAP_ALL]
    return [name for name in wanted if name is not None and name in table_]


def _best_window(table_: Mapping[str, CorrelationRecord]) -> str | None:
    known = [n for n in windows(table_) if np.isfinite(table_[n].mean_over_targets)]
    return max(known, key=lambda n: table_[n].mean_over_targets, default=None)


def _correlation_table(found: CorrelationRecords) -> Markup:
    out, whole = found.excluding_in_task, found.including_in_task
    parts = [part for part in (out, whole) if part]
    names = _shown(out or whole)
    best = [
        max((getattr(part[n], number) for n in names if n in part), key=_rank)
        for part in parts
        for number in _CORRELATION_NUMBERS
    ]
    rows: list[list[Child]] = []
    for name in names:
        numbers = [
            getattr(p[name], n) if name in p else np.nan
            for p in parts
            for n in _CORRELATION_NUMBERS
        ]
        cells = [_rho_cell(v, v == top) for v, top in zip(numbers, best, strict=True)]
        first = (out or whole)[name]
        known = [v for v in first.per_target.values() if np.isfinite(v)]
        sure = [f"±{decimal(standard_error(known), 2)}", _correlation_bounds(known)]
        label = _row_label(name, out or whole)
        rows.append([label, str(first.n_targets), cells[0], *sure, *cells[1:]])
    over = [("", 2)]
    over += [("own prompts left out", 5)] if out else []
    over += [("own prompts included", 3 if out else 5)] if whole else []
    columns = ["mean over targets", "pooled, relative", "pooled, raw"] * len(parts)
    head = ["indicator", "n targets", columns[0], "standard error", "95% interval", *columns[1:]]
    told = "Spearman's rho; the highest of each column is bold"
    return table(head, rows, told, over=over, source=_CORRELATION_FILES)


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
        "The best window was chosen by the very numbers that it is judged by, so it looks better"
        " than it would on new tasks; the default layers were fixed before. Mean over targets:"
        " sources are ranked for each task on its own. Pooled: all pairs in one ranking, by"
        " relative or by raw score.",
        class_="meta",
    )


def _per_target_table(found: CorrelationRecords) -> Markup | None:
    part = found.excluding_in_task or found.including_in_task
    targets = list(dict.fromkeys(t for each in part.values() for t in each.per_target))
    if not targets:
        return None
    which = "own prompts left out" if found.excluding_in_task else "own prompts included"
    rows = [
        [
            indicator_label(name),
            *(decimal(each.per_target.get(t, np.nan), 2, sign=True) for t in targets),
            *(decimal(getattr(each, number), 2, sign=True) for number in _CORRELATION_NUMBERS),
        ]
        for name, each in part.items()
    ]
    head = ["indicator", *targets, "mean", "pooled, relative", "pooled, raw"]
    caption = f"Spearman's rho of every indicator and task, {which}"
    whole = table(head, rows, caption, source=_CORRELATION_FILES)
    return details("Every indicator, task by task", whole)


def _correlation_bounds(values: Sequence[float]) -> str:
    interval = mean_interval(values)
    return UNKNOWN if interval is None else " to ".join(decimal(v, 2, sign=True) for v in interval)


def _interval_note(found: CorrelationRecords) -> Markup:
    """What the intervals are, and how few tasks they come from."""
    count = max(
        (of.n_targets for of in (found.excluding_in_task or found.including_in_task).values()),
        default=0,
    )
    few = " With so few tasks they are rough: take them for no more than a warning."
    return element(
        "p",
        f"95% intervals of the means: percentile bootstrap over {counted(count, 'task')}, widened"
        " for small numbers of tasks. Two indicators are compared by the interval of their"
        " difference, task by task, which can be much narrower." + (few if count < 20 else ""),
        class_="meta",
    )


def _row0_table(found: CorrelationRecords) -> Markup | None:
    """With the row that no model reads, where prompts have one, and without."""
    parts = {"left out": found.excluding_in_task, "included": found.including_in_task}
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
    over = [("", 1), *((f"own prompts {which}", 2) for which in parts)]
    head = ["indicator", *["without row 0", "with row 0"] * len(parts)]
    caption = (
        "Mean rho over targets. Row 0 of these prompts is trained but never read by their model"
    )
    whole = table(head, rows, caption, over=over, source=_CORRELATION_FILES)
    return details("With row 0 and without", whole)


def _scatter_figures(study: Study, ordering: Ordering) -> Markup | None:
    """One small figure an indicator: the paper's open, the others folded away."""
    columns = study.similarities.values if study.similarities else {}
    moved = transfer_pairs(study, ordering)
    names = [n for n in (OVERLAP, *EMBEDDING) if n in columns]
    names += [n for n in shown_rankings(columns) if n not in names and n in MEANINGS]
    points = {name: _correlation_points(study, ordering, moved, name) for name in names}
    points = {name: groups for name, groups in points.items() if groups}
    if not points:
        return None
    limits = _limits(np.concatenate([y for of in points.values() for _, y in of.values()]))
    panels = {
        name: _correlation_panel(study, name, groups, limits) for name, groups in points.items()
    }
    first = [panels[name] for name in panels if name in (OVERLAP, *EMBEDDING)]
    more = [panels[name] for name in panels if name not in (OVERLAP, *EMBEDDING)]
    told = (
        "One point a task and another task's prompt: what the indicator says of that prompt and the"
        " task's own (across), and the score relative to the own prompt's (upwards). Own pairs are"
        " left out. rho: mean over tasks of the rank correlation, own prompts left out."
    )
    return join(
        [
            element("h3", "Indicator against score, every move"),
            element("p", told, class_="meta"),
            element("div", *first, class_="panels"),
            details("The other indicators", element("div", *more, class_="panels"))
            if more
            else None,
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
    told = f"{meaning[:1].upper()}{meaning[1:]}; {counted(n_pairs, 'pair')}"
    if found:
        told += f", rho {decimal(found.mean_over_targets, 2, sign=True)}"
    files = ["indicators.csv", *([study.relative_file] if study.relative_file else [])]
    svg = to_svg(plot, f"scatter-{name.replace('_', '-')}", label)
    return element(
        "div",
        element("h3", indicator_label(name)),
        figure(svg, label, f"{told}.", [*files, *(_CORRELATION_FILES if found else ())]),
    )


def _limits(scores: Float64[np.ndarray, "M"]) -> tuple[float, float]:
    """The same heights in all panels, with a little room."""
    low, high = float(min(scores.min(), 0.95)), float(max(scores.max(), 1.05))
    room = 0.06 * (high - low)
    return low - room, high + room


def _correlation_points(
    study: Study, ordering: Ordering, moved: Sequence[TransferPair], name: str
) -> dict[str, tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"]]]:
    """Indicator and relative score of the moves, by whether both tasks have one type."""
    assert study.similarities is not None
    place = {prompt: index for index, prompt in enumerate(study.similarities.names)}
    values = study.similarities.values[name]
    kinds = {True: "same type", False: "other type", None: "type not known"}
    groups: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds.values()}
    for move in moved:
        in_task = ordering.in_task.get(move.target, "")
        if in_task in place and move.source in place:
            value = float(values[place[in_task], place[move.source]])
            if np.isfinite(value):
                groups[kinds[move.same_type]].append((value, move.relative))
    found = {kind: np.array(pairs).T for kind, pairs in groups.items() if pairs}
    return {kind: (x, y) for kind, (x, y) in found.items()}


def _window_figure(found: CorrelationRecords) -> Markup | None:
    out, whole = found.excluding_in_task, found.including_in_task
    layers = windows(out or whole)
    if len(layers) < 2:
        return None
    lines = {
        label: [part[n].mean_over_targets if n in part else np.nan for n in layers]
        for label, part in (("own prompts left out", out), ("included", whole))
        if part
    }
    label = "Rank correlation of neuron overlap by the layers it is taken over"
    first = out or whole
    known = [[v for v in first[n].per_target.values() if np.isfinite(v)] for n in layers]
    bands = [mean_interval(values) or (np.nan, np.nan) for values in known]
    told = (
        "ON's rank correlation, mean over tasks, for every window of three consecutive layers; the"
        " pale ground is the 95% interval" + (" with own prompts left out." if out else ".")
    )
    plot = window_curve(list(layers.values()), lines, bands)
    return figure(to_svg(plot, "window-curve", label), label, told, _CORRELATION_FILES)


# --- The parts of the report on how alike prompts are: by their neurons, and by their vectors

_INDICATORS_FILES = ("indicators.csv",)
_WHOLE_COSINE = "cosine_concat"
"""Of the paper's indicators of vectors the one that can be mapped: a prompt is 1 to itself."""


def overlap_section(study: Study, ordering: Ordering) -> Markup:
    """Shows the overlap of activated neurons of all pairs of prompts."""
    title = "Which prompts activate the same neurons"
    make = commands(study.folder)
    parts: list[Markup | None] = [
        element(
            "p",
            "A prompt alone, without any text, makes some neurons of the feed-forward layers"
            " active (above 0). ON is the cosine of two such patterns of zeros and ones: 1 for the"
            " same neurons, 0 for none in common.",
        )
    ]
    if study.neurons is None:
        parts.append(missing("There is no neurons.npz", make["neurons"]))
    if study.similarities is None:
        parts.append(missing("There is no indicators.csv", make["indicators"]))
    elif OVERLAP not in study.similarities.values:
        parts.append(missing("indicators.csv has no neuron_overlap", make["indicators"]))
    else:
        parts.append(_similarity_map(study, ordering, OVERLAP, 900, _layers_told(study)))
        parts.append(_similarity_table(study, ordering, OVERLAP))
        parts.append(_plane(study, ordering, OVERLAP))
    return section("overlap", title, *parts)


def embedding_section(study: Study, ordering: Ordering) -> Markup:
    """Shows the four indicators that compare the vectors of prompts."""
    title = "Which prompts have similar vectors"
    lead = element(
        "p",
        "Four indicators compare the vectors of two prompts themselves. Pairs of a prompt with"
        " itself are gray and have no part in the colors.",
    )
    if study.similarities is None:
        make = commands(study.folder)["indicators"]
        return section("embeddings", title, lead, missing("There is no indicators.csv", make))
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
        plane = _plane(study, ordering, _WHOLE_COSINE)  # for want of neurons
    return section("embeddings", title, lead, element("div", *maps, class_="pair"), plane)


def _layers_told(study: Study) -> str:
    """Which layers ON is of: the window whose values are the same."""
    assert study.similarities is not None
    values = study.similarities.values
    for name, (first, last) in windows(values).items():
        if np.array_equal(values[name], values[OVERLAP], equal_nan=True):
            total = f" of {study.neurons[1]}" if study.neurons else ""
            return f"ON over layers {first} to {last}{total} (0 is next to the input)."
    return "ON over the layers that jpt indicators was given."


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
            texts=[[_indicators_short(value, digits) for value in line] for line in values],
            scale_label=indicator_label(name),
            width_px=width_px,
            row_axis="prompt",
            column_axis="prompt",
        ),
        percent=False,
    )
    count = counted(len(ordering.prompts), "prompt")
    label = f"Heat map of {indicator_label(name)} for all pairs of {count}; the numbers are below."
    place = f"map-{name.replace('_', '-')}"
    return figure(stick_rows(to_svg(plot, place, label), place), label, caption, _INDICATORS_FILES)


def _indicators_short(value: float, digits: int) -> str:
    """Without the zero before the point, which all of them have; nothing for a gray cell."""
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
    whole = table(["prompt", *ordering.prompts], rows, caption, source=_INDICATORS_FILES)
    return details(f"{label} as a table", whole)


def _plane(study: Study, ordering: Ordering, name: str) -> Markup | None:
    """The prompts as points, as far apart as they are unlike."""
    alike = _ordered(study, ordering, name)
    # A prompt that activates no neuron is like none, and an untrained one is for no task.
    trained = [ordering.prompt_types[prompt] != BASELINE for prompt in ordering.prompts]
    kept = np.isfinite(np.diag(alike)) & np.array(trained, bool)
    alike = alike[np.ix_(kept, kept)]
    if len(alike) < 3 or not np.isfinite(alike).all():
        return None
    distances = 1 - (alike + alike.T) / 2
    np.fill_diagonal(distances, 0)
    points, share = scale_to_plane(distances)
    names = [prompt for prompt, is_kept in zip(ordering.prompts, kept, strict=True) if is_kept]
    types = [ordering.prompt_types[prompt] for prompt in names]
    said = indicator_label(name)
    plot = prompt_map(points, names, types, (NO_TYPE,), f" (distance: 1 − {said})")
    label = f"Map of {counted(len(names), 'prompt')} by 1 − {said}; the table has the numbers."
    told = (
        f"A map of the prompts: the farther apart, the smaller {said} (classical multidimensional"
        f" scaling of 1 − {said}; the directions themselves mean nothing). The plane holds"
        f" {percent(share)} of all squared distances"
        + ("." if share > 0.7 else ", so what lies side by side need not be alike.")
    )
    return figure(to_svg(plot, "prompt-map", label), label, told, _INDICATORS_FILES)


# --- The part of the report on masks: what tasks lose when chosen neurons are silent

_HEADS = {
    "in_task": "in-task",
    "random": "random",
    "other": "other tasks'",
    "common": "common to all",
    "specific": "specific to it",
}
_MEANINGS = {
    "in_task": "those with the largest values behind the task's own prompt",
    "random": "as many in each layer, drawn by lot",
    "other": "those with the largest values behind the prompts of other tasks",
    "common": "those that the most prompts activate",
    "specific": "those that this prompt activates and the fewest others do",
}


def mask_section(study: Study, found: Sequence[Finding]) -> Markup:
    """Shows what is left of the scores when chosen neurons are silent."""
    title = "Do tasks need the neurons that their prompts activate?"
    masks = study.masks
    if masks is None or not masks.tasks:
        what = "There is no mask.json: no neuron was made silent"
        return section("masks", title, missing(what, commands(study.folder)["mask"]))
    items = [finding_item(each) for each in found if each.topic == "masks"]
    lead = element("p", _lead(masks))
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
    """Gives a kind of mask's name for people."""
    return _HEADS.get(kind, kind)


def _lead(masks: MaskRecord) -> str:
    first, last = masks.layers
    layers = f"layer {first}" if first == last else f"layers {first} to {last}"
    told = "; ".join(f"{kind_label(kind)}: {_MEANINGS.get(kind, kind)}" for kind in masks.kinds)
    return (
        f"{masks.masked:,} of the {masks.neurons:,} neurons of {layers} are silent while each"
        f" task is scored with its own prompt{f' on {masks.split}' if masks.split else ''}."
        f" Which ones differs: {told}."
    )


def _masks_figure(study: Study, masks: MaskRecord) -> Markup | None:
    known = [t for t in masks.tasks.values() if t.unmasked > 0]
    if not known or not all(np.isfinite([*t.relative.values()]).all() for t in known):
        return None
    means = "; ".join(
        f"{kind_label(kind)} {percent(float(np.mean([t.relative[kind] for t in known])))}"
        for kind in masks.kinds
        if all(kind in t.relative for t in known)
    )
    label = f"Share of the score that is left under each kind of mask: {means}."
    told = (
        f"Bars: means over {counted(len(known), 'task')}; points: every single score. Dashed: what"
        " is left by always answering the commonest class."
    )
    plot = plot_shares(read_shares(study.folder / MASK_RECORD))
    plot.axes[0].set_title("", loc="left")
    return figure(to_svg(plot, "mask-shares", label), label, told, [MASK_RECORD])


def _type_parts(masks: MaskRecord) -> list[Markup]:
    kinds = masks.kinds
    parts: list[Markup] = []
    if masks.by_type:
        rows = [
            [name, *(percent(means.get(kind, np.nan)) for kind in kinds)]
            for name, means in masks.by_type.items()
        ]
        caption = "What is left of the scores, by type of task and kind of mask"
        parts.append(table(["type", *map(kind_label, kinds)], rows, caption, source=[MASK_RECORD]))
    same, other = masks.other_same_type, masks.other_different_type
    if np.isfinite([same, other]).all():
        parts.append(
            element(
                "p",
                f"Neurons of other tasks' prompts leave {percent(same)} of the score where that"
                f" task has the same type and {percent(other)} where not.",
                class_="meta",
            )
        )
    return parts


def _mask_score_table(masks: MaskRecord) -> Markup:
    kinds = masks.kinds
    rows: list[list[Child]] = [
        [
            name,
            task.type or UNKNOWN,
            decimal(task.unmasked, 3),
            *(decimal(task.scores.get(kind, np.nan), 3) for kind in kinds),
            decimal(task.majority, 3),
        ]
        for name, task in masks.tasks.items()
    ]
    head = ["task", "type", "no mask", *map(kind_label, kinds), "commonest"]
    metrics = ", ".join(dict.fromkeys(task.metric for task in masks.tasks.values()))
    told = f"Scores ({metrics}) under each kind of mask"
    return table(head, rows, told, numbers_from=2, source=[MASK_RECORD])


# --- The part of the report on how the numbers came about: methods, versions, machine, dates

STUDY_FILES = (
    "transfer.csv",
    "relative.csv",
    "transfer.json",
    "neurons.npz",
    "indicators.csv",
    "correlation.json",
    "types.json",
    "choice.json",
    "mask.json",
)

# Facts of a config that are told elsewhere, or that differ by task as a matter of course.
_TOLD = ("task", "template", "label_words", "label_ids", "data", "fingerprint")


def methods_text(study: Study) -> list[str]:
    """Says how each part of a study is computed; only of the parts that it holds."""
    told = {
        "The weights of the model are frozen; a prompt's rows are all that is trained. Of each run"
        " the prompt that scores best on validation is kept.": study.prompts,
        "Zero-shot transfer: a prompt is put before the rows of another task unchanged. A relative"
        " score is the score over that of the task's own prompt.": study.transfer,
        "A neuron is a unit of a feed-forward layer, read after its non-linearity behind the prompt"
        " alone; it is active above 0. ON is the cosine of two patterns of active neurons; E and C"
        " are the nearness, 1 / (1 + distance), and the cosine of the prompts' vectors, as one"
        " vector each (concat) or over all pairs of rows (average).": study.similarities,
        "Correlations are Spearman's rho, for each task over its sources, then the mean over tasks;"
        " intervals are percentile bootstraps over tasks, widened for small numbers.": (
            study.correlations
        ),
        "Choices are judged by leaving one task out at a time: the source that an indicator puts"
        " first against the best one.": study.choices and study.choices.ranges,
        "Masks set the values of chosen neurons to 0 in the forward pass, while the task is scored"
        " with its own prompt.": study.masks,
    }
    return [text for text, part in told.items() if part]


def methods_list(texts: Iterable[str]) -> Markup | None:
    """Lists sentences on methods, with what they go back to."""
    items = [element("li", text) for text in texts]
    if not items:
        return None
    paper = "After Su et al., On Transferability of Prompt Tuning for Natural Language Processing,"
    items.append(element("li", paper, " NAACL 2022 (arXiv 2111.06719)."))
    return element("ul", *items, class_="notes")


def definition_list(facts: Iterable[tuple[str, Child]]) -> Markup:
    """Lists facts by name; those that are not known are left out."""
    pairs = [(element("dt", name), element("dd", text)) for name, text in facts if text]
    return element("dl", *(part for pair in pairs for part in pair))


def version_items(
    versions: Mapping[str, str], machine: str | None, device: str | None, files: Iterable[Path]
) -> list[tuple[str, Child]]:
    """Names versions, machine, devices and dates."""
    return [
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("machine", machine),
        ("devices", device),
        ("results written", written_between(files)),
        ("page made by", f"jpt {__version__}, jpt report"),
    ]


def written_between(files: Iterable[Path]) -> str | None:
    """Says when files were written, by the dates they carry."""
    times = sorted(file.stat().st_mtime for file in files if file.exists())
    if not times:
        return None
    told = [f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M}" for t in (times[0], times[-1])]
    return " to ".join(dict.fromkeys(told)) + " UTC"


def shared_settings(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, Child]]:
    """Tells the settings that all runs have in common, and those that differ between them."""
    shared, differing = [], []
    for name in dict.fromkeys(name for run in configs for name in run if name not in _TOLD):
        values = {_plain(run.get(name)) for run in configs}
        if len(values) == 1:
            shared.append(f"{name} {values.pop()}")
        else:
            differing.append(f"{name} ({', '.join(sorted(values)[:6])})")
    told = (
        ("settings of all runs", ", ".join(shared)),
        ("settings that differ", ", ".join(differing)),
    )
    return [*told]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# --- The page of a table of projected prompts: what each way of carrying prompts over is worth

PROJECTION_TABLE, PROJECTION_RECORD = "projection.csv", "projection.json"
_PROJECTION_CURE = "jpt project evaluate"
# Columns that are no projection, as the command names them.
OWN, TUNED = "in_task", ("warm", "vanilla")
_PROJECTION_METHODS = (
    "A projector turns a whole prompt of the source model into one of the target model; the weights"
    " of both models are frozen. Its prompts are scored on the target as they are.",
    "own: the prompt that was tuned on the target for the task. random: a prompt as it is drawn."
    " untrained: through a projector as it is drawn. least_squares: by one matrix that fits the"
    " words which both models know. relative: each row keeps its similarities to such words.",
)


def is_projection(folder: Path) -> bool:
    """Whether a folder holds a table of projected prompts, and no matrix of its own."""
    is_whole = (folder / PROJECTION_RECORD).exists() and (folder / PROJECTION_TABLE).exists()
    return is_whole and not (folder / "transfer.csv").exists()


def projection_parts(folder: Path) -> tuple[str, list[str], list[Markup]]:
    """Builds what the page of projected prompts shows."""
    path = folder / PROJECTION_RECORD
    record, matrix = (
        Fields(read_json(path), path, _PROJECTION_CURE),
        read_transfer(folder / PROJECTION_TABLE),
    )
    told = record.fields("targets").value
    lacking = [target for target in matrix.targets if target not in told]
    if lacking:
        raise InputError(
            f"{path} does not tell {lacking[0]} of {PROJECTION_TABLE}; make it again: "
            f"{_PROJECTION_CURE}"
        )
    learnt = _learnt(record, matrix)
    names = [record.text(f"{side}_backbone") or UNKNOWN for side in ("source", "target")]
    parts = [
        section("scores", "What projected prompts score", _map(record, matrix, learnt)),
        section("means", "What each way is worth", _projection_means(matrix, learnt)),
        _projection_methods(folder, record),
    ]
    return (
        f"Prompts of {names[0]} on {names[1]}",
        _projection_findings(record, matrix, learnt),
        parts,
    )


def _learnt(record: Fields, matrix: TransferMatrix) -> dict[str, Bool[np.ndarray, "N"]]:
    """By trained projector, which of the tasks it was trained on."""
    trained = record.fields("trained_on")
    return {
        name: np.array([target in trained.texts(name) for target in matrix.targets])
        for name in trained.value
        if name in matrix.prompts
    }


def _mean(matrix: TransferMatrix, name: str, rows: Bool[np.ndarray, "N"]) -> float:
    """Mean score of a column over some tasks; NaN where there is none."""
    if name not in matrix.prompts:
        return np.nan
    values = matrix.values[rows, matrix.prompts.index(name)]
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def _projection_findings(
    record: Fields, matrix: TransferMatrix, learnt: dict[str, Bool[np.ndarray, "N"]]
) -> list[str]:
    found = []
    for name, rows in learnt.items():
        parts = []
        for chosen, where in ((rows, "it was trained on"), (~rows, "it was not trained on")):
            count = int(chosen.sum())
            if count:
                score = percent(_mean(matrix, name, chosen), 1)
                tasks = "task" if count == 1 else f"{count} tasks"
                parts.append(f"{score} on the {tasks} {where}{_beside(matrix, chosen)}")
        found.append(f"Prompts of the projector “{name}” score {', and '.join(parts)}.")
    start, steps, every = record.text("warm_start"), record.count("warm_steps"), _all(matrix)
    if start and all(name in matrix.prompts for name in TUNED):
        ends = [percent(_mean(matrix, name, every), 1) for name in TUNED]
        found.append(
            f"{steps} steps of tuning end at {ends[0]} from the prompts of “{start}” and at"
            f" {ends[1]} from a random start, mean over {counted(len(every), 'task')}."
        )
    return found


def _beside(matrix: TransferMatrix, rows: Bool[np.ndarray, "N"]) -> str:
    means = {"in_task": _mean(matrix, OWN, rows), "random": _mean(matrix, RANDOM, rows)}
    known = [f"{name} {percent(mean, 1)}" for name, mean in means.items() if np.isfinite(mean)]
    return f" ({', '.join(known)})" if known else ""


def _all(matrix: TransferMatrix) -> Bool[np.ndarray, "N"]:
    return np.ones(len(matrix.targets), bool)


def _kind(name: str, learnt: dict[str, Bool[np.ndarray, "N"]]) -> str:
    if name in learnt:
        return "projectors"
    if name in TUNED:
        return "tuned on"
    return "target's" if name in (OWN, RANDOM) else "not trained"


def _map(
    record: Fields, matrix: TransferMatrix, learnt: dict[str, Bool[np.ndarray, "N"]]
) -> Markup:
    majority = np.array(
        [record.fields("targets").fields(target).number("majority") for target in matrix.targets]
    )
    framed = {
        (row, matrix.prompts.index(name))
        for name, rows in learnt.items()
        for row in np.flatnonzero(rows).tolist()
    }
    has_majority = np.isfinite(majority).any()
    plot = heat_map(
        HeatMap(
            rows=matrix.targets,
            columns=matrix.prompts,
            row_types=[task_type(target) or "" for target in matrix.targets],
            column_types=[_kind(name, learnt) for name in matrix.prompts],
            values=matrix.values,
            texts=[[decimal(100 * value, 1) for value in row] for row in matrix.values],
            scale_label="score",
            outlined=frozenset(framed),
            side_label=["majority"] if has_majority else [],
            side_texts=[[decimal(100 * value, 1) for value in majority]] if has_majority else [],
            row_axis="task",
            column_axis="prompt",
        ),
        percent=True,
    )
    sizes = (counted(len(matrix.targets), "task"), counted(len(matrix.prompts), "column"))
    label = f"Heat map of scores, {sizes[0]} by {sizes[1]}; means are in the table below."
    metrics = ", ".join(dict.fromkeys(matrix.metrics))
    told = f"Scores in percent ({metrics}). Framed: tasks that the projector was trained on."
    if set(TUNED) & set(matrix.prompts):
        steps, start = record.count("warm_steps"), record.text("warm_start")
        told += f" warm: {steps} steps of tuning from the prompts of “{start}”; vanilla: from"
        told += " a random start."
    svg = stick_rows(to_svg(plot, "projection-map", label), "projection-map")
    return figure(svg, label, told, [PROJECTION_TABLE, PROJECTION_RECORD])


def _projection_means(matrix: TransferMatrix, learnt: dict[str, Bool[np.ndarray, "N"]]) -> Markup:
    rows: list[list[Child]] = []
    every = _all(matrix)
    for name in matrix.prompts:
        parts = (learnt[name], ~learnt[name]) if name in learnt else (~every, ~every)
        means = [_mean(matrix, name, part) for part in (every, *parts)]
        rows.append([name, *(value_cell(percent(mean, 1), mean) for mean in means)])
    head = ["prompt", "all tasks", "trained on", "not trained on"]
    return table(head, rows, "Mean score over tasks", source=[PROJECTION_TABLE, PROJECTION_RECORD])


def _projection_methods(folder: Path, record: Fields) -> Markup:
    versions = {name: str(value) for name, value in record.fields("versions").value.items()}
    projectors = record.fields("projectors").value
    facts: list[tuple[str, Child]] = [
        ("source", record.text("source_backbone")),
        ("target", record.text("target_backbone")),
        ("rows of a prompt", str(record.count("length") or "")),
        ("scored rows", _scored(record)),
        *((f"projector {name}", str(told)) for name, told in projectors.items()),
        ("seed", str(record.count("seed"))),
    ]
    files = [folder / PROJECTION_RECORD, folder / PROJECTION_TABLE]
    facts += version_items(versions, record.text("machine"), record.text("device"), files)
    listed: Sequence[Markup | None] = (
        element("p", "One seed of each projector: differences of a few points mean little."),
        methods_list(_PROJECTION_METHODS),
        definition_list(facts),
        sources(
            [PROJECTION_RECORD, *(["projected/"] if (folder / "projected").is_dir() else [])], "p"
        ),
    )
    return section("provenance", "Methods and versions", *listed)


def _scored(record: Fields) -> str:
    told = [
        f"{name} {each.count('rows')} of {each.text('split')}"
        for name, each in record.fields("targets").each()
    ]
    return ", ".join(told)


# --- The parts of the report on how it was made: training, prompts, versions, commands, notes

_MOST_PANELS = 40


def training_section(study: Study, ordering: Ordering) -> Markup:
    """Shows how the runs learned, and lists the prompts."""
    title = "How the prompts were trained"
    records = ordered_prompts(study, ordering)
    if not records:
        note = missing(
            "There is no folder prompts/ with runs or prompts", commands(study.folder)["tune"]
        )
        return section("training", title, note)
    logged = [record for record in records if record.curve is not None]
    parts: list[Markup | None] = []
    if logged:
        parts.append(
            element(
                "p",
                "Above: score on validation (blue), majority class (dashed), the prompt that was"
                " kept (dot). Below: loss on validation (thick, orange) and on training batches"
                " (thin, gray).",
            )
        )
        panels = [
            _runs_panel(index, record, ordering.prompt_types[record.name])
            for index, record in enumerate(logged[:_MOST_PANELS])
        ]
        parts.append(element("div", *panels, class_="panels"))
        if len(logged) > _MOST_PANELS:
            rest = counted(len(logged) - _MOST_PANELS, "run")
            parts.append(element("p", f"{rest} more have no figure here.", class_="meta"))
    else:
        parts.append(
            element("p", "There are no logs (metrics.jsonl) of the runs, so there are no curves.")
        )
    return section("training", title, *parts, _prompt_table(records, ordering))


def ordered_prompts(study: Study, ordering: Ordering) -> list[PromptRecord]:
    """Lists the prompts of the folder in the order of the page."""
    return [study.prompts[name] for name in ordering.every if name in study.prompts]


def provenance_section(study: Study, ordering: Ordering) -> Markup:
    """Says how it was computed, what was run, on what, with which settings."""
    facts = study.record
    written = [study.folder / name for name in STUDY_FILES]
    written += [study.folder / "prompts" / name / "result.json" for name in study.prompts]
    told: list[tuple[str, Child]] = []
    if facts is not None:
        random = ", ".join(f"{name} {value}" for name, value in facts.random_start.items())
        told += [
            ("backbone", facts.backbone),
            ("scored rows", _rows_told(study)),
            ("untrained prompt", random or None),
            ("time for the matrix", duration(facts.elapsed_s)),
            ("command", element("code", facts.command) if facts.command else None),
        ]
    if study.neurons is not None:
        n_prompts, n_layers, n_neurons = study.neurons
        sizes = (counted(n_prompts, "prompt"), counted(n_layers, "layer"))
        told.append(("neurons", f"{', '.join(sizes)} of {counted(n_neurons, 'neuron')}"))
    told += _run_settings(list(study.prompts.values()))
    versions = (facts.versions, facts.machine, facts.device) if facts else ({}, None, None)
    told += version_items(*versions, written)
    note = None
    if facts is None:
        note = missing(
            "There is no transfer.json, so versions and device are not known",
            commands(study.folder)["transfer"],
        )
    files = [name for name in ("transfer.json", "prompts/") if (study.folder / name).exists()]
    return section(
        "provenance",
        "Methods and versions",
        methods_list(methods_text(study)),
        note,
        definition_list(told),
        sources(files, "p"),
        _row_table(study, ordering),
    )


def note_section(study: Study, ordering: Ordering) -> Markup:
    """Lists what is undefined, missing or worth knowing."""
    lines = notes(study, ordering)
    if not lines:
        return section("notes", "Notes", element("p", "Nothing is missing or undefined."))
    items = [element("li", line) for line in lines]
    return section("notes", "Notes", element("ul", *items, class_="notes"))


def notes(study: Study, ordering: Ordering) -> list[str]:
    """Collects what is undefined, missing or worth knowing."""
    lines = list(study.record.notes if study.record else ())
    lines += study.types.notes if study.types else ()
    lines += _own_notes(study, ordering, "\n".join(lines))
    if study.correlations is not None:
        # The command says why; without its notes the gaps themselves are told.
        lines += study.correlations.notes or _undefined_notes(study.correlations)
    for part in (study.choices, study.masks):
        lines += part.notes if part else ()
    compared = set(study.similarities.names if study.similarities else ())
    moved = set(ordering.sources)
    if compared and moved:
        lines += _unlike("indicators.csv", moved - compared, "transfer.csv")
        lines += _unlike("transfer.csv", compared - moved - {study.random}, "indicators.csv")
    unfinished = [record.name for record in study.prompts.values() if not record.finished]
    if unfinished:
        lines.append(f"Not finished, so not used elsewhere: {_names(unfinished)}.")
    without = [n for n, t in {**ordering.target_types, **ordering.prompt_types}.items() if t == NO_TYPE]
    if without and not (study.types and study.types.notes):
        lines.append(f"No type is known for {_names(without)}; left out of means by type.")
    return list(dict.fromkeys(lines))


def _own_notes(study: Study, ordering: Ordering, told: str) -> list[str]:
    """Gaps of the matrix; what the command has told already is not told twice."""
    lines = []
    without = [t for t in ordering.targets if t not in ordering.in_task and f"{t} has" not in told]
    if without:
        lines.append(f"Relative performance is undefined without own prompt: {_names(without)}.")
    if study.transfer is not None:
        gaps = int(np.isnan(study.transfer.values).sum())
        if gaps:
            lines.append(f"{counted(gaps, 'pair')} of task and prompt were not measured.")
    return lines


def _undefined_notes(found: CorrelationRecords) -> list[str]:
    """Correlations that do not exist because one side is the same for all sources."""
    lines = []
    for part, which in (
        (found.excluding_in_task, "excluding_in_task"),
        (found.including_in_task, "including_in_task"),
    ):
        for name, each in part.items():
            undefined = [target for target, v in each.per_target.items() if np.isnan(v)]
            if undefined:
                lines.append(
                    f"The correlation of {name} ({which}) is undefined for {_names(undefined)}:"
                    " fewer than three sources, or a constant column (values or scores are equal)."
                )
    return lines


def _unlike(lacks: str, names: set[str], has: str) -> list[str]:
    if not names:
        return []
    return [f"{has} has prompts that {lacks} has not: {_names(sorted(names))}; make both anew."]


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _runs_panel(index: int, record: PromptRecord, kind: str) -> Markup:
    assert record.curve is not None
    task = record.card.task if record.card else UNKNOWN
    told = kind if task == record.name else f"{task} · {kind}"
    plot = learning_curve(record.curve, record.metric or "score", record.majority, record.best_step)
    score = decimal(record.score, 3)
    label = f"Training of {record.name}: {record.metric or 'score'} on validation {score}"
    caption = f"{told}: {record.metric or 'score'} {score} on validation, step {_steps(record)}."
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
            decimal(record.majority, 3),
            _steps(record),
            value_cell(duration(record.elapsed_s), record.elapsed_s),
        ]
        for record in records
    ]
    head = ["prompt", "task", "type", "metric", "score", "majority", "step kept / all", "time"]
    caption = "The prompts; scores are on validation"
    return table(head, rows, caption, numbers_from=4, source=["prompts/"])


def _steps(record: PromptRecord) -> str:
    kept = UNKNOWN if record.best_step is None else f"{record.best_step:,}"
    return kept if record.steps is None else f"{kept} / {record.steps:,}"


def _rows_told(study: Study) -> str | None:
    assert study.record is not None
    rows = [target.rows for target in study.record.targets.values() if target.rows is not None]
    split = f" of {study.record.split}" if study.record.split else ""
    return f"{sum(rows):,}{split} for each prompt, over {counted(len(rows), 'task')}"


def _row_table(study: Study, ordering: Ordering) -> Markup | None:
    if study.record is None or not study.record.targets:
        return None
    told = study.record.targets
    rows = [
        [
            name,
            told[name].task,
            ordering.target_types[name],
            told[name].split or study.record.split or UNKNOWN,
            told[name].in_task_prompt or UNKNOWN,
            UNKNOWN if told[name].rows is None else f"{told[name].rows:,}",
            decimal(told[name].majority, 4),
        ]
        for name in ordering.targets
        if name in told
    ]
    head = ["target", "task", "type", "split", "own prompt", "rows", "majority"]
    caption = "The target tasks and the rows that were scored"
    whole = table(head, rows, caption, numbers_from=5, source=["transfer.json"])
    return details("Rows by task", whole)


def _run_settings(records: Sequence[PromptRecord]) -> list[tuple[str, Child]]:
    """How many runs there are, and what they have in common."""
    runs = [record for record in records if record.settings]
    if not runs:
        return []
    seconds = [record.elapsed_s for record in runs if np.isfinite(record.elapsed_s)]
    told = f"{len(runs)}, together {duration(sum(seconds))}"
    return [("training runs", told), *shared_settings([record.settings for record in runs])]


# --- The page of a sweep: the best setting of each task, every setting over its seeds, every run

RUNS, SETTINGS, SWEEP_RECORD = "runs.csv", "settings.csv", "sweep.json"
_SWEEP_METHODS = (
    "The weights of the model are frozen; a prompt's rows are all that is trained. Of each run the"
    " prompt that scores best on validation is kept.",
    "A setting is all runs that differ by their seed alone: mean and standard deviation (n - 1) are"
    " over its seeds. The best setting of a task is chosen on validation; test has no part in it.",
)
_RUN_COLUMNS = ("run", "setting", "state", "task", "backbone", "seed")
_COLUMNS = ("setting", "task", "backbone", "metric", "seeds", "best", "validation")
_SWEEP_NUMBERS = ("validation", "validation_std", "test", "test_std")

Row = Mapping[str, str]


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds the tables of a sweep."""
    return (folder / RUNS).exists() and (folder / SETTINGS).exists()


def sweep_parts(folder: Path) -> tuple[str, list[str], list[Markup]]:
    """Builds what the page of a sweep shows."""
    runs = read_table(folder / RUNS, _RUN_COLUMNS)
    settings = read_table(folder / SETTINGS, _COLUMNS)
    for line, row in enumerate(settings, 2):
        for column in _SWEEP_NUMBERS:
            if row.get(column):
                read_number(folder / SETTINGS, line, row, column)
    places: dict[tuple[str, str], list[Row]] = {}
    for row in settings:
        places.setdefault((row["task"], row["backbone"]), []).append(row)
    title = f"Sweep of {len(runs)} runs"
    parts = [
        section(f"task-{number}", f"{task} on {backbone}", *_task_part(number, task, rows))
        for number, ((task, backbone), rows) in enumerate(places.items())
    ]
    return (
        title,
        _sweep_findings(runs, places),
        [*parts, _runs_part(runs), _methods_part(folder, runs)],
    )


def _sweep_findings(
    runs: Sequence[Row], places: Mapping[tuple[str, str], Sequence[Row]]
) -> list[str]:
    found = []
    for (task, backbone), rows in places.items():
        best = next(row for row in rows if row["best"] == "True")
        told = f"{task} on {backbone}: {best['setting']} is best, validation {best['metric']} "
        told += _spread(best, "validation")
        if best.get("test"):
            told += f", test {_spread(best, 'test')}"
        rest = len(rows) - 1
        found.append(told + (f"; {rest} other setting{'s' * (rest > 1)}" if rest else "") + ".")
    waiting = [row for row in runs if row["state"] != "done"]
    if waiting:
        states = sorted({row["state"] for row in waiting})
        found.append(f"{len(waiting)} of {len(runs)} runs are not in it ({', '.join(states)}).")
    return found


def _spread(row: Row, split: str) -> str:
    mean, deviation = (_number(row, name) for name in (split, f"{split}_std"))
    return f"{mean:.3f}" + ("" if math.isnan(deviation) else f" ± {deviation:.3f}")


def _number(row: Row, name: str) -> float:
    text = row.get(name, "")
    return float(text) if text else math.nan


def _task_part(number: int, task: str, rows: Sequence[Row]) -> list[Markup]:
    ordered = sorted(rows, key=lambda row: -_number(row, "validation"))
    label = f"Score on validation of every setting for {task}"
    svg = to_svg(plot_settings(ordered), f"sweep-{number}", label)
    caption = "Mean on validation, the best setting in blue on top; the bar is one standard"
    caption += " deviation over seeds, to both sides."
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
    whole = table(head, cells, f"Settings for {task}", source=[SETTINGS])
    return [figure(svg, label, caption, [SETTINGS]), whole]


def plot_settings(rows: Sequence[Row]) -> Figure:
    """Draws the mean of every setting with its deviation over seeds, the best one on top."""
    pictured, axes = new_figure(560, 46 + 26 * len(rows))
    for place, row in enumerate(rows):
        mean, deviation = _number(row, "validation"), _number(row, "validation_std")
        color = BLUE if place == 0 else GRAY
        if not math.isnan(deviation):
            axes.hlines(place, mean - deviation, mean + deviation, color=color, linewidth=2)
        axes.scatter([mean], [place], s=40, color=color, zorder=3)
    names = [plain(row["setting"].partition("+")[2] or row["setting"], 40) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=FONT)
    axes.grid(axis="x", color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    metric = plain(rows[0].get("metric") or "score")
    axes.set_xlabel(f"{metric} on validation", color=MUTED, fontsize=FONT, parse_math=False)
    axes.set_ylabel("setting", color=MUTED, fontsize=FONT)
    return pictured


def _runs_part(runs: Sequence[Row]) -> Markup:
    columns = [name for name in runs[0] if name not in ("setting", "backbone")]
    rows = [[_sweep_short(row[name]) for name in columns] for row in runs]
    whole = table(columns, rows, "Every run", source=[RUNS])
    return section("runs", "Every run", details(f"{len(runs)} runs", whole))


def _methods_part(folder: Path, runs: Sequence[Row]) -> Markup:
    record = read_fields(folder / SWEEP_RECORD, "jpt sweep") or Fields(
        {}, folder / SWEEP_RECORD, "jpt sweep"
    )
    configs = [f"runs/{row['run']}/config.json" for row in runs]
    read = [read_fields(folder / config, "jpt sweep") for config in configs]
    versions = {name: str(v) for name, v in record.fields("versions").value.items()}
    files = [folder / name for name in (RUNS, SETTINGS)]
    facts = shared_settings([config.value for config in read if config is not None])
    facts += version_items(versions, record.text("machine"), record.text("device"), files)
    named = [name for name in (SWEEP_RECORD, "runs/") if (folder / name).exists()]
    parts = (methods_list(_SWEEP_METHODS), definition_list(facts), sources(named, "p"))
    return section("provenance", "Methods and versions", *parts)


def _sweep_short(text: str) -> str:
    """Three digits behind the point are enough to read; the file has them all."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if text.lstrip("-").isdigit() or len(text) < 6 else f"{value:.3f}"


def sweep_header(title: str, findings: Sequence[str]) -> Markup:
    """Makes the top of the page."""
    items = [element("li", text) for text in findings]
    return element("header", element("h1", title), element("ul", *items, class_="findings"))


# --- The parts of the report on what prompts do on other tasks: the matrix, and means by type


def transfer_section(study: Study, ordering: Ordering) -> Markup:
    """Shows the zero-shot matrix."""
    title = "What every prompt does on every task"
    if study.transfer is None:
        note = missing(
            "There is no transfer.csv: no prompt was tried on another task",
            commands(study.folder)["transfer"],
        )
        return section("transfer", title, note)
    lead = element(
        "p",
        "Each prompt is put in front of every task as it is, without any further training"
        " (zero-shot transfer). Numbers are scores in percent",
        _metrics(study),
        "; colors tell the score relative to the prompt that was tuned for the task."
        if study.relative
        else ".",
    )
    parts: list[Markup] = [lead]
    if study.relative is None or study.computed_relative:
        what = "relative scores are computed from transfer.csv"
        if study.relative is None:
            what = "no target has an own prompt, so colors tell the scores themselves"
        make = commands(study.folder)["transfer"]
        parts.append(missing(f"There is no relative.csv; {what}", make))
    parts.append(_matrix_figure(study, ordering))
    parts.append(_transfer_score_table(study, ordering))
    if study.relative is not None:
        parts.append(_relative_table(study, ordering))
    return section("transfer", title, *parts)


def type_section(study: Study, ordering: Ordering, found: Sequence[Finding]) -> Markup:
    """Shows means over pairs of one type and of two types."""
    items = [finding_item(each) for each in found if each.topic in ("types", "overlap")]
    parts: list[Markup | None] = [element("ul", *items, class_="findings") if items else None]
    picture = _strip_figure(study, ordering)
    tables: list[Markup] = []
    if study.types is not None:
        tables = _type_tables(study.types, _type_order(ordering))
    else:
        parts.append(
            missing(
                "There is no types.json: similarities are not compared by type",
                commands(study.folder)["indicators"],
            )
        )
    parts.append(element("div", picture, element("div", *tables), class_="columns"))
    return section("types", "Tasks of the same type and of others", *parts)


def side_scores(study: Study, ordering: Ordering) -> dict[str, Float64[np.ndarray, "N"]]:
    """Collects what stands beside the matrix."""
    told = study.record.targets if study.record else {}
    nan = float("nan")
    in_task = np.array([in_task_score(study, ordering, target) for target in ordering.targets])
    majority = np.array([told[t].majority if t in told else nan for t in ordering.targets])
    baselines = {
        label: values_at(study.transfer, ordering.targets, [name])[:, 0]
        for label, name in _baselines(study).items()
    }
    return {**baselines, "own prompt": in_task, "majority": majority}


def _baselines(study: Study) -> dict[str, str]:
    """What a reader is told a baseline is, and its column; one without a prompt where it is."""
    found = {BASELINE: study.random}
    if study.transfer is not None and study.untouched in study.transfer.prompts:
        found[NO_PROMPT] = study.untouched
    return found


def _metrics(study: Study) -> str:
    assert study.transfer is not None
    names = list(dict.fromkeys(study.transfer.metrics))
    return f" ({', '.join(names)})"


def _matrix_figure(study: Study, ordering: Ordering) -> Markup:
    scores = values_at(study.transfer, ordering.targets, ordering.sources)
    sides = side_scores(study, ordering)
    sides = {label: column for label, column in sides.items() if np.isfinite(column).any()}
    shown = study.transfer if study.relative is None else study.relative
    colors = values_at(shown, ordering.targets, ordering.sources)
    columns = [_baselines(study).get(label, "") for label in sides]
    side_colors = values_at(shown, ordering.targets, columns).T
    plot = heat_map(
        HeatMap(
            rows=ordering.targets,
            columns=ordering.sources,
            row_types=[ordering.target_types[name] for name in ordering.targets],
            column_types=[ordering.prompt_types[name] for name in ordering.sources],
            values=colors,
            texts=[[_transfer_cell(value) for value in line] for line in scores],
            scale_label="score relative to the task's own prompt" if study.relative else "score",
            outlined=_in_task_cells(ordering),
            side_label=list(sides),
            side_texts=[[_transfer_cell(value) for value in column] for column in sides.values()],
            side_values=side_colors if sides else None,
            row_axis="target task",
            column_axis="source prompt",
        ),
        percent=True,
    )
    label = (
        f"Heat map of {counted(len(ordering.targets), 'target task')} by"
        f" {counted(len(ordering.sources), 'source prompt')}; the numbers are in the table below."
    )
    told = "Rows: target tasks. Columns: source prompts, both in groups by type of task."
    told += " Framed: the task's own prompt." if ordering.in_task else ""
    for name, meaning in (
        (BASELINE, "the prompt before any training"),
        (NO_PROMPT, "the untouched model"),
        ("own prompt", "the score that relative numbers are divided by"),
        ("majority", "the score of always answering the commonest class"),
    ):
        told += f" {name.capitalize()}: {meaning}." if name in sides else ""
    told += " Gray: not measured, or without own prompt." if np.isnan(colors).any() else ""
    svg = stick_rows(to_svg(plot, "transfer-map", label), "transfer-map")
    return figure(svg, label, told, _matrix_files(study))


def _matrix_files(study: Study) -> list[str]:
    files = ["transfer.csv", study.relative_file, "transfer.json" if study.record else None]
    return list(dict.fromkeys(name for name in files if name))


def _in_task_cells(ordering: Ordering) -> frozenset[tuple[int, int]]:
    place = {name: index for index, name in enumerate(ordering.sources)}
    pairs = ((i, ordering.in_task.get(target)) for i, target in enumerate(ordering.targets))
    return frozenset((i, place[in_task]) for i, in_task in pairs if in_task in place)


def _transfer_cell(value: float) -> str:
    return decimal(100 * value, 1)


def _transfer_score_table(study: Study, ordering: Ordering) -> Markup:
    assert study.transfer is not None
    scores = values_at(study.transfer, ordering.targets, ordering.sources)
    metric = dict(zip(study.transfer.targets, study.transfer.metrics, strict=True))
    sides = side_scores(study, ordering)
    rows = [
        [target, ordering.target_types[target], metric[target]]
        + [decimal(value, 4) for value in (*scores[i], *(of[i] for of in sides.values()))]
        for i, target in enumerate(ordering.targets)
    ]
    names = [study.random if label == BASELINE else label for label in sides]
    head = ["target", "type", "metric", *ordering.sources, *names]
    files = ("transfer.csv", *(["transfer.json"] if study.record else []))
    told = "Score of each prompt on each task"
    return details("Scores as a table", table(head, rows, told, numbers_from=3, source=files))


def _relative_table(study: Study, ordering: Ordering) -> Markup:
    baselines = _baselines(study)
    columns = (*ordering.sources, *baselines.values())
    heads = [*ordering.sources, *(study.random if n == BASELINE else n for n in baselines)]
    values = values_at(study.relative, ordering.targets, columns)
    rows = [
        [target, *(decimal(value, 4) for value in values[i])]
        for i, target in enumerate(ordering.targets)
    ]
    caption = "Score of each prompt over the score of the task's own prompt"
    files = [study.relative_file or "transfer.csv"]
    whole = table(["target", *heads], rows, caption, source=files)
    return details("Relative scores as a table", whole)


def _strip_figure(study: Study, ordering: Ordering) -> Markup | None:
    found = transfer_pairs(study, ordering)
    groups = {
        "same type": [move.relative for move in found if move.same_type],
        "other type": [move.relative for move in found if move.same_type is False],
        BASELINE: list(random_values(study, ordering).values()),
    }
    if not groups["same type"] and not groups["other type"]:
        return None
    means = "; ".join(
        f"{name} {percent(float(np.mean(values)))} over {counted(len(values), 'pair')}"
        for name, values in groups.items()
        if values
    )
    label = f"Relative scores of all moves, by type. Means: {means}."
    told = "One point a pair of task and prompt, own pairs left out; lines are means: "
    told += f"{means}."
    plot = strips(groups, "score relative to own prompt", "type of the source's task")
    files = [study.relative_file or "transfer.csv"]
    return figure(to_svg(plot, "type-strips", label), label, told, files)


def _type_order(ordering: Ordering) -> list[str]:
    kinds = [ordering.target_types[name] for name in ordering.targets]
    return list(dict.fromkeys([*kinds, *(ordering.prompt_types[name] for name in ordering.every)]))


def _type_tables(types: TaskTypeRecord, order: Sequence[str]) -> list[Markup]:
    parts = []
    if types.by_type:
        told = {name for line in types.by_type.values() for name in line}
        sources = [name for name in order if name in told]
        rows = [
            [target, *(percent(types.by_type[target].get(s, np.nan)) for s in sources)]
            for target in order
            if target in types.by_type
        ]
        caption = "Mean relative score by type of target (rows) and of source, own pairs left out"
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
        head += ["pairs, same", "pairs, different"]
        files = ["types.json"]
        told = "Mean similarity of pairs of prompts, by every indicator"
        every = table(head, rows, told, source=files)
        shown = [row for row in rows if "layers" not in row[0] and "row 0" not in row[0]]
        parts.append(element("h3", "How alike prompts are"))
        told = "Mean similarity of pairs of prompts, by type of task"
        parts.append(table(head, shown, told, source=files))
        if len(shown) < len(rows):
            parts.append(details("All indicators", every))
    return [join(parts)]


# --- The page of a warm-start study: how fast each start learns, and what it ends at

WARM_START_TABLE = "curves.csv"
_WARM_START_CURE = "jpt warm-start"
_SPEEDS = ("convergence_speed_up", "comparable_speed_up")


def is_warm_start(folder: Path) -> bool:
    """Whether a folder holds a warm-start study, and no matrix that a page would be about."""
    return (folder / WARM_START_RECORD).exists() and not (folder / "transfer.csv").exists()


def warm_start_parts(folder: Path) -> tuple[str, list[str], list[Markup]]:
    """Builds what the page of a warm-start study shows."""
    path = folder / WARM_START_RECORD
    record = Fields(read_json(path), path, _WARM_START_CURE)
    curves = read_curves(record, path)
    title = f"Warm start of {record.text('task')} on {record.text('backbone')}"
    parts = [
        section("curves", "How fast each start learns", _warm_start_figure(record, curves)),
        section("speed", "What a start saves and gains", _scores(record), _speeds(record)),
        _warm_start_methods(folder, record),
    ]
    return title, _warm_start_findings(record), parts


def _warm_start_findings(record: Fields) -> list[str]:
    found = []
    for name, compared in record.fields("comparisons").each():
        speeds = [compared.fields(kind).number("mean") for kind in _SPEEDS]
        told = f"Started from {name}, training"
        if _told(speeds[0]):
            told += f" converges in {_times(speeds[0])} a random start takes and"
        if _told(speeds[1]):
            told += f" reaches that start's best score in {_times(speeds[1])} it took"
        else:
            told += " never reaches a random start's best score"
        gain = compared.fields("gain").number("mean")
        found.append(
            f"{told}; {record.text('metric')} changes by {_warm_start_points(gain)} points."
        )
    return found


def _times(speed_up: float) -> str:
    return f"{percent(1 / speed_up)} of the steps" if speed_up > 0 else "unknown steps"


def _told(value: float) -> bool:
    return math.isfinite(value)


def _warm_start_points(share: float) -> str:
    return decimal(100 * share, 1, sign=True)


def _warm_start_figure(record: Fields, curves: Curves) -> Markup:
    metric = record.text("metric") or "score"
    plot = plot_curves(curves, "", metric, "")
    plot.axes[0].set_title("", loc="left")
    seeds = max(len(values) for _, values in curves.values())
    ends = "; ".join(f"{name} {float(v.mean(0).max()):.3f}" for name, (_, v) in curves.items())
    label = f"{metric} on validation over training; best means: {ends}."
    told = f"The random start is gray, with round signs. Lines are means over {_seeds(seeds)}"
    told += ", pale bands go from the lowest to the highest seed." if seeds > 1 else "."
    return figure(
        to_svg(plot, "warm-start", label), label, told, [WARM_START_RECORD, WARM_START_TABLE]
    )


def _seeds(count: int) -> str:
    return counted(count, "seed")


def _scores(record: Fields) -> Markup:
    runs = [
        Fields(run, record.path, _WARM_START_CURE, "a run")
        for run in record.value.get("runs") or []
    ]
    names = dict.fromkeys(run.text("run") or UNKNOWN for run in runs)
    rows: list[list[Child]] = []
    for name in names:
        in_task = [run for run in runs if run.text("run") == name]
        means = [
            np.mean([run.number(of) for run in in_task]) for of in ("at_start", "best", "final")
        ]
        gain = record.fields("comparisons").fields(name).fields("gain")
        cells = [decimal(float(mean), 3) for mean in means]
        rows.append(
            [
                name,
                str(len(in_task)),
                *cells,
                _warm_start_points(gain.number("mean")),
                _warm_start_bounds(gain, 100),
            ]
        )
    split = record.text("final_split") or "the end"
    head = ["start", "seeds", "at step 0", "best", split, "gain, points", "95% interval"]
    told = f"Mean {record.text('metric')}; at step 0 and best on validation"
    return table(head, rows, told, source=[WARM_START_RECORD])


def _speeds(record: Fields) -> Markup:
    rows: list[list[Child]] = []
    for name, compared in record.fields("comparisons").each():
        cells: list[Child] = []
        for kind in _SPEEDS:
            found = compared.fields(kind)
            mean = found.number("mean")
            text = f"{mean:.2f} times" if _told(mean) else "not reached"
            cells += [value_cell(text, mean), _warm_start_bounds(found, 1)]
        rows.append([name, *cells])
    head = ["start", "convergence", "95% interval", "comparable result", "95% interval"]
    return table(head, rows, "Speed-ups against the random start", source=[WARM_START_RECORD])


def _warm_start_bounds(found: Fields, times: float) -> str:
    ends = [times * found.number(end) for end in ("low", "high")]
    if not all(map(_told, ends)):
        return UNKNOWN
    return " to ".join(decimal(end, 2 if times == 1 else 1, sign=times != 1) for end in ends)


def _warm_start_methods(folder: Path, record: Fields) -> Markup:
    texts = [
        f"{name.replace('_', ' ').capitalize()}: {text}."
        for name, text in record.fields("definitions").value.items()
    ]
    versions = {name: str(v) for name, v in record.fields("versions").value.items()}
    facts: list[tuple[str, Child]] = [
        ("task", record.text("task")),
        ("backbone", record.text("backbone")),
        ("sources", ", ".join(record.fields("sources").value)),
        ("seeds", ", ".join(map(str, record.value.get("seeds") or []))),
        *shared_settings([record.fields("settings").value]),
    ]
    files = [folder / WARM_START_RECORD, folder / WARM_START_TABLE]
    facts += version_items(versions, record.text("machine"), record.text("device"), files)
    notes = [element("li", note) for note in record.texts("notes")]
    listed: Sequence[Markup | None] = (
        methods_list(texts),
        definition_list(facts),
        element("h3", "Notes") if notes else None,
        element("ul", *notes, class_="notes") if notes else None,
        sources([WARM_START_RECORD], "p"),
    )
    return section("provenance", "Methods and versions", *listed)


# --- The report of a study: one HTML page that needs nothing else

PAGE = "report.html"
# The sentences at the top; what else was found stands in its own part of the page.
_SUMMARY = ("training", "types", "best_source", "correlation", "choice", "masks", "caution")
# Where the numbers of these sentences stand; the other topics are named as their part.
_PLACES = {"best_source": "transfer", "caution": "correlation"}
_PARTS = (
    ("transfer", "transfer"),
    ("overlap", "neurons"),
    ("embeddings", "vectors"),
    ("correlation", "correlation"),
    ("choice", "choosing"),
    ("masks", "masks"),
    ("types", "types"),
    ("training", "training"),
    ("provenance", "methods"),
    ("notes", "notes"),
)


def write_report(folder: str | Path) -> Path:
    """Writes the report of a study: figures, tables, and sentences that say what was found.

    The page holds everything in itself and is written anew each time; equal files give equal
    bytes. It needs no backbone: it reads what the commands before have written.

    Args:
        folder: of the study, as ``jpt transfer --out`` and ``jpt indicators --out`` filled it, or
            of a sweep, of a warm start, or of ``jpt project evaluate``. What is missing is said in
            the page, with the command that makes it.

    Returns:
        The path of ``report.html`` in that folder.

    Raises:
        InputError: there is no such folder, it holds no part of a study, a file of it is broken,
            or the page cannot be written.

    Example:
        >>> import tempfile
        >>> study = Path(tempfile.mkdtemp())
        >>> text = "target_task,source_prompt,metric,value\\nimdb,imdb,accuracy,0.75\\n"
        >>> _ = (study / "transfer.csv").write_text(text)
        >>> report(study).name
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
    """What builds the page of a folder that is no study of transfer."""
    if is_sweep(folder):
        return sweep_parts
    if is_projection(folder):
        return projection_parts
    return warm_start_parts if is_warm_start(folder) else None


def summarize(folder: str | Path) -> list[str]:
    """Says what a study found: the sentences at the top of its page."""
    parts_of = _other_study(Path(folder))
    if parts_of is not None:
        return parts_of(Path(folder))[1]
    study, ordering = prepare(folder)
    return [found.text for found in find(study, ordering) if found.topic in _SUMMARY]


def prepare(folder: str | Path) -> tuple[Study, Ordering]:
    """Reads a study and lays it out."""
    study = read_study(folder)
    ordering = order_study(study)
    return with_relative(study, ordering), ordering


def build_page(study: Study, ordering: Ordering, found: Sequence[Finding]) -> str:
    """Builds the page of a study."""
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
    told = [study.record.backbone] if study.record else []
    told += [record.card.backbone for record in study.prompts.values() if record.card]
    return list(dict.fromkeys(name for name in told if name))


def _title(study: Study) -> str:
    names = _backbones(study)
    return f"Prompt transfer on {', '.join(names)}" if names else "Prompt transfer"


def _header(study: Study, ordering: Ordering, found: Sequence[Finding]) -> Markup:
    n_prompts = len(ordering.sources or ordering.prompts or study.prompts)
    facts = [counted(n_prompts, "prompt")]
    if ordering.targets:
        facts.append(counted(len(ordering.targets), "target task"))
        kinds = dict.fromkeys(ordering.target_types[name] for name in ordering.targets)
        facts.append(f"{counted(len(kinds), 'type')} ({', '.join(kinds)})")
    shown = [finding for finding in found if finding.topic in _SUMMARY]
    items = [finding_item(each, _PLACES.get(each.topic, each.topic)) for each in shown]
    if not items:
        items = [element("li", "Nothing can be concluded yet: parts of the study are missing.")]
    links = [element("a", name, href=f"#{place}") for place, name in _PARTS]
    return element(
        "header",
        element("h1", _title(study)),
        element("p", " · ".join(facts), class_="meta"),
        element("ul", *items, class_="findings"),
        element("nav", join(links), aria_label="Parts of this page"),
    )
