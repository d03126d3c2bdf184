"""The page of a table of projected prompts: what each way of carrying prompts over is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from jpt.analysis.heat_map import HeatMap, heat_map
from jpt.analysis.json_fields import Fields
from jpt.analysis.page import Child, Markup, element, figure, section, sources, table, value_cell
from jpt.analysis.pinned import pin_rows
from jpt.analysis.plots import to_svg
from jpt.analysis.report_methods import fact_list, methods_list, version_facts
from jpt.analysis.wording import UNKNOWN, counted, decimal, percent
from jpt.errors import InputError
from jpt.files.reading import read_json
from jpt.files.study_files import RANDOM, read_transfer
from jpt.tasks.reference_names import task_type
from jpt.types import TransferMatrix

TABLE, RECORD = "projection.csv", "projection.json"
_CURE = "jpt project evaluate"
# Columns that are no projection, as the command names them.
OWN, TUNED = "own", ("warm", "vanilla")
_METHODS = (
    "A projector turns a whole prompt of the source model into one of the target model; the weights"
    " of both models are frozen. Its prompts are scored on the target as they are.",
    "own: the prompt that was tuned on the target for the task. random: a prompt as it is drawn."
    " untrained: through a projector as it is drawn. least_squares: by one matrix that fits the"
    " words which both models know. relative: each row keeps its similarities to such words.",
)


def is_projection(folder: Path) -> bool:
    """Whether a folder holds a table of projected prompts, and no matrix of its own."""
    is_whole = (folder / RECORD).exists() and (folder / TABLE).exists()
    return is_whole and not (folder / "transfer.csv").exists()


def projection_parts(folder: Path) -> tuple[str, list[str], list[Markup]]:
    """Builds what the page of projected prompts shows."""
    path = folder / RECORD
    record, matrix = Fields(read_json(path), path, _CURE), read_transfer(folder / TABLE)
    told = record.fields("targets").value
    lacking = [target for target in matrix.targets if target not in told]
    if lacking:
        raise InputError(f"{path} does not tell {lacking[0]} of {TABLE}; make it again: {_CURE}")
    learnt = _learnt(record, matrix)
    names = [record.text(f"{side}_backbone") or UNKNOWN for side in ("source", "target")]
    parts = [
        section("scores", "What projected prompts score", _map(record, matrix, learnt)),
        section("means", "What each way is worth", _means(matrix, learnt)),
        _methods(folder, record),
    ]
    return f"Prompts of {names[0]} on {names[1]}", _findings(record, matrix, learnt), parts


def _learnt(record: Fields, matrix: TransferMatrix) -> dict[str, Bool[np.ndarray, "N"]]:
    """By trained projector, which of the tasks it was trained on."""
    trained = record.fields("trained_on")
    return {
        name: np.array([target in trained.texts(name) for target in matrix.targets])
        for name in trained.value
        if name in matrix.prompts
    }


def _mean(matrix: TransferMatrix, name: str, rows: Bool[np.ndarray, "N"]) -> float:
    """Mean score of a column over some tasks; NaN where there is none."""
    if name not in matrix.prompts:
        return np.nan
    values = matrix.values[rows, matrix.prompts.index(name)]
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def _findings(
    record: Fields, matrix: TransferMatrix, learnt: dict[str, Bool[np.ndarray, "N"]]
) -> list[str]:
    found = []
    for name, rows in learnt.items():
        parts = []
        for chosen, where in ((rows, "it was trained on"), (~rows, "it was not trained on")):
            count = int(chosen.sum())
            if count:
                score = percent(_mean(matrix, name, chosen), 1)
                tasks = "task" if count == 1 else f"{count} tasks"
                parts.append(f"{score} on the {tasks} {where}{_beside(matrix, chosen)}")
        found.append(f"Prompts of the projector “{name}” score {', and '.join(parts)}.")
    start, steps, every = record.text("warm_start"), record.count("warm_steps"), _all(matrix)
    if start and all(name in matrix.prompts for name in TUNED):
        ends = [percent(_mean(matrix, name, every), 1) for name in TUNED]
        found.append(
            f"{steps} steps of tuning end at {ends[0]} from the prompts of “{start}” and at"
            f" {ends[1]} from a random start, mean over {counted(len(every), 'task')}."
        )
    return found


def _beside(matrix: TransferMatrix, rows: Bool[np.ndarray, "N"]) -> str:
    means = {"own": _mean(matrix, OWN, rows), "random": _mean(matrix, RANDOM, rows)}
    known = [f"{name} {percent(mean, 1)}" for name, mean in means.items() if np.isfinite(mean)]
    return f" ({', '.join(known)})" if known else ""


def _all(matrix: TransferMatrix) -> Bool[np.ndarray, "N"]:
    return np.ones(len(matrix.targets), bool)


def _kind(name: str, learnt: dict[str, Bool[np.ndarray, "N"]]) -> str:
    if name in learnt:
        return "projectors"
    if name in TUNED:
        return "tuned on"
    return "target's" if name in (OWN, RANDOM) else "not trained"


def _map(
    record: Fields, matrix: TransferMatrix, learnt: dict[str, Bool[np.ndarray, "N"]]
) -> Markup:
    majority = np.array(
        [record.fields("targets").fields(target).number("majority") for target in matrix.targets]
    )
    framed = {
        (row, matrix.prompts.index(name))
        for name, rows in learnt.items()
        for row in np.flatnonzero(rows).tolist()
    }
    has_majority = np.isfinite(majority).any()
    plot = heat_map(
        HeatMap(
            rows=matrix.targets,
            columns=matrix.prompts,
            row_types=[task_type(target) or "" for target in matrix.targets],
            column_types=[_kind(name, learnt) for name in matrix.prompts],
            values=matrix.values,
            texts=[[decimal(100 * value, 1) for value in row] for row in matrix.values],
            scale_label="score",
            outlined=frozenset(framed),
            side_label=["majority"] if has_majority else [],
            side_texts=[[decimal(100 * value, 1) for value in majority]] if has_majority else [],
            row_axis="task",
            column_axis="prompt",
        ),
        percent=True,
    )
    sizes = (counted(len(matrix.targets), "task"), counted(len(matrix.prompts), "column"))
    label = f"Heat map of scores, {sizes[0]} by {sizes[1]}; means are in the table below."
    metrics = ", ".join(dict.fromkeys(matrix.metrics))
    told = f"Scores in percent ({metrics}). Framed: tasks that the projector was trained on."
    if set(TUNED) & set(matrix.prompts):
        steps, start = record.count("warm_steps"), record.text("warm_start")
        told += f" warm: {steps} steps of tuning from the prompts of “{start}”; vanilla: from"
        told += " a random start."
    svg = pin_rows(to_svg(plot, "projection-map", label), "projection-map")
    return figure(svg, label, told, [TABLE, RECORD])


def _means(matrix: TransferMatrix, learnt: dict[str, Bool[np.ndarray, "N"]]) -> Markup:
    rows: list[list[Child]] = []
    every = _all(matrix)
    for name in matrix.prompts:
        parts = (learnt[name], ~learnt[name]) if name in learnt else (~every, ~every)
        means = [_mean(matrix, name, part) for part in (every, *parts)]
        rows.append([name, *(value_cell(percent(mean, 1), mean) for mean in means)])
    head = ["prompt", "all tasks", "trained on", "not trained on"]
    return table(head, rows, "Mean score over tasks", source=[TABLE, RECORD])


def _methods(folder: Path, record: Fields) -> Markup:
    versions = {name: str(value) for name, value in record.fields("versions").value.items()}
    projectors = record.fields("projectors").value
    facts: list[tuple[str, Child]] = [
        ("source", record.text("source_backbone")),
        ("target", record.text("target_backbone")),
        ("rows of a prompt", str(record.count("length") or "")),
        ("scored rows", _scored(record)),
        *((f"projector {name}", str(told)) for name, told in projectors.items()),
        ("seed", str(record.count("seed"))),
    ]
    files = [folder / RECORD, folder / TABLE]
    facts += version_facts(versions, record.text("machine"), record.text("device"), files)
    listed: Sequence[Markup | None] = (
        element("p", "One seed of each projector: differences of a few points mean little."),
        methods_list(_METHODS),
        fact_list(facts),
        sources([RECORD, *(["projected/"] if (folder / "projected").is_dir() else [])], "p"),
    )
    return section("provenance", "Methods and versions", *listed)


def _scored(record: Fields) -> str:
    told = [
        f"{name} {each.count('rows')} of {each.text('split')}"
        for name, each in record.fields("targets").each()
    ]
    return ", ".join(told)
