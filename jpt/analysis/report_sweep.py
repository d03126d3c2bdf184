"""The page of a sweep: the best setting of each task, every setting over its seeds, every run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jpt.analysis.json_fields import Fields, read_fields
from jpt.analysis.page import (
    Child,
    Markup,
    bar_cell,
    details,
    element,
    figure,
    section,
    sources,
    table,
)
from jpt.analysis.plots import BLUE, FONT, GRAY, INK, LINE, MUTED, new_figure, plain, to_svg
from jpt.analysis.report_methods import (
    fact_list,
    methods_list,
    shared_settings,
    version_facts,
)
from jpt.files.tables import read_number, read_table

RUNS, SETTINGS, RECORD = "runs.csv", "settings.csv", "sweep.json"
_METHODS = (
    "The weights of the model are frozen; a prompt's rows are all that is trained. Of each run the"
    " prompt that scores best on validation is kept.",
    "A setting is all runs that differ by their seed alone: mean and standard deviation (n - 1) are"
    " over its seeds. The best setting of a task is chosen on validation; test has no part in it.",
)
_RUN_COLUMNS = ("run", "setting", "state", "task", "backbone", "seed")
_COLUMNS = ("setting", "task", "backbone", "metric", "seeds", "best", "validation")
_NUMBERS = ("validation", "validation_std", "test", "test_std")

Row = Mapping[str, str]


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds the tables of a sweep."""
    return (folder / RUNS).exists() and (folder / SETTINGS).exists()


def sweep_parts(folder: Path) -> tuple[str, list[str], list[Markup]]:
    """Builds what the page of a sweep shows."""
    runs = read_table(folder / RUNS, _RUN_COLUMNS)
    settings = read_table(folder / SETTINGS, _COLUMNS)
    for line, row in enumerate(settings, 2):
        for column in _NUMBERS:
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
    return title, _findings(runs, places), [*parts, _runs_part(runs), _methods_part(folder, runs)]


def _findings(runs: Sequence[Row], places: Mapping[tuple[str, str], Sequence[Row]]) -> list[str]:
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
    svg = to_svg(draw_settings(ordered), f"sweep-{number}", label)
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


def draw_settings(rows: Sequence[Row]) -> Figure:
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
    rows = [[_short(row[name]) for name in columns] for row in runs]
    whole = table(columns, rows, "Every run", source=[RUNS])
    return section("runs", "Every run", details(f"{len(runs)} runs", whole))


def _methods_part(folder: Path, runs: Sequence[Row]) -> Markup:
    record = read_fields(folder / RECORD, "jpt sweep") or Fields({}, folder / RECORD, "jpt sweep")
    configs = [f"runs/{row['run']}/config.json" for row in runs]
    read = [read_fields(folder / config, "jpt sweep") for config in configs]
    versions = {name: str(v) for name, v in record.fields("versions").value.items()}
    files = [folder / name for name in (RUNS, SETTINGS)]
    facts = shared_settings([config.value for config in read if config is not None])
    facts += version_facts(versions, record.text("machine"), record.text("device"), files)
    named = [name for name in (RECORD, "runs/") if (folder / name).exists()]
    parts = (methods_list(_METHODS), fact_list(facts), sources(named, "p"))
    return section("provenance", "Methods and versions", *parts)


def _short(text: str) -> str:
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
