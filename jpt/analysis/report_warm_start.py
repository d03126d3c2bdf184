"""The page of a warm-start study: how fast each start learns, and what it ends at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jpt.analysis.json_fields import Fields
from jpt.analysis.page import (
    Child,
    Markup,
    element,
    figure,
    section,
    sources,
    table,
    value_cell,
)
from jpt.analysis.plots import to_svg
from jpt.analysis.report_methods import (
    fact_list,
    methods_list,
    shared_settings,
    version_facts,
)
from jpt.analysis.warm_start_figure import RECORD, Curves, draw_curves, read_curves
from jpt.analysis.wording import UNKNOWN, counted, decimal, percent
from jpt.files.reading import read_json

TABLE = "curves.csv"
_CURE = "jpt warm-start"
_SPEEDS = ("convergence_speed_up", "comparable_speed_up")


def is_warm_start(folder: Path) -> bool:
    """Whether a folder holds a warm-start study, and no matrix that a page would be about."""
    return (folder / RECORD).exists() and not (folder / "transfer.csv").exists()


def warm_start_parts(folder: Path) -> tuple[str, list[str], list[Markup]]:
    """Builds what the page of a warm-start study shows."""
    path = folder / RECORD
    record = Fields(read_json(path), path, _CURE)
    curves = read_curves(record, path)
    title = f"Warm start of {record.text('task')} on {record.text('backbone')}"
    parts = [
        section("curves", "How fast each start learns", _figure(record, curves)),
        section("speed", "What a start saves and gains", _scores(record), _speeds(record)),
        _methods(folder, record),
    ]
    return title, _findings(record), parts


def _findings(record: Fields) -> list[str]:
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
        found.append(f"{told}; {record.text('metric')} changes by {_points(gain)} points.")
    return found


def _times(speed_up: float) -> str:
    return f"{percent(1 / speed_up)} of the steps" if speed_up > 0 else "unknown steps"


def _told(value: float) -> bool:
    return math.isfinite(value)


def _points(share: float) -> str:
    return decimal(100 * share, 1, sign=True)


def _figure(record: Fields, curves: Curves) -> Markup:
    metric = record.text("metric") or "score"
    plot = draw_curves(curves, "", metric, "")
    plot.axes[0].set_title("", loc="left")
    seeds = max(len(values) for _, values in curves.values())
    ends = "; ".join(f"{name} {float(v.mean(0).max()):.3f}" for name, (_, v) in curves.items())
    label = f"{metric} on validation over training; best means: {ends}."
    told = f"The random start is gray, with round signs. Lines are means over {_seeds(seeds)}"
    told += ", pale bands go from the lowest to the highest seed." if seeds > 1 else "."
    return figure(to_svg(plot, "warm-start", label), label, told, [RECORD, TABLE])


def _seeds(count: int) -> str:
    return counted(count, "seed")


def _scores(record: Fields) -> Markup:
    runs = [Fields(run, record.path, _CURE, "a run") for run in record.value.get("runs") or []]
    names = dict.fromkeys(run.text("run") or UNKNOWN for run in runs)
    rows: list[list[Child]] = []
    for name in names:
        own = [run for run in runs if run.text("run") == name]
        means = [np.mean([run.number(of) for run in own]) for of in ("at_start", "best", "final")]
        gain = record.fields("comparisons").fields(name).fields("gain")
        cells = [decimal(float(mean), 3) for mean in means]
        rows.append([name, str(len(own)), *cells, _points(gain.number("mean")), _bounds(gain, 100)])
    split = record.text("final_split") or "the end"
    head = ["start", "seeds", "at step 0", "best", split, "gain, points", "95% interval"]
    told = f"Mean {record.text('metric')}; at step 0 and best on validation"
    return table(head, rows, told, source=[RECORD])


def _speeds(record: Fields) -> Markup:
    rows: list[list[Child]] = []
    for name, compared in record.fields("comparisons").each():
        cells: list[Child] = []
        for kind in _SPEEDS:
            found = compared.fields(kind)
            mean = found.number("mean")
            text = f"{mean:.2f} times" if _told(mean) else "not reached"
            cells += [value_cell(text, mean), _bounds(found, 1)]
        rows.append([name, *cells])
    head = ["start", "convergence", "95% interval", "comparable result", "95% interval"]
    return table(head, rows, "Speed-ups against the random start", source=[RECORD])


def _bounds(found: Fields, times: float) -> str:
    ends = [times * found.number(end) for end in ("low", "high")]
    if not all(map(_told, ends)):
        return UNKNOWN
    return " to ".join(decimal(end, 2 if times == 1 else 1, sign=times != 1) for end in ends)


def _methods(folder: Path, record: Fields) -> Markup:
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
    files = [folder / RECORD, folder / TABLE]
    facts += version_facts(versions, record.text("machine"), record.text("device"), files)
    notes = [element("li", note) for note in record.texts("notes")]
    listed: Sequence[Markup | None] = (
        methods_list(texts),
        fact_list(facts),
        element("h3", "Notes") if notes else None,
        element("ul", *notes, class_="notes") if notes else None,
        sources([RECORD], "p"),
    )
    return section("provenance", "Methods and versions", *listed)
