"""The parts of the report on what prompts do on other tasks: the matrix, and means by type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from jpt.analysis.finding import Finding
from jpt.analysis.heat_map import HeatMap, heat_map
from jpt.analysis.indicator_names import indicator_label
from jpt.analysis.layout import (
    BASELINE,
    NO_PROMPT,
    Layout,
    moves,
    own_score,
    random_values,
    values_at,
)
from jpt.analysis.page import (
    Markup,
    details,
    element,
    figure,
    finding_item,
    join,
    missing,
    section,
    table,
)
from jpt.analysis.pinned import pin_rows
from jpt.analysis.plots import strips, to_svg
from jpt.analysis.study import Study, commands
from jpt.analysis.study_facts import TypeFacts
from jpt.analysis.wording import UNKNOWN, counted, decimal, percent, significant


def transfer_section(study: Study, layout: Layout) -> Markup:
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
    parts.append(_matrix_figure(study, layout))
    parts.append(_score_table(study, layout))
    if study.relative is not None:
        parts.append(_relative_table(study, layout))
    return section("transfer", title, *parts)


def type_section(study: Study, layout: Layout, found: Sequence[Finding]) -> Markup:
    """Shows means over pairs of one type and of two types."""
    items = [finding_item(each) for each in found if each.topic in ("types", "overlap")]
    parts: list[Markup | None] = [element("ul", *items, class_="findings") if items else None]
    picture = _strip_figure(study, layout)
    tables: list[Markup] = []
    if study.types is not None:
        tables = _type_tables(study.types, _type_order(layout))
    else:
        parts.append(
            missing(
                "There is no types.json: similarities are not compared by type",
                commands(study.folder)["indicators"],
            )
        )
    parts.append(element("div", picture, element("div", *tables), class_="beside"))
    return section("types", "Tasks of the same type and of others", *parts)


def side_scores(study: Study, layout: Layout) -> dict[str, Float64[np.ndarray, "N"]]:
    """Collects what stands beside the matrix."""
    told = study.facts.targets if study.facts else {}
    nan = float("nan")
    own = np.array([own_score(study, layout, target) for target in layout.targets])
    majority = np.array([told[t].majority if t in told else nan for t in layout.targets])
    baselines = {
        label: values_at(study.transfer, layout.targets, [name])[:, 0]
        for label, name in _baselines(study).items()
    }
    return {**baselines, "own prompt": own, "majority": majority}


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


def _matrix_figure(study: Study, layout: Layout) -> Markup:
    scores = values_at(study.transfer, layout.targets, layout.sources)
    sides = side_scores(study, layout)
    sides = {label: column for label, column in sides.items() if np.isfinite(column).any()}
    shown = study.transfer if study.relative is None else study.relative
    colors = values_at(shown, layout.targets, layout.sources)
    columns = [_baselines(study).get(label, "") for label in sides]
    side_colors = values_at(shown, layout.targets, columns).T
    plot = heat_map(
        HeatMap(
            rows=layout.targets,
            columns=layout.sources,
            row_types=[layout.target_types[name] for name in layout.targets],
            column_types=[layout.prompt_types[name] for name in layout.sources],
            values=colors,
            texts=[[_cell(value) for value in line] for line in scores],
            scale_label="score relative to the task's own prompt" if study.relative else "score",
            outlined=_own_cells(layout),
            side_label=list(sides),
            side_texts=[[_cell(value) for value in column] for column in sides.values()],
            side_values=side_colors if sides else None,
            row_axis="target task",
            column_axis="source prompt",
        ),
        percent=True,
    )
    label = (
        f"Heat map of {counted(len(layout.targets), 'target task')} by"
        f" {counted(len(layout.sources), 'source prompt')}; the numbers are in the table below."
    )
    told = "Rows: target tasks. Columns: source prompts, both in groups by type of task."
    told += " Framed: the task's own prompt." if layout.own else ""
    for name, meaning in (
        (BASELINE, "the prompt before any training"),
        (NO_PROMPT, "the untouched model"),
        ("own prompt", "the score that relative numbers are divided by"),
        ("majority", "the score of always answering the commonest class"),
    ):
        told += f" {name.capitalize()}: {meaning}." if name in sides else ""
    told += " Gray: not measured, or without own prompt." if np.isnan(colors).any() else ""
    svg = pin_rows(to_svg(plot, "transfer-map", label), "transfer-map")
    return figure(svg, label, told, _matrix_files(study))


def _matrix_files(study: Study) -> list[str]:
    files = ["transfer.csv", study.relative_file, "transfer.json" if study.facts else None]
    return list(dict.fromkeys(name for name in files if name))


def _own_cells(layout: Layout) -> frozenset[tuple[int, int]]:
    place = {name: index for index, name in enumerate(layout.sources)}
    pairs = ((i, layout.own.get(target)) for i, target in enumerate(layout.targets))
    return frozenset((i, place[own]) for i, own in pairs if own in place)


def _cell(value: float) -> str:
    return decimal(100 * value, 1)


def _score_table(study: Study, layout: Layout) -> Markup:
    assert study.transfer is not None
    scores = values_at(study.transfer, layout.targets, layout.sources)
    metric = dict(zip(study.transfer.targets, study.transfer.metrics, strict=True))
    sides = side_scores(study, layout)
    rows = [
        [target, layout.target_types[target], metric[target]]
        + [decimal(value, 4) for value in (*scores[i], *(of[i] for of in sides.values()))]
        for i, target in enumerate(layout.targets)
    ]
    names = [study.random if label == BASELINE else label for label in sides]
    head = ["target", "type", "metric", *layout.sources, *names]
    files = ("transfer.csv", *(["transfer.json"] if study.facts else []))
    told = "Score of each prompt on each task"
    return details("Scores as a table", table(head, rows, told, numbers_from=3, source=files))


def _relative_table(study: Study, layout: Layout) -> Markup:
    baselines = _baselines(study)
    columns = (*layout.sources, *baselines.values())
    heads = [*layout.sources, *(study.random if n == BASELINE else n for n in baselines)]
    values = values_at(study.relative, layout.targets, columns)
    rows = [
        [target, *(decimal(value, 4) for value in values[i])]
        for i, target in enumerate(layout.targets)
    ]
    caption = "Score of each prompt over the score of the task's own prompt"
    files = [study.relative_file or "transfer.csv"]
    whole = table(["target", *heads], rows, caption, source=files)
    return details("Relative scores as a table", whole)


def _strip_figure(study: Study, layout: Layout) -> Markup | None:
    found = moves(study, layout)
    groups = {
        "same type": [move.relative for move in found if move.same_type],
        "other type": [move.relative for move in found if move.same_type is False],
        BASELINE: list(random_values(study, layout).values()),
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


def _type_order(layout: Layout) -> list[str]:
    kinds = [layout.target_types[name] for name in layout.targets]
    return list(dict.fromkeys([*kinds, *(layout.prompt_types[name] for name in layout.every)]))


def _type_tables(types: TypeFacts, order: Sequence[str]) -> list[Markup]:
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
