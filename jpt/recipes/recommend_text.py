"""A recommendation as text, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from jpt.analysis.choice import SAME_TYPE, ZERO_SHOT, shown_rankings
from jpt.analysis.indicator_names import indicator_label

WIDTH = 80
_NAME = 22
_LABELS = {ZERO_SHOT: "zero-shot", SAME_TYPE: "same type", "sureness": "sureness"}


def describe_recommendation(record: dict[str, Any]) -> str:
    # Lays a recommendation out: the sources in order, how often rankings were right, the command.
    seen = f"{record['rows']} {'labelled rows' if record['labelled'] else 'texts, no labels'}"
    head = f"Sources for {record['task']} on {record['backbone']}: place by each ranking, 1 the"
    lines = [*textwrap.wrap(f"{head} best ({seen})", WIDTH), *_table(record)]
    if record["known"] is not None:
        lines += _known(record["known"])
    for note in record["notes"]:
        lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="      ")
    chosen = f"start from: {record['source']} (first by {ranking_label(record['by'])})"
    lines += textwrap.wrap(chosen, WIDTH)
    return "\n".join([*lines, *([record["command"]] if record["command"] else [])])


def ranking_label(name: str) -> str:
    """Gives the name of a ranking for people."""
    return _LABELS.get(name) or indicator_label(name)


def _table(record: dict[str, Any]) -> list[str]:
    """One line a source: what the first ranking says of it, then its places."""
    sources = record["sources"]
    rankings = list(next(iter(sources.values()))["places"])
    first, others = rankings[0], rankings[1:]
    shown = "score" if first == ZERO_SHOT else ranking_label(first)
    lines = [["", shown, "#", *map(_short_label, others)]]
    for name, found in sources.items():
        places = [found["places"][ranking] for ranking in rankings]
        cells = ["-" if place is None else str(place) for place in places]
        lines.append([_cut(name), _figure(found["values"][first]), *cells])
    if record["untrained"] is not None:
        score = record["untrained"][record["metric"]]
        lines.append(["(untrained)", _figure(score), *[""] * len(rankings)])
    return _aligned(lines)


def _known(known: dict[str, Any]) -> list[str]:
    count = len(known["targets"])
    head = (
        f"How often the first source was the best one, on {count} targets of the known matrix,"
        " each with its own prompt as the probe (tuned to the end: a short one may do worse);"
        " regret: best score less that of the first source:"
    )
    lines = [["", "targets", "was best", "mean place", "regret", "by chance"]]
    simulated = False
    for name in shown_rankings(known["rankings"]):
        found = known["rankings"][name]
        simulated |= name == ZERO_SHOT
        lines.append(
            [
                ranking_label(name) + (" (simulated)" if name == ZERO_SHOT else ""),
                str(found["targets"]),
                f"{100 * found['hits']:.0f} %",
                f"{found['mean_rank']:.2f}",
                f"{found['regret']:.3f}",
                f"{found['chance_regret']:.3f}",
            ]
        )
    notes = [f"note: known matrix: {note}" for note in known["notes"]]
    wrapped = [textwrap.wrap(note, WIDTH, subsequent_indent="      ") for note in notes]
    return [*textwrap.wrap(head, WIDTH), *_aligned(lines), *(line for of in wrapped for line in of)]


def _short_label(name: str) -> str:
    """So that all fit: E_average as E_avg."""
    label = ranking_label(name)
    return label.replace("average", "avg").replace("concat", "cat").replace("same ", "")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cut(name: str) -> str:
    """Shortens a name in the middle: of runs of one prompt the end tells which it is."""
    if len(name) <= _NAME:
        return name
    tail = name[name.rindex("/") :] if "/" in name else ""
    return f"{name[: _NAME - 1 - len(tail)]}…{tail}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(max(width, 3))
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
