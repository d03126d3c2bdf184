"""Warm start: does training from another task's prompt save steps, and does it end higher?

Paper: section 3, initialising from a trained prompt ("TPT" on one model).
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jpt.backbones.registry import Backbone
from jpt.config import TuneOptions
from jpt.errors import InputError
from jpt.files.atomic import make_folder, write_json
from jpt.files.tables import write_table
from jpt.mesh import make_mesh
from jpt.tasks.task import Task
from jpt.transfer.warm_start_measures import TOLERANCE, Curve
from jpt.transfer.warm_start_record import describe_record, warm_start_record
from jpt.transfer.warm_start_sources import VANILLA, Sources, check_sources, read_sources
from jpt.tuning.prepare import Data, as_backbone, as_task
from jpt.tuning.settle import settle_options
from jpt.tuning.start import Start
from jpt.tuning.tune import TuneResult, tune

RECORD, CURVES = "warm_start.json", "curves.csv"
SCORINGS = 20
"""How often validation is scored in a run, where nothing else is asked for."""

_COMPARED = ("seed", "init", "start", "score_start", "predictions")


@dataclass(frozen=True)
class WarmStartResult:
    """What `warm_start` gives.

    Attributes:
        runs: every run by seed and name, ``vanilla`` first.
        curves: the validation scores of each, from step 0.
        record: definitions, settings, runs, speed-ups, as in ``warm_start.json``.
        folder: where the study lies, where it was written.
    """

    runs: dict[tuple[int, str], TuneResult]
    curves: dict[tuple[int, str], Curve]
    record: dict[str, Any]
    folder: Path | None

    def describe(self) -> str:
        """Lays scores and speed-ups out for reading, at most 80 columns wide."""
        return describe_record(self.record)


@dataclass(frozen=True)
class _Study:
    """Everything that the runs share, before anything is compiled."""

    task: Task
    backbone: Backbone
    options: TuneOptions
    starts: dict[str, Start | None]

    def shared(self) -> dict[str, Any]:
        """The options of every run: with the seed they fix order and number of the rows."""
        options = dataclasses.asdict(self.options)
        return {name: value for name, value in options.items() if name not in _COMPARED}


def warm_start(
    task: Task | str | Path,
    sources: Sources,
    out: str | Path | None = None,
    *,
    backbone: Backbone | str | Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    copy_moments: bool = False,
    tolerance: float = TOLERANCE,
    data: Data | None = None,
    progress: bool = False,
    **options: Any,
) -> WarmStartResult:
    """Tunes a task from a random start and from given prompts, and compares how fast they learn.

    A seed has one vanilla run and one run per source, with the same rows in the same order, scored
    on validation at step 0 and every ``eval_every`` steps. *Convergence speed-up*: the vanilla
    run's convergence step over the warm run's; a run converges at the first step within
    ``tolerance`` of its own best plain score. *Comparable-result speed-up*: the step of the vanilla
    run's best over the warm run's first step with that value. The paper's code has neither.

    Args:
        task: the target: a task, its name, or its folder.
        sources: prompt files or run folders, or prompts by name; all of one backbone and size.
        out: folder for a run folder ``seed-S/NAME`` each, ``warm_start.json`` and ``curves.csv``;
            the same call goes on there. None keeps all in memory.
        backbone: instead of the one that the cards name; the width is checked.
        seeds: of row order and vanilla start. Intervals need two or more.
        copy_moments: whether Adam's moments come along, its count of steps set to 0 (the authors'
            script). Sources are run folders then, and give prompt and moments of the last step.
        tolerance: of convergence, in the unit of the score (0.01: one point of accuracy).
        data: folder of the task's rows, or the rows by split.
        progress: whether to show facts and a bar for each run on stderr.
        **options: of :class:`jpt.config.TuneOptions`, without ``seed`` and ``init``.

    Returns:
        Runs, curves, and speed-ups with 95 % intervals over the seeds.

    Raises:
        InputError: for what cannot work, before anything is compiled.
        StoppedError: after SIGTERM or Ctrl-C; the state is saved.

    Example:
        >>> from jpt.types import Prompt, PromptCard
        >>> card = PromptCard("builtin/bert-small", "builtin/imdb")
        >>> ones = Prompt(np.ones((4, 128), np.float32), card)
        >>> rows = [{"text": "film", "label": label} for label in ("positive", "negative")]
        >>> options = {"data": {"train": rows, "validation": rows}, "steps": 4, "eval_every": 2}
        >>> warm_start("sst2", {"one": ones}, seeds=[0], **options).curves[0, "one"].steps.tolist()
        [0, 2, 4]
    """
    seeds = _check(seeds, tolerance, options)
    study = _prepare(task, sources, backbone, copy_moments, data, options)
    folder = None if out is None else Path(out)
    runs = _run_all(study, folder, seeds, progress)
    curves = {key: _curve(result, study.task.metric) for key, result in runs.items()}
    record = _record(study, runs, curves, tolerance, copy_moments)
    if folder is not None:
        _write(folder, record, curves)
    return WarmStartResult(runs, curves, record, folder)


def _check(seeds: Sequence[int], tolerance: float, options: dict[str, Any]) -> list[int]:
    seeds = list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {seeds}; give one or more different ones, for instance 0,1,2")
    for seed in seeds:
        TuneOptions(seed=seed)
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance is {tolerance}; give a number from 0 to below 1, such as 0.01")
    for name in _COMPARED:
        if name in options:
            raise InputError(f"{name} is set by warm_start itself, from run to run; leave it out")
    return seeds


def _prepare(
    task: Task | str | Path,
    sources: Sources,
    backbone: Backbone | str | Path | None,
    copy_moments: bool,
    data: Data | None,
    options: dict[str, Any],
) -> _Study:
    """Reads and checks what the runs share; each run checks rows and lengths before its start."""
    given = TuneOptions(**options)
    starts = read_sources(sources, copy_moments)
    name, start = next(iter(starts.items()))
    rows = len(start.prompt.values)
    if given.length not in (None, rows):
        raise InputError(
            f"length is {given.length}, but source {name} has {rows} rows; leave length out"
        )
    definition = as_task(task, data)
    asked = start.prompt.card.backbone if backbone is None else backbone
    dropout, mesh = given.dropout == "paper", make_mesh(given.mesh)
    model = as_backbone(asked, given.dtype, dropout, mesh, given.remat)
    check_sources(starts, model, backbone is not None)
    settled = settle_options(dataclasses.replace(given, length=rows), model, definition)
    every = given.eval_every or max(1, settled.steps // SCORINGS)
    if every > settled.steps:
        raise InputError(
            f"eval_every is {every}, but a run has {settled.steps} steps; a curve needs scorings "
            f"on the way: set eval_every to {max(1, settled.steps // SCORINGS)}"
        )
    settled = dataclasses.replace(settled, eval_every=every)
    return _Study(definition, model, settled, {VANILLA: None, **starts})


def _run_all(
    study: _Study, folder: Path | None, seeds: list[int], progress: bool
) -> dict[tuple[int, str], TuneResult]:
    runs: dict[tuple[int, str], TuneResult] = {}
    for seed, (name, start) in itertools.product(seeds, study.starts.items()):
        if progress:
            of = len(seeds) * len(study.starts)
            print(f"run {len(runs) + 1} of {of}: {name}, seed {seed}", file=sys.stderr)
        runs[seed, name] = tune(
            study.backbone,
            study.task,
            None if folder is None else folder / f"seed-{seed}" / name,
            start=start,
            score_start=True,
            seed=seed,
            progress=progress,
            **study.shared(),
        )
    return runs


def _curve(result: TuneResult, metric: str) -> Curve:
    scored = [line for line in result.history if line["split"] == "validation"]
    steps = np.array([line["step"] for line in scored], np.int64)
    return Curve(steps, np.array([line[metric] for line in scored], np.float64))


def _record(
    study: _Study,
    runs: dict[tuple[int, str], TuneResult],
    curves: dict[tuple[int, str], Curve],
    tolerance: float,
    copy_moments: bool,
) -> dict[str, Any]:
    facts = {"copy_moments": copy_moments, "settings": study.shared()}
    measured = (study.starts, runs, curves, tolerance)
    return warm_start_record(study.task, study.backbone, *measured, facts)


def _write(folder: Path, record: dict[str, Any], curves: dict[tuple[int, str], Curve]) -> None:
    make_folder(folder)
    rows = [
        (name, seed, step, value)
        for (seed, name), curve in curves.items()
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
    ]
    write_table(folder / CURVES, ("run", "seed", "step", "value"), rows)
    write_json(folder / RECORD, record)
