"""The compiled train step with all that it needs, for a loop of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jpt.backbones.registry import Backbone
from jpt.config import TuneOptions
from jpt.mesh import make_mesh, place, replicated
from jpt.tasks.task import Task
from jpt.tuning.initial import initial_prompt
from jpt.tuning.losses import Answer
from jpt.tuning.prepare import Data, as_backbone, as_task, prepare_for
from jpt.tuning.settle import settle_options
from jpt.tuning.step import (
    BoundStep,
    StepMetrics,
    TuneState,
    init_state,
    paper_train_step,
    prompt_optimizer,
)
from jpt.types import Batch, Parameters


@dataclass(frozen=True)
class OwnStep:
    """A compiled step on one backbone and one task."""

    run: BoundStep  # the compiled step; runs of every rate and seed share its program
    params: Parameters  # the frozen weights
    answer: Answer  # which words stand for the labels

    def __call__(self, state: TuneState, batch: Batch) -> tuple[TuneState, StepMetrics]:
        """Does one step; the state that is given is used up."""
        return self.run(self.params, state, batch, self.answer)

    def compile(self, state: TuneState, batch: Batch) -> jax.stages.Compiled:
        """Compiles the step for a batch's shape without doing it."""
        return self.run.lower(self.params, state, batch, self.answer).compile()


def step_of(model: Backbone, options: TuneOptions, mesh: Mesh) -> BoundStep:
    """Gives the compiled step that the options of a run ask for."""
    return paper_train_step(
        model.module,
        options.learning_rate,
        options.seed if options.dropout == "paper" else 0,
        options.objective,
        mesh,
        options.clip_norm,
    )


def train_step(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    *,
    data: Data | None = None,
    **options: Any,
) -> tuple[OwnStep, TuneState]:
    """Gives the very step that `jpt.tune` does, and the state before the first one.

    With the same options `jpt.training_batches` gives the batches.

    Args:
        backbone: a loaded backbone, a built-in name, a folder of weights or a hub id.
        task: a task, its name, or its folder.
        data: folder of the task's rows, or the rows by split.
        **options: fields of :class:`jpt.config.TuneOptions`.

    Returns:
        ``step(state, batch) -> state, metrics`` and the first state, on the mesh.

    Raises:
        InputError: for options that do not fit.

    Example:
        >>> from jpt.tuning.feed import training_batches
        >>> given = {"backbone": "builtin/bert-small", "task": "builtin/imdb_number"}
        >>> options = {"steps": 1, "batch_size": 2, "length": 4, "max_tokens": 16}
        >>> step, state = train_step(**given, **options)
        >>> for batch in training_batches(**given, **options):
        ...     state, metrics = step(state, batch)
        >>> int(state.step), metrics.loss.shape
        (1, ())
    """
    given = TuneOptions(**options)
    mesh, definition = make_mesh(given.mesh), as_task(task, data)
    model = as_backbone(backbone, given.dtype, given.dropout == "paper", mesh, given.remat)
    chosen = settle_options(given, model, definition)
    prepared = prepare_for(definition, model, chosen)
    values = initial_prompt(model, prepared, chosen)
    state = init_state(values, prompt_optimizer(chosen.learning_rate))
    run = step_of(model, chosen, mesh)
    step = OwnStep(run, model.params, prepared.answer)
    return step, place(state, replicated(mesh))
