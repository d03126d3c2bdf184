"""The paper's table of cross-model transfer: every way to a prompt of the target, task by task."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jpt.backbones.registry import Backbone
from jpt.data.sources import has_split
from jpt.files.atomic import make_folder, write_json
from jpt.files.study_files import write_transfer
from jpt.mesh import batch_sharding, describe_devices, make_mesh
from jpt.processes import on_first
from jpt.prompts.store import save_prompt
from jpt.tasks.task import Task
from jpt.transfer.made_with import made_with
from jpt.transfer.projector_columns import Columns, Projectors, build_columns
from jpt.transfer.projector_material import Prompts
from jpt.transfer.projector_options import EvaluationOptions
from jpt.transfer.projector_table import describe_table
from jpt.transfer.projector_warm import warm_columns
from jpt.tuning.prepare import prepare_task
from jpt.tuning.settle import settle_length
from jpt.types import Prompt, TransferMatrix

TABLE, RECORD, PROJECTED = "projection.csv", "projection.json", "projected"
_TOLD = ("split", "seed", "warm_start", "warm_steps")


@dataclass(frozen=True)
class ProjectionResult:
    """What `evaluate_projector` measured.

    Attributes:
        matrix: the scores: targets down; across ``own``, ``random``, every projector and method,
            and with a warm start ``warm`` and ``vanilla``.
        record: majority shares, rows, what each projector was trained on, as in
            ``projection.json``.
        prompts: the projected prompts by method and task.
    """

    matrix: TransferMatrix
    record: dict[str, Any]
    prompts: dict[str, dict[str, Prompt]]

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Gives the scores by target and column, without pairs that were not measured."""
        matrix = self.matrix
        return {
            target: {
                n: float(v) for n, v in zip(matrix.prompts, row, strict=True) if not np.isnan(v)
            }
            for target, row in zip(matrix.targets, matrix.values, strict=True)
        }

    def describe(self) -> str:
        """Lays the table out for reading; a star marks what a projector was trained on."""
        return describe_table(self.matrix, self.record)


def evaluate_projector(
    projectors: Projectors,
    sources: Prompts,
    tasks: Iterable[Task | str | Path] | None = None,
    out: str | Path | None = None,
    *,
    targets: Prompts | None = None,
    target_backbone: Backbone | str | Path | None = None,
    source_backbone: Backbone | str | Path | None = None,
    data: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> ProjectionResult:
    """Scores projected prompts beside the target's own, a random one, and ways without training.

    Args:
        projectors: trained ones by the name of their column; several, which are named by their
            files; one; or none, ``[]``, where only methods without training shall be measured.
        sources: the source model's prompts.
        tasks: to score; by default those that the sources' cards name.
        out: folder for ``projection.csv``, ``projection.json`` and the projected prompts.
        targets: the target model's own prompts, for the column ``own``.
        target_backbone: the target; by default what the projectors' cards name.
        source_backbone: where the words of the source are read.
        data: a folder that holds a folder of rows for each catalog task.
        progress: whether to show a bar for each tuning.
        **options: fields of :class:`jpt.transfer.projector_options.EvaluationOptions`.

    Returns:
        The table.

    Raises:
        InputError: projectors of another source or target, sizes that do not fit, broken data.

    Example:
        >>> from jpt.types import PromptCard
        >>> card = PromptCard("builtin/bert-medium", "builtin/imdb_number")
        >>> source = Prompt(np.ones((4, 192), np.float32), card)
        >>> small = {"methods": ("untrained",), "max_tokens": 8}
        >>> found = evaluate_projector([], source, target_backbone="builtin/bert-small", **small)
        >>> found.matrix.prompts
        ('random', 'untrained')
    """
    started_s = time.monotonic()
    chosen = EvaluationOptions(**options)
    batch_sharding(devices := make_mesh(chosen.mesh), chosen.eval_batch_size)
    backbones = (target_backbone, source_backbone)
    columns = build_columns(projectors, sources, tasks, targets, *backbones, data, chosen, devices)
    matrix, record = _score_all(columns, chosen, devices)
    if (folder := None if out is None else make_folder(out)) is not None:
        _write_prompts(make_folder(folder / PROJECTED), columns.projected)
    if chosen.warm_start is not None:
        matrix = warm_columns(columns, matrix, chosen, folder, progress)
    record |= columns.record | {name: getattr(chosen, name) for name in _TOLD}
    record |= {**made_with(), "device": describe_devices(devices)}
    record["elapsed_s"] = round(time.monotonic() - started_s, 2)
    if folder is not None:
        write_transfer(folder / TABLE, matrix)
        write_json(folder / RECORD, record)
    return ProjectionResult(matrix, record, columns.projected)


def _score_all(
    columns: Columns, options: EvaluationOptions, mesh: Mesh
) -> tuple[TransferMatrix, dict[str, Any]]:
    """Scores every prompt of every task; all rows are read before anything is compiled."""
    prepared, rows, used = {}, {}, {}
    for name, task in columns.tasks.items():
        tokens = settle_length(options.max_tokens, columns.backbone, task, columns.length)
        prepared[name] = prepare_task(task, columns.backbone, tokens, options.eval_batch_size)
        used[name] = options.split if has_split(task, options.split) else "validation"
        rows[name] = prepared[name].split(used[name])
    names = columns.names
    values = np.full((len(rows), len(names)), np.nan)
    told = {}
    for place, (name, split) in enumerate(rows.items()):
        prompts = columns.of_task(name)
        scores = prepared[name].score([p.values for p in prompts.values()], split, mesh)
        for column, score in zip(prompts, scores, strict=True):
            values[place, names.index(column)] = score.value
        told[name] = {
            "metric": columns.tasks[name].metric,
            "majority": scores[0].majority,
            "rows": scores[0].rows,
            "split": used[name],
        }
    metrics = tuple(task.metric for task in columns.tasks.values())
    return TransferMatrix(tuple(rows), names, values, metrics), {"targets": told}


def _write_prompts(folder: Path, prompts: Mapping[str, Mapping[str, Prompt]]) -> None:
    for method, by_task in prompts.items():
        place = make_folder(folder / method)
        for task, prompt in by_task.items():
            save_prompt(place / f"{task}.safetensors", prompt)
    on_first(lambda: None)  # all processes read them, where they are tuned on
