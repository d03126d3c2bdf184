"""The part of the report on choosing: which source each indicator takes, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jpt.analysis.choice import SAME_TYPE, shown_rankings
from jpt.analysis.choice_facts import ChoiceFacts, ChoiceMeans, ChosenSource
from jpt.analysis.figures_indicators import cost_figure
from jpt.analysis.finding import Finding
from jpt.analysis.indicator_names import indicator_label
from jpt.analysis.indicators import WITH_ROW0
from jpt.analysis.layout import Layout
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
from jpt.analysis.plots import to_svg
from jpt.analysis.study import Study, commands
from jpt.analysis.wording import UNKNOWN, counted, decimal, percent

_FILES = ("choice.json",)


def choice_section(study: Study, layout: Layout, found: Sequence[Finding]) -> Markup:
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
            "div", _cost_figure(study.choices, names), _means(study.choices, names), class_="beside"
        ),
        _by_target(study.choices, names, layout),
        _row0(study.choices),
        element("p", *_notes(study.choices), class_="facts"),
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


def _cost_figure(choices: ChoiceFacts, names: Sequence[str]) -> Markup:
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
    return figure(to_svg(plot, "choice-costs", label), label, told, _FILES)


def _chance(choices: ChoiceFacts, names: Sequence[str]) -> ChoiceMeans:
    """The ranking that speaks of the most targets; chance is told on these."""
    return max((choices.means[name] for name in names), key=lambda of: of.targets)


def _means(choices: ChoiceFacts, names: Sequence[str]) -> Markup:
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
    return table(head, rows, told, source=_FILES)


def _by_target(choices: ChoiceFacts, names: Sequence[str], layout: Layout) -> Markup:
    targets = [name for name in layout.targets if name in choices.ranges]
    targets += [name for name in choices.ranges if name not in targets]
    rows: list[list[Child]] = []
    for target in targets:
        of = choices.ranges[target]
        cells = [_chosen(choices.chosen[name].get(target), of.best) for name in names]
        best = f"{', '.join(of.best)} ({points(of.best_score)})"
        rows.append([target, best, *cells, f"−{points(of.best_score - of.mean_score)}"])
    head = ["task", "best source (score)", *map(ranking_label, names), "by chance"]
    caption = "The source that each ranking takes, and how many points below the best it scores"
    whole = table(head, rows, caption, numbers_from=99, source=_FILES)
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


def _row0(choices: ChoiceFacts) -> Markup | None:
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
    whole = table(head, rows, caption, over=over, source=_FILES)
    return details("With row 0 and without", whole)


def _notes(choices: ChoiceFacts) -> list[str]:
    tasks = max(of.targets for of in choices.means.values())
    told = [
        "Same type: any source whose task has the type of the target, all alike; it needs neither"
        " prompts nor labels."
    ]
    if tasks < 20:
        told.append(f" With {counted(tasks, 'task')} a single one moves these means a lot.")
    return told
