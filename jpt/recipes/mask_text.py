"""A masking study as text, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from jpt.analysis.neuron_choice import OWN, RANDOM

WIDTH = 80
_NAME = 18
_TYPE = 13

MEANINGS = {
    OWN: "largest values behind the task's own prompt",
    RANDOM: "drawn by lot, as many in each layer as own",
    "other": "largest values behind other tasks' prompts",
    "common": "activated by the most prompts",
    "specific": "activated by this prompt and the fewest others",
}


def describe_masks(record: Mapping[str, Any]) -> str:
    """Lays a study out: scores by task and kind of mask, then what is left by type of task."""
    lines = [*textwrap.wrap(_head(record), WIDTH), *_scores(record), *_meanings(record)]
    lines += _by_type(record) + _by_both(record)
    below = record["own_below_random"]
    if below is not None:
        count = f"on {below['tasks']} of {below['of']} tasks" if below["of"] > 1 else None
        verdict = count or ("here" if below["tasks"] else "not here:")
        lines += _wrapped(
            f"The own neurons cost more than every draw of random ones {verdict}".rstrip(":") + "."
        )
    for note in record["notes"]:
        lines += _wrapped(f"note: {note}")
    return "\n".join(lines)


def _head(record: Mapping[str, Any]) -> str:
    first, last = record["layers"]
    layers = f"layers {first}-{last}" if last > first else f"layer {first}"
    stack = f" of the {record['stack']}" if record["stack"] else ""
    each = ", the same share of each layer" if record["per_layer"] else ""
    return (
        f"Scores on {record['split']} with {record['silent_neurons']} of {record['neurons']}"
        f" neurons of {layers}{stack} masked{each} ({record['backbone']})"
    )


def _scores(record: Mapping[str, Any]) -> list[str]:
    kinds = list(record["relative_by_kind"])
    metrics = list(dict.fromkeys(each["metric"] for each in record["targets"].values()))
    lines = [["", "none", *kinds, "commonest"]]
    for task, each in record["targets"].items():
        cells = [_score(each["masks"].get(kind)) for kind in kinds]
        lines.append([_cut(task), f"{each['unmasked']:.3f}", *cells, _figure(each["majority"])])
    told = f"metric: {', '.join(metrics)}; commonest: what the commonest answer alone would score"
    return [*_aligned(lines), *_wrapped(told)]


def _score(mask: Mapping[str, Any] | None) -> str:
    if mask is None:
        return "-"
    return f"{mask['value']:.3f}" + ("" if mask["std"] is None else f"±{mask['std']:.3f}")


def _meanings(record: Mapping[str, Any]) -> list[str]:
    return [f"{kind}: {MEANINGS[kind]}" for kind in record["relative_by_kind"]]


def _by_type(record: Mapping[str, Any]) -> list[str]:
    """What is left under each kind of mask."""
    if len(record["targets"]) < 2:
        return []
    kinds = list(record["relative_by_kind"])
    lines = [["", *kinds]]
    for name, means in record["relative_by_type"].items():
        lines.append([_cut(name, _TYPE), *(_percent(means[kind]) for kind in kinds)])
    lines.append(["all", *(_percent(mean) for mean in record["relative_by_kind"].values())])
    return ["Share of the unmasked score that is left, mean by type of task:", *_aligned(lines)]


def _by_both(record: Mapping[str, Any]) -> list[str]:
    """What is left by type of the task that is scored and of the task whose neurons are masked."""
    table = record["other_by_type"]
    if not table:
        return []
    sources = list(next(iter(table.values())))
    head = (
        "Share left when neurons of other tasks' prompts are masked, by type of the task that is"
        " scored (rows) and of the other task:"
    )
    lines = [["", *(_cut(name, _TYPE) for name in sources)]]
    for name, means in table.items():
        lines.append([_cut(name, _TYPE), *(_percent(means[source]) for source in sources)])
    return [*textwrap.wrap(head, WIDTH), *_aligned(lines)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cut(name: str, longest: int = _NAME) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ")


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Puts columns under each other; where they are too many, the last ones come below."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    count, used = 1, widths[0]
    while count < len(widths) and used + 2 + widths[count] <= WIDTH:
        used += 2 + widths[count]
        count += 1
    shown = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line[:count], widths, strict=False))
        ).rstrip()
        for line in lines
    ]
    if count == len(widths):
        return shown
    return [*shown, *_aligned([[line[0], *line[count:]] for line in lines])]
