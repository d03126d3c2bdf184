"""What a sweep found: its runs, its settings over their seeds, the best setting of each task."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jpt.files.tables import write_table
from jpt.recipes.sweep_grid import Sweep, SweepRun

RUN_TABLE, SETTING_TABLE = "runs.csv", "settings.csv"
DONE, DIVERGED, WAITING = "done", "diverged", "waiting"
SPLITS = ("validation", "test")


def run_row(run: SweepRun, result: Mapping[str, Any] | None, diverged: bool) -> dict[str, Any]:
    """Puts together what is known of a run."""
    row = {
        "run": run.name,
        "setting": run.setting,
        "state": DONE if result else DIVERGED if diverged else WAITING,
        "task": result["task"] if result else run.values["task"],
        "backbone": run.values["backbone"],
        "seed": run.options.seed,
    }
    if result is None:
        return row
    scores = {split: result[split][result["metric"]] for split in SPLITS if split in result}
    kept = {name: result[name] for name in ("metric", "best_step", "steps", "elapsed_s")}
    return row | scores | kept


def setting_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Puts the seeds of each setting together, and marks the best setting of each task."""
    together: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["state"] == DONE:
            together.setdefault(row["setting"], []).append(row)
    settings = [_setting(name, runs) for name, runs in together.items()]
    best: dict[Any, dict[str, Any]] = {}
    for setting in settings:
        key = (setting["task"], setting["backbone"])
        if key not in best or setting["validation"] > best[key]["validation"]:
            best[key] = setting
    for setting in settings:
        setting["best"] = any(setting is chosen for chosen in best.values())
    return settings


def _setting(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row = {
        "setting": name,
        "task": runs[0]["task"],
        "backbone": runs[0]["backbone"],
        "metric": runs[0]["metric"],
        "seeds": len(runs),
    }
    for split in SPLITS:
        values = [run[split] for run in runs if split in run]
        if values:
            row[split] = statistics.fmean(values)
            row[f"{split}_std"] = statistics.stdev(values) if len(values) > 1 else float("nan")
    return row


def write_tables(folder: Path, sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes both tables."""
    varied = [name for name in sweep.varied if name not in ("task", "backbone", "seed")]
    head = ["run", "setting", "state", "task", "backbone", "seed", *varied]
    tail = ["metric", *SPLITS, "best_step", "steps", "elapsed_s"]
    tail = [name for name in tail if name not in head]
    values = {run.name: run.values for run in sweep.runs}
    lines = [
        [({**values[row["run"]], **row}).get(name, "") for name in (*head, *tail)] for row in rows
    ]
    write_table(folder / RUN_TABLE, [*head, *tail], lines)
    columns = ["setting", "task", "backbone", "metric", "seeds", "best"]
    columns += [part for split in SPLITS for part in (split, f"{split}_std")]
    settings = [[row.get(name, "") for name in columns] for row in setting_rows(rows)]
    write_table(folder / SETTING_TABLE, columns, settings)


def describe_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Says what came out: the best setting of each task first, then what is not done."""
    settings = setting_rows(rows)
    order = sorted(settings, key=lambda row: (row["task"], row["backbone"], -row["validation"]))
    lines = _aligned(order)
    for state in (DIVERGED, WAITING):
        names = [row["run"] for row in rows if row["state"] == state]
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"{len(names)} {state}: {shown}")
    return "\n".join(lines)


def _aligned(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    if not settings:
        return []
    splits = [split for split in SPLITS if any(split in row for row in settings)]
    table = [["  setting", *splits]]
    for row in settings:
        name = f"{'*' if row['best'] else ' '} {row['setting']}"
        table.append([name, *(_score(row, split) for split in splits)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    seeds = max(row["seeds"] for row in settings)
    told = f" over {seeds} seeds (± one standard deviation)" if seeds > 1 else ""
    return [*lines, f"* the best setting of its task, by the mean on validation{told}"]


def _score(row: Mapping[str, Any], split: str) -> str:
    if split not in row:
        return ""
    deviation = f" ± {row[f'{split}_std']:.3f}" if row["seeds"] > 1 else ""
    return f"{row[split]:.3f}{deviation}"
