"""Training a projector between two models, on tasks or on the distance to the target's prompts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpt.backbones.registry import Backbone
from jpt.mesh import place, replicated
from jpt.tasks.task import Task
from jpt.transfer.projector import initial_parameters
from jpt.transfer.projector_material import Prompts
from jpt.transfer.projector_options import ProjectorOptions
from jpt.transfer.projector_plan import Plan, plan_projector
from jpt.transfer.projector_steps import projector_optimizer, start
from jpt.transfer.projector_store import (
    PROJECTOR_FILE,
    TrainedProjector,
    load_projector,
    save_projector,
)
from jpt.tuning.checkpoints import Checkpoints
from jpt.tuning.loop import LoopState, Run, Schedule, resume, run_loop, start_state
from jpt.tuning.progress import Progress, peak_memory_mb
from jpt.tuning.run_folder import CHECKPOINTS, RunFolder


@dataclass(frozen=True)
class ProjectorResult:
    """What a finished training gives.

    Attributes:
        projector: the best one on validation.
        record: scores and settings, as in ``result.json``.
        history: the logged lines.
        folder: where the run lies, where it was written.
    """

    projector: TrainedProjector
    record: dict[str, Any]
    history: list[dict[str, Any]]
    folder: Path | None

    def describe(self) -> str:
        """Says in a few lines what came out."""
        record = self.record
        found = record["validation"]
        value = found[record["metric"]]
        lines = [
            f"{record['source_backbone']} to {record['target_backbone']}, {record['objective']} "
            f"objective, {record['weights']:,} weights: {record['metric']} {value:.4g} on "
            f"{record['measured_on']}; best at step {record['best_step']} of {record['steps']}, "
            f"{record['elapsed_s']:.0f} s"
        ]
        by_task = ", ".join(f"{name} {score:.3g}" for name, score in found["by_task"].items())
        lines.append(f"by task: {by_task}")
        if self.folder is not None:
            lines.append(f"projector: {self.folder / PROJECTOR_FILE}")
        return "\n".join(lines)


@dataclass
class _ProjectorRun(Run):
    """A run whose log says of each training step what it was about."""

    about: Callable[[int], dict[str, Any]] = lambda step: {}  # what is added to the line of a step

    def log(self, line: dict[str, Any]) -> None:
        """Keeps one line of the log."""
        if line["split"] == "train":
            more = self.about(line["step"] - 1)
            if not more:  # the distance knows no right answers
                line = {name: value for name, value in line.items() if name != "accuracy"}
            line = {**line, **more}
        super().log(line)


def train_projector(
    sources: Prompts,
    target_backbone: Backbone | str | Path,
    objective: str = "task",
    *,
    tasks: Iterable[Task | str | Path] | None = None,
    out: str | Path | None = None,
    targets: Prompts | None = None,
    data: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> ProjectorResult:
    """Trains a projector that turns prompts of one model into prompts of another.

    Paper: section 4. With the objective ``task`` the projected prompt of a task stands before its
    rows in the frozen target, and its loss trains the projector alone; several tasks take turns,
    each with its own prompt. With ``distance`` the projector learns to give the target model's own
    prompts of the same tasks, tuned before; no rows are needed.

    Args:
        sources: the source model's prompts: a folder, or prompts by name; cards name their tasks.
        target_backbone: the frozen target: a loaded one, a name, a folder or a hub id.
        objective: ``task`` or ``distance``.
        tasks: to train on; by default those of the sources' cards (distance: those of both).
        out: run folder. A finished run there returns at once, a broken one goes on and ends bit
            for bit as if it had never stopped. None keeps the run in memory.
        targets: the target's own prompts, for the distance; tasks of both that are not trained on
            are measured and change nothing.
        data: a folder that holds a folder of rows for each catalog task.
        progress: whether to show a bar on stderr.
        **options: fields of :class:`jpt.transfer.projector_options.ProjectorOptions`.

    Returns:
        The best projector by mean score on validation, or by distance on its tasks; and the log.

    Raises:
        InputError: for anything that cannot work, before anything is compiled.
        DivergedError: for a loss that is no finite number.
        StoppedError: after SIGTERM or Ctrl-C; the state is saved.

    Example:
        >>> from jpt.types import Prompt, PromptCard
        >>> card = PromptCard("builtin/bert-medium", "builtin/imdb_number")
        >>> source = Prompt(np.ones((4, 192), np.float32), card)
        >>> result = train_projector(source, "builtin/bert-small", steps=1, max_tokens=8)
        >>> result.projector(source).shape
        (4, 128)
    """
    started_s = time.monotonic()
    material = (sources, target_backbone, objective, tasks, targets, data)
    plan = plan_projector(*material, ProjectorOptions(**options))
    folder = None if out is None else RunFolder(Path(out), plan.config)
    if folder is not None and folder.result is not None:
        projector = load_projector(folder.path)
        return ProjectorResult(projector, folder.result, folder.history(), folder.path)
    if folder is None:
        return _run(plan, None, None, progress, started_s)
    with folder.lock(), Checkpoints(folder.path / CHECKPOINTS) as checkpoints:
        return _run(plan, folder, checkpoints, progress, started_s)


def _run(
    plan: Plan,
    folder: RunFolder | None,
    checkpoints: Checkpoints | None,
    progress: bool,
    started_s: float,
) -> ProjectorResult:
    options = plan.options
    run = _ProjectorRun(
        params=plan.frozen,
        answer=None,
        step=plan.step,
        batch_at=plan.batch_at,
        score=plan.score,
        schedule=Schedule(
            options.steps, options.eval_every, options.checkpoint_every, options.batch_size
        ),
        folder=folder,
        checkpoints=checkpoints,
        about=plan.about,
    )
    state = resume(run, _initial_state(plan))
    with Progress(options.steps, int(state.tune.step), shown=progress) as bar:
        state = run_loop(run, state, bar)
    best_step = int(state.best_step)
    record = _record(plan, run.history, best_step, started_s)
    score = record["validation"][record["metric"]]
    card = dataclasses.replace(plan.card, steps=best_step, score=float(score))
    name = "projector" if folder is None else str(folder.path / PROJECTOR_FILE)
    best = jax.tree.map(np.asarray, state.best_prompt)
    projector = TrainedProjector(card, best, name)
    if folder is not None:
        save_projector(folder.path / PROJECTOR_FILE, projector)
        folder.finish(record)
    return ProjectorResult(projector, record, run.history, folder.path if folder else None)


def _initial_state(plan: Plan) -> LoopState:
    card, options = plan.card, plan.options
    size = (card.source_length, card.source_width)
    params = initial_parameters(card.module(), *size, options.seed)
    optimizer = projector_optimizer(card.objective, options.learning_rate)
    return start_state(place(start(params, optimizer), replicated(plan.mesh)))


def _record(
    plan: Plan, history: list[dict[str, Any]], best_step: int, started_s: float
) -> dict[str, Any]:
    """Puts the result together, with the scores as they were when the projector was kept."""
    kept = next(
        line for line in history if line["split"] == "validation" and line["step"] == best_step
    )
    shapes = jax.eval_shape(
        plan.card.module().init,
        jax.random.key(0),
        jnp.zeros((plan.card.source_length, plan.card.source_width), jnp.float32),
    )
    return {
        "objective": plan.card.objective,
        "source_backbone": plan.card.source_backbone,
        "target_backbone": plan.card.target_backbone,
        "tasks": list(plan.card.tasks),
        "metric": plan.metric,
        "measured_on": plan.measured_on,
        "weights": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "steps": plan.options.steps,
        "best_step": best_step,
        "validation": {name: kept[name] for name in kept if name not in ("step", "split")},
        "elapsed_s": round(time.monotonic() - started_s, 2),
        "peak_memory_mb": peak_memory_mb(),
    }
