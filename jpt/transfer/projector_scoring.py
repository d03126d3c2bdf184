"""How well a projector does while it is trained, by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jpt.mesh import fetch
from jpt.transfer.projector import Projector, project_on_device
from jpt.transfer.projector_material import TrainingTask
from jpt.transfer.projector_steps import Pairs
from jpt.types import Parameters


@dataclass(frozen=True)
class ProjectorScore:
    """How well a projector does, in the form that the training loop reads."""

    metric: str  # ``mean_score``, or ``error`` (mean squared)
    value: float  # larger is better: the mean score, or the error below 0
    by_task: dict[str, float]  # score or error of each task
    # error of tasks that were not trained on
    unseen: dict[str, float] = dataclasses.field(default_factory=dict)
    warning: str | None = None  # a task that was answered with one label throughout

    def summary(self) -> dict[str, Any]:
        """Gives the score ready for JSON."""
        more = {"unseen": self.unseen} if self.unseen else {}
        return {self.metric: abs(self.value), "by_task": self.by_task, **more}


def score_tasks(
    module: Projector, params: Parameters, tasks: Mapping[str, TrainingTask], mesh: Mesh
) -> ProjectorScore:
    """Scores the projected prompt of every task on its validation rows."""
    values, warnings = {}, []
    for name, task in tasks.items():
        prompt = project_on_device(module, params, task.source)
        score = task.prepared.score([prompt], task.validation, mesh)[0]
        values[name] = score.value
        warnings += [f"{name}: {score.warning}"] if score.warning else []
    mean = float(np.mean(list(values.values())))
    return ProjectorScore("mean_score", mean, values, warning=warnings[0] if warnings else None)


def score_pairs(
    module: Projector, params: Parameters, pairs: Pairs, names: list[str], count: int
) -> ProjectorScore:
    """Measures the distance of every projected prompt from the target's own."""
    found = project_on_device(module, params, pairs.sources)
    errors = fetch(jnp.square(found - pairs.targets).mean(axis=(1, 2)))
    values = dict(zip(names, map(float, errors), strict=True))
    learnt = {name: values[name] for name in names[:count]}
    unseen = {name: values[name] for name in names[count:]}
    return ProjectorScore("error", -float(np.mean(list(learnt.values()))), learnt, unseen)
