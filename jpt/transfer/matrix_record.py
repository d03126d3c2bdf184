"""From the cells of a transfer matrix to what is written and told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jpt.files.study_files import RANDOM, UNTOUCHED
from jpt.prompts.own import own_prompts
from jpt.tasks.reference_names import task_type
from jpt.transfer.made_with import made_with
from jpt.transfer.matrix_cells import Cell
from jpt.transfer.matrix_plan import MatrixPlan
from jpt.transfer.relative import summarize_transfer
from jpt.types import TransferMatrix

Cells = Mapping[tuple[str, str], Cell]
"""Cells by target and run."""


def make_matrix(plan: MatrixPlan, cells: Cells) -> TransferMatrix:
    """Puts cells into a matrix; a column of several seeds has their mean."""
    values = [
        [np.mean(_values(cells, task, runs)) for runs in plan.columns.values()]
        for task in plan.tasks
    ]
    metrics = tuple(task.metric for task in plan.tasks.values())
    return TransferMatrix(tuple(plan.tasks), tuple(plan.columns), np.array(values), metrics)


def make_record(
    plan: MatrixPlan, cells: Cells, matrix: TransferMatrix, split: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Says what a matrix is made of and what it shows."""
    own, notes = own_prompts(matrix.targets, plan.cards)
    notes += [
        f"{name} has no {split} split: scored on {used}"
        for name, used in plan.splits.items()
        if used != split
    ]
    prompts = {
        name: {"task": card.task, "type": card.task_type or task_type(card.task)}
        for name, card in plan.cards.items()
    }
    kinds = {name: each["type"] for name, each in prompts.items()}
    target_types = {name: task.type for name, task in plan.tasks.items()}
    return {
        "backbone": facts["backbone"],
        "targets": _targets(plan, cells, own),
        "prompts": prompts,
        **_seeds(plan, cells),
        **summarize_transfer(matrix, own, target_types, kinds),
        **made_with(),
        "device": facts["device"],
        "split": split,
        "random": _random(plan),
        "untouched": {"name": UNTOUCHED} if UNTOUCHED in plan.columns else None,
        "command": facts["command"],
        "elapsed_s": round(sum(cell.elapsed_s for cell in cells.values()), 2),
        "notes": notes,
    }


def _values(cells: Cells, task: str, runs: list[Any]) -> list[float]:
    return [cells[task, run.name].value for run in runs]


def _targets(plan: MatrixPlan, cells: Cells, own: Mapping[str, str]) -> dict[str, Any]:
    first = plan.runs[0].name
    return {
        name: {
            "task": task.name,
            "type": task.type,
            "metric": task.metric,
            "majority": cells[name, first].majority,
            "rows": cells[name, first].rows,
            "split": plan.splits[name],
            "own_prompt": own.get(name),
        }
        for name, task in plan.tasks.items()
    }


def _seeds(plan: MatrixPlan, cells: Cells) -> dict[str, Any]:
    """Of columns with seeds: every value, mean and sample standard deviation, by target."""
    several = {name: runs for name, runs in plan.columns.items() if runs[0].seed is not None}
    found = {}
    for name, runs in several.items():
        by_target = {}
        for task in plan.tasks:
            values = _values(cells, task, runs)
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            by_target[task] = {"mean": float(np.mean(values)), "std": std, "values": values}
        found[name] = {"seeds": [run.seed for run in runs], "targets": by_target}
    return {"seeds": found} if found else {}


def _random(plan: MatrixPlan) -> dict[str, Any] | None:
    """How the untrained prompt was made: drawn here, or one of the prompts that were given."""
    runs = plan.columns.get(RANDOM)
    if runs is None:
        return None
    if runs[0].prompt is not None:
        return {"name": RANDOM, "init": runs[0].prompt.card.init}
    return {"name": RANDOM, "seed": plan.seed, "init": RANDOM}
