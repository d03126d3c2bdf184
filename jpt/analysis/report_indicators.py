"""The parts of the report on how alike prompts are, and whether that tells which moves work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jpt.analysis.curves import window_curve
from jpt.analysis.finding import Finding
from jpt.analysis.heat_map import HeatMap, heat_map
from jpt.analysis.indicator_names import (
    EMBEDDING,
    MEANINGS,
    OVERLAP,
    OVERLAP_ALL,
    indicator_label,
    windows,
)
from jpt.analysis.layout import Layout, moves
from jpt.analysis.overlap_findings import standard_error
from jpt.analysis.page import (
    Child,
    Markup,
    bar_cell,
    details,
    element,
    figure,
    finding_item,
    missing,
    section,
    table,
)
from jpt.analysis.plots import scatter, to_svg
from jpt.analysis.study import Study, commands
from jpt.analysis.study_facts import Correlation, Correlations
from jpt.analysis.wording import counted, decimal, significant

_NUMBERS = ("mean_over_targets", "pooled_relative", "pooled_raw")


def overlap_section(study: Study, layout: Layout) -> Markup:
    """Shows the overlap of activated neurons of all pairs of prompts.

    Args:
        study: as read.
        layout: of that study.

    Returns:
        The markup.

    Example:
        See `jpt.analysis.report.report`.
    """
    title = "Which prompts activate the same neurons"
    make = commands(study.folder)
    parts: list[Markup] = [
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
        parts.append(_similarity_map(study, layout, OVERLAP, 900, _layers_told(study)))
        parts.append(_similarity_table(study, layout, OVERLAP))
    return section("overlap", title, *parts)


def embedding_section(study: Study, layout: Layout) -> Markup:
    """Shows the four indicators that compare the vectors of prompts.

    Args:
        study: as read.
        layout: of that study.

    Returns:
        The markup.

    Example:
        See `jpt.analysis.report.report`.
    """
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
            _similarity_map(study, layout, name, 540, f"{EMBEDDING[name]}: {MEANINGS[name]}."),
            _similarity_table(study, layout, name),
        )
        for name in shown
    ]
    return section("embeddings", title, lead, element("div", *maps, class_="pair"))


def correlation_section(study: Study, layout: Layout, found: Sequence[Finding]) -> Markup:
    """Holds the indicators against what the moves did.

    Args:
        study: as read.
        layout: of that study.
        found: the findings of that study.

    Returns:
        The markup.

    Example:
        See `jpt.analysis.report.report`.
    """
    title = "Do similar prompts move better?"
    if study.correlations is None:
        note = missing("There is no correlation.json", commands(study.folder)["indicators"])
        return section("correlation", title, note, _scatter_figure(study, layout))
    items = [finding_item(each) for each in found if each.topic in ("correlation", "caution")]
    lead = element(
        "p",
        "Spearman's rank correlation of each indicator with zero-shot performance: +1 where the"
        " more similar prompt is always the better source, 0 where similarity says nothing. A"
        " prompt is most similar to itself and best on its own task, so own pairs flatter every"
        " indicator; the fair columns are those without them.",
    )
    parts: list[Markup | None] = [
        element("ul", *items, class_="findings") if items else None,
        lead,
        _correlation_table(study.correlations),
        _best_window_note(study.correlations),
        _per_target_table(study.correlations),
        element(
            "div",
            _scatter_figure(study, layout),
            _window_figure(study.correlations),
            class_="beside",
        ),
    ]
    return section("correlation", title, *parts)


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
    study: Study, layout: Layout, name: str, width_px: float, caption: str
) -> Markup:
    values = _ordered(study, layout, name)
    np.fill_diagonal(values, np.nan)
    types = [layout.prompt_types[prompt] for prompt in layout.prompts]
    digits = 2 if name == OVERLAP else 3
    plot = heat_map(
        HeatMap(
            rows=layout.prompts,
            columns=layout.prompts,
            row_types=types,
            column_types=types,
            values=values,
            texts=[[_short(value, digits) for value in line] for line in values],
            scale_label=indicator_label(name),
            width_px=width_px,
        ),
        percent=False,
    )
    count = counted(len(layout.prompts), "prompt")
    label = f"Heat map of {indicator_label(name)} for all pairs of {count}; the numbers are below."
    return figure(to_svg(plot, f"map-{name.replace('_', '-')}", label), label, caption)


def _short(value: float, digits: int) -> str:
    """Without the zero before the point, which all of them have; nothing for a gray cell."""
    if not np.isfinite(value):
        return ""
    return decimal(value, digits).replace("0.", ".", 1) if abs(value) < 1 else decimal(value, 1)


def _ordered(study: Study, layout: Layout, name: str) -> np.ndarray:
    assert study.similarities is not None
    order = [study.similarities.names.index(prompt) for prompt in layout.prompts]
    return study.similarities.values[name][np.ix_(order, order)].copy()


def _similarity_table(study: Study, layout: Layout, name: str) -> Markup:
    values = _ordered(study, layout, name)
    rows = [
        [prompt, *(significant(value) for value in line)]
        for prompt, line in zip(layout.prompts, values, strict=True)
    ]
    label = indicator_label(name)
    caption = f"{label} of all pairs of prompts"
    return details(f"{label} as a table", table(["prompt", *layout.prompts], rows, caption))


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
        error = f"±{decimal(standard_error(known), 2)}"
        label = _row_label(name, out or whole)
        rows.append([label, str(first.n_targets), cells[0], error, *cells[1:]])
    over = [("", 2)]
    over += [("own prompts left out", 4)] if out else []
    over += [("own prompts included", 3 if out else 4)] if whole else []
    columns = ["mean over targets", "pooled, relative", "pooled, raw"] * len(parts)
    head = ["indicator", "n targets", columns[0], "standard error", *columns[1:]]
    return table(head, rows, "Spearman's rho; the highest of each column is bold", over=over)


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
    return details("Every indicator, task by task", table(head, rows, caption))


def _scatter_figure(study: Study, layout: Layout) -> Markup | None:
    if study.similarities is None or OVERLAP not in study.similarities.values:
        return None
    place = {name: index for index, name in enumerate(study.similarities.names)}
    values = study.similarities.values[OVERLAP]
    groups: dict[str, tuple[list[float], list[float]]] = {
        name: ([], []) for name in ("same type", "other type", "type not known")
    }
    kinds = {True: "same type", False: "other type", None: "type not known"}
    for move in moves(study, layout):
        own = layout.own.get(move.target, "")
        if own in place and move.source in place:
            overlap = values[place[own], place[move.source]]
            if np.isfinite(overlap):
                x, y = groups[kinds[move.same_type]]
                x.append(float(overlap))
                y.append(move.relative)
    points = {name: (np.array(x), np.array(y)) for name, (x, y) in groups.items() if x}
    if not points:
        return None
    n_pairs = sum(len(x) for x, _ in points.values())
    label = (
        f"Neuron overlap and relative score of {counted(n_pairs, 'pair')} of task and source prompt"
    )
    told = (
        f"{counted(n_pairs, 'pair')} of a task and another task's prompt: overlap with the task's"
        " own prompt, and score relative to it. Own pairs are left out."
    )
    plot = scatter(points, "neuron overlap (ON) with own prompt", "relative to own prompt")
    return figure(to_svg(plot, "overlap-scatter", label), label, told)


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
    told = "Mean over targets for every window of three consecutive layers."
    plot = window_curve(list(layers.values()), lines)
    return figure(to_svg(plot, "window-curve", label), label, told)
