"""Everything a projector's training is made of, loaded and checked before its first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jpt.backbones.registry import Backbone
from jpt.config import check_choice
from jpt.errors import InputError
from jpt.mesh import batch_sharding, make_mesh, place, replicated
from jpt.tasks.task import Task
from jpt.transfer.projector_material import (
    Prompts,
    TaskFeed,
    TrainingTask,
    draw_pairs,
    prompt_record,
    prompts_of_tasks,
    read_prompts,
    read_tasks,
    short_names,
    training_task,
)
from jpt.transfer.projector_options import OBJECTIVES, ProjectorOptions
from jpt.transfer.projector_scoring import ProjectorScore, score_pairs, score_tasks
from jpt.transfer.projector_sizes import (
    check_targets,
    length_of,
    make_card,
    refuse_same_backbone,
    with_backbone,
)
from jpt.transfer.projector_steps import Pairs, ProjectorStep, distance_step, task_step
from jpt.transfer.projector_store import ProjectorCard
from jpt.tuning.prepare import data_record
from jpt.types import Parameters, Prompt
from jpt.version import __version__


@dataclass(frozen=True)
class Plan:
    """What is trained on what."""

    card: ProjectorCard  # of the projector to come
    options: ProjectorOptions  # with every choice made
    mesh: Mesh  # the devices
    frozen: Any  # the weights that every step reads: the target's, or the pairs of prompts
    step: ProjectorStep  # the compiled step
    batch_at: Callable[[int], Any]  # gives the batch of a step, counted from 0
    score: Callable[[Parameters], ProjectorScore]  # scores the projector's weights
    about: Callable[[int], dict[str, Any]]  # what the log says of a step, counted from 0
    metric: str  # name of the score
    measured_on: str  # what it is measured on
    config: dict[str, Any]  # what defines the run


def plan_projector(
    sources: Prompts,
    target: Backbone | str | Path,
    objective: str,
    tasks: Iterable[Task | str | Path] | None,
    targets: Prompts | None,
    data: str | Path | None,
    options: ProjectorOptions,
) -> Plan:
    """Loads and checks everything, cheap things first, before anything is compiled."""
    check_choice("objective", objective, OBJECTIVES)
    given, options = read_prompts(sources), options.settle(objective)
    refuse_same_backbone(given, target)
    mesh = make_mesh(options.mesh)
    if objective == "distance":
        return _plan_distance(given, target, tasks, targets, options, mesh)
    batch_sharding(mesh, options.batch_size)
    batch_sharding(mesh, options.eval_batch_size)
    definitions = read_tasks(tasks, given, data)
    own = prompts_of_tasks(given, definitions, "source prompts")
    length = options.length or (None if targets is None else length_of(read_prompts(targets)))
    options, backbone = with_backbone(given, target, options, objective, length, mesh)
    found = {
        name: training_task(task, given[own[name]], backbone, options, mesh)
        for name, task in definitions.items()
    }
    learnt = {name: task for name, (task, _) in found.items()}
    answer_objective = next(iter(found.values()))[1]
    card = make_card(given, backbone, objective, tuple(definitions), options)
    feed, module = TaskFeed(learnt, options.seed, mesh), backbone.module.clone(dropout_rate=0.0)
    record = {"sources": prompt_record(given, own), "data": _data_record(learnt)}
    return Plan(
        card=card,
        options=options,
        mesh=mesh,
        frozen=backbone.params,
        step=task_step(module, card.module(), options.learning_rate, answer_objective, mesh),
        batch_at=feed.batch_at,
        score=lambda params: score_tasks(card.module(), params, learnt, mesh),
        about=lambda step: {"task": feed.task_at(step)},
        metric="mean_score",
        measured_on="validation",
        config=_config(card, options, backbone, record),
    )


def _plan_distance(
    given: dict[str, Prompt],
    target: Backbone | str | Path,
    tasks: Iterable[Task | str | Path] | None,
    targets: Prompts | None,
    options: ProjectorOptions,
    mesh: Mesh,
) -> Plan:
    if targets is None:
        raise InputError(
            "the distance objective needs the target model's own prompts; give targets, a folder "
            "of prompts tuned on it, or take the objective task"
        )
    wanted = read_prompts(targets)
    common = _common_tasks(given, wanted)
    learnt = common if tasks is None else short_names(tasks)
    if not learnt:
        raise InputError(
            f"the source prompts are of the tasks {_tasks_of(given)} and the target's own of "
            f"{_tasks_of(wanted)}; tune at least one task on both models"
        )
    names = [*learnt, *(name for name in common if name not in learnt)]
    own = prompts_of_tasks(given, names, "source prompts")
    goals = prompts_of_tasks(wanted, names, "target's own prompts")
    if options.length not in (None, length_of(wanted)):
        raise InputError(
            f"length is {options.length}, and the target's own prompts have {length_of(wanted)} "
            "rows; leave length out"
        )
    options, backbone = with_backbone(given, target, options, "distance", length_of(wanted), mesh)
    check_targets(wanted, backbone)
    card = make_card(given, backbone, "distance", tuple(learnt), options)
    pairs = Pairs(
        jnp.asarray(np.stack([given[own[name]].values for name in names])),
        jnp.asarray(np.stack([wanted[goals[name]].values for name in names])),
    )
    pairs, module, count = place(pairs, replicated(mesh)), card.module(), len(learnt)
    record = {"sources": prompt_record(given, own), "targets": prompt_record(wanted, goals)}

    def batch_at(step: int) -> Array:
        drawn = draw_pairs(options.seed, step, options.batch_size, count)
        return place(drawn.astype(np.int32), replicated(mesh))

    return Plan(
        card=card,
        options=options,
        mesh=mesh,
        frozen=pairs,
        step=distance_step(module, options.learning_rate, mesh),
        batch_at=batch_at,
        score=lambda params: score_pairs(module, params, pairs, names, count),
        about=lambda step: {},
        metric="error",
        measured_on="its own tasks",
        config=_config(card, options, backbone, record),
    )


def _data_record(tasks: Mapping[str, TrainingTask]) -> dict[str, Any]:
    """What was read of every task."""
    return {
        name: data_record({"train": task.feed.split, "validation": task.validation})
        for name, task in tasks.items()
    }


def _config(
    card: ProjectorCard, options: ProjectorOptions, backbone: Backbone, record: dict[str, Any]
) -> dict[str, Any]:
    """Defines the run: another config is another run."""
    return {
        "jpt_version": __version__,
        "objective": card.objective,
        "source_backbone": card.source_backbone,
        "target_backbone": card.target_backbone,
        "fingerprint": backbone.fingerprint,
        "tasks": list(card.tasks),
        "rescale_to": card.rescale_to,
        **record,
        **dataclasses.asdict(options),
    }


def _tasks_of(prompts: Mapping[str, Prompt]) -> str:
    return ", ".join(sorted({prompt.card.task for prompt in prompts.values()}))


def _common_tasks(sources: Mapping[str, Prompt], targets: Mapping[str, Prompt]) -> list[str]:
    """Tasks that both models have prompts of, by short name."""
    first, second = (
        set(short_names({prompt.card.task for prompt in prompts.values()}))
        for prompts in (sources, targets)
    )
    return sorted(first & second)
