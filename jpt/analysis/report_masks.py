"""The part of the report on masks: what tasks lose when chosen neurons are silent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jpt.analysis.finding import Finding
from jpt.analysis.mask_facts import MaskFacts
from jpt.analysis.mask_figure import RECORD, draw_shares, read_shares
from jpt.analysis.page import (
    Child,
    Markup,
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

_HEADS = {
    "own": "own",
    "random": "random",
    "other": "other tasks'",
    "common": "common to all",
    "specific": "specific to it",
}
_MEANINGS = {
    "own": "those with the largest values behind the task's own prompt",
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
        _figure(study, masks),
        *_type_parts(masks),
        _score_table(masks),
    )


def kind_label(kind: str) -> str:
    """Gives a kind of mask's name for people."""
    return _HEADS.get(kind, kind)


def _lead(masks: MaskFacts) -> str:
    first, last = masks.layers
    layers = f"layer {first}" if first == last else f"layers {first} to {last}"
    told = "; ".join(f"{kind_label(kind)}: {_MEANINGS.get(kind, kind)}" for kind in masks.kinds)
    return (
        f"{masks.silent:,} of the {masks.neurons:,} neurons of {layers} are silent while each"
        f" task is scored with its own prompt{f' on {masks.split}' if masks.split else ''}."
        f" Which ones differs: {told}."
    )


def _figure(study: Study, masks: MaskFacts) -> Markup | None:
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
    plot = draw_shares(read_shares(study.folder / RECORD))
    plot.axes[0].set_title("", loc="left")
    return figure(to_svg(plot, "mask-shares", label), label, told, [RECORD])


def _type_parts(masks: MaskFacts) -> list[Markup]:
    kinds = masks.kinds
    parts: list[Markup] = []
    if masks.by_type:
        rows = [
            [name, *(percent(means.get(kind, np.nan)) for kind in kinds)]
            for name, means in masks.by_type.items()
        ]
        caption = "What is left of the scores, by type of task and kind of mask"
        parts.append(table(["type", *map(kind_label, kinds)], rows, caption, source=[RECORD]))
    same, other = masks.other_same_type, masks.other_different_type
    if np.isfinite([same, other]).all():
        parts.append(
            element(
                "p",
                f"Neurons of other tasks' prompts leave {percent(same)} of the score where that"
                f" task has the same type and {percent(other)} where not.",
                class_="facts",
            )
        )
    return parts


def _score_table(masks: MaskFacts) -> Markup:
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
    return table(head, rows, told, numbers_from=2, source=[RECORD])
