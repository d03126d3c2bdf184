"""The part of the report on whether alike prompts move better: correlations, and their scatter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from jpt.analysis.choice import shown_rankings
from jpt.analysis.correlation_intervals import mean_interval
from jpt.analysis.curves import window_curve
from jpt.analysis.figures_indicators import indicator_panel
from jpt.analysis.finding import Finding
from jpt.analysis.indicator_names import (
    EMBEDDING,
    MEANINGS,
    OVERLAP,
    OVERLAP_ALL,
    indicator_label,
    windows,
)
from jpt.analysis.indicators import WITH_ROW0
from jpt.analysis.layout import Layout, Move, moves
from jpt.analysis.overlap_findings import standard_error
from jpt.analysis.page import (
    Child,
    Markup,
    bar_cell,
    details,
    element,
    figure,
    finding_item,
    join,
    missing,
    section,
    table,
)
from jpt.analysis.plots import to_svg
from jpt.analysis.study import Study, commands
from jpt.analysis.study_facts import Correlation, Correlations
from jpt.analysis.wording import UNKNOWN, counted, decimal

_FILES = ("correlation.json",)
_NUMBERS = ("mean_over_targets", "pooled_relative", "pooled_raw")


def correlation_section(study: Study, layout: Layout, found: Sequence[Finding]) -> Markup:
    """Holds the indicators against what the moves did."""
    title = "Do similar prompts move better?"
    if study.correlations is None:
        note = missing("There is no correlation.json", commands(study.folder)["indicators"])
        return section("correlation", title, note, _scatter_figures(study, layout))
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
                class_="words",
            ),
            class_="beside",
        ),
        _per_target_table(study.correlations),
        _scatter_figures(study, layout),
    )


def _shown(table_: Mapping[str, Correlation]) -> list[str]:
    """The embedding indicators, ON, its best window, and all layers."""
    best = _best_window(table_)
    wanted = [*EMBEDDING, OVERLAP, best, OVERLAP_ALL]
    return [name for name in wanted if name is not None and name in table_]


def _best_window(table_: Mapping[str, Correlation]) -> str | None:
    known = [n for n in windows(table_) if np.isfinite(table_[n].mean_over_targets)]
    return max(known, key=lambda n: table_[n].mean_over_targets, default=None)


def _correlation_table(found: Correlations) -> Markup:
    out, whole = found.own_out, found.own_in
    parts = [part for part in (out, whole) if part]
    names = _shown(out or whole)
    best = [
        max((getattr(part[n], number) for n in names if n in part), key=_rank)
        for part in parts
        for number in _NUMBERS
    ]
    rows: list[list[Child]] = []
    for name in names:
        numbers = [getattr(p[name], n) if name in p else np.nan for p in parts for n in _NUMBERS]
        cells = [_rho_cell(v, v == top) for v, top in zip(numbers, best, strict=True)]
        first = (out or whole)[name]
        known = [v for v in first.per_target.values() if np.isfinite(v)]
        sure = [f"±{decimal(standard_error(known), 2)}", _bounds(known)]
        label = _row_label(name, out or whole)
        rows.append([label, str(first.n_targets), cells[0], *sure, *cells[1:]])
    over = [("", 2)]
    over += [("own prompts left out", 5)] if out else []
    over += [("own prompts included", 3 if out else 5)] if whole else []
    columns = ["mean over targets", "pooled, relative", "pooled, raw"] * len(parts)
    head = ["indicator", "n targets", columns[0], "standard error", "95% interval", *columns[1:]]
    told = "Spearman's rho; the highest of each column is bold"
    return table(head, rows, told, over=over, source=_FILES)


def _rank(value: float) -> float:
    return value if np.isfinite(value) else -2.0


def _rho_cell(value: float, strong: bool) -> Markup:
    known = bool(np.isfinite(value))
    return bar_cell(decimal(value, 2, sign=True), value if known else 0.0, strong and known)


def _row_label(name: str, table_: Mapping[str, Correlation]) -> str:
    if name == OVERLAP:
        return "ON, default layers"
    if name == _best_window(table_):
        return f"{indicator_label(name)} (best window)"
    return indicator_label(name)


def _best_window_note(found: Correlations) -> Markup | None:
    if _best_window(found.own_out or found.own_in) is None:
        return None
    return element(
        "p",
        "The best window was chosen by the very numbers that it is judged by, so it looks better"
        " than it would on new tasks; the default layers were fixed before. Mean over targets:"
        " sources are ranked for each task on its own. Pooled: all pairs in one ranking, by"
        " relative or by raw score.",
        class_="facts",
    )


def _per_target_table(found: Correlations) -> Markup | None:
    part = found.own_out or found.own_in
    targets = list(dict.fromkeys(t for each in part.values() for t in each.per_target))
    if not targets:
        return None
    which = "own prompts left out" if found.own_out else "own prompts included"
    rows = [
        [
            indicator_label(name),
            *(decimal(each.per_target.get(t, np.nan), 2, sign=True) for t in targets),
            *(decimal(getattr(each, number), 2, sign=True) for number in _NUMBERS),
        ]
        for name, each in part.items()
    ]
    head = ["indicator", *targets, "mean", "pooled, relative", "pooled, raw"]
    caption = f"Spearman's rho of every indicator and task, {which}"
    whole = table(head, rows, caption, source=_FILES)
    return details("Every indicator, task by task", whole)


def _bounds(values: Sequence[float]) -> str:
    interval = mean_interval(values)
    return UNKNOWN if interval is None else " to ".join(decimal(v, 2, sign=True) for v in interval)


def _interval_note(found: Correlations) -> Markup:
    """What the intervals are, and how few tasks they come from."""
    count = max((of.n_targets for of in (found.own_out or found.own_in).values()), default=0)
    few = " With so few tasks they are rough: take them for no more than a warning."
    return element(
        "p",
        f"95% intervals of the means: percentile bootstrap over {counted(count, 'task')}, widened"
        " for small numbers of tasks. Two indicators are compared by the interval of their"
        " difference, task by task, which can be much narrower." + (few if count < 20 else ""),
        class_="facts",
    )


def _row0_table(found: Correlations) -> Markup | None:
    """With the row that no model reads, where prompts have one, and without."""
    parts = {"left out": found.own_out, "included": found.own_in}
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
    whole = table(head, rows, caption, over=over, source=_FILES)
    return details("With row 0 and without", whole)


def _scatter_figures(study: Study, layout: Layout) -> Markup | None:
    """One small figure an indicator: the paper's open, the others folded away."""
    columns = study.similarities.values if study.similarities else {}
    moved = moves(study, layout)
    names = [n for n in (OVERLAP, *EMBEDDING) if n in columns]
    names += [n for n in shown_rankings(columns) if n not in names and n in MEANINGS]
    points = {name: _points(study, layout, moved, name) for name in names}
    points = {name: groups for name, groups in points.items() if groups}
    if not points:
        return None
    limits = _limits(np.concatenate([y for of in points.values() for _, y in of.values()]))
    panels = {name: _panel(study, name, groups, limits) for name, groups in points.items()}
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
            element("p", told, class_="facts"),
            element("div", *first, class_="panels"),
            details("The other indicators", element("div", *more, class_="panels"))
            if more
            else None,
        ]
    )


def _panel(
    study: Study,
    name: str,
    groups: Mapping[str, tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"]]],
    limits: tuple[float, float],
) -> Markup:
    found = study.correlations.own_out.get(name) if study.correlations else None
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
        figure(svg, label, f"{told}.", [*files, *(_FILES if found else ())]),
    )


def _limits(scores: Float64[np.ndarray, "M"]) -> tuple[float, float]:
    """The same heights in all panels, with a little room."""
    low, high = float(min(scores.min(), 0.95)), float(max(scores.max(), 1.05))
    room = 0.06 * (high - low)
    return low - room, high + room


def _points(
    study: Study, layout: Layout, moved: Sequence[Move], name: str
) -> dict[str, tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"]]]:
    """Indicator and relative score of the moves, by whether both tasks have one type."""
    assert study.similarities is not None
    place = {prompt: index for index, prompt in enumerate(study.similarities.names)}
    values = study.similarities.values[name]
    kinds = {True: "same type", False: "other type", None: "type not known"}
    groups: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds.values()}
    for move in moved:
        own = layout.own.get(move.target, "")
        if own in place and move.source in place:
            value = float(values[place[own], place[move.source]])
            if np.isfinite(value):
                groups[kinds[move.same_type]].append((value, move.relative))
    found = {kind: np.array(pairs).T for kind, pairs in groups.items() if pairs}
    return {kind: (x, y) for kind, (x, y) in found.items()}


def _window_figure(found: Correlations) -> Markup | None:
    out, whole = found.own_out, found.own_in
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
    return figure(to_svg(plot, "window-curve", label), label, told, _FILES)
