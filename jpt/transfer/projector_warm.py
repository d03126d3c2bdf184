"""Tuning on the target from projected prompts, beside a random start of as many steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jpt.files.atomic import make_folder
from jpt.transfer.projector_columns import VANILLA, WARM, Columns
from jpt.transfer.projector_options import EvaluationOptions
from jpt.tuning.start import Start
from jpt.tuning.tune import tune
from jpt.types import TransferMatrix


def warm_columns(
    columns: Columns,
    matrix: TransferMatrix,
    options: EvaluationOptions,
    folder: Path | None,
    progress: bool,
) -> TransferMatrix:
    """Tunes every task from its projected prompt and from a random one, in as many steps."""
    values = np.full((len(columns.tasks), 2), np.nan)
    starts = columns.projected[options.warm_start]
    for row, task in enumerate(columns.tasks):
        begun: dict[str, Any] = {"start": Start(task, starts[task])}
        if folder is not None:  # a run is told by its start, so that has to stay where it is
            kept = folder / "projected" / options.warm_start / f"{task}.safetensors"
            begun = {"init": f"prompt:{kept}"}
        for column, (name, given) in enumerate({WARM: begun, VANILLA: {}}.items()):
            out = None if folder is None else make_folder(folder / name) / task
            values[row, column] = _tuned(columns, task, given, options, out, progress)
    names = (*matrix.prompts, WARM, VANILLA)
    return dataclasses.replace(matrix, prompts=names, values=np.hstack([matrix.values, values]))


def _tuned(
    columns: Columns,
    task: str,
    given: dict[str, Any],
    options: EvaluationOptions,
    out: Path | None,
    progress: bool,
) -> float:
    result = tune(
        columns.backbone,
        columns.tasks[task],
        out,
        **given,
        steps=options.warm_steps,
        length=columns.length,
        max_tokens=options.max_tokens,
        eval_batch_size=options.eval_batch_size,
        seed=options.seed,
        dtype=options.dtype,
        mesh=options.mesh,
        progress=progress,
    )
    record = result.record
    return record.get(options.split, record["validation"])[record["metric"]]
