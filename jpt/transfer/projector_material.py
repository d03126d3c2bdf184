"""What a projector learns from: prompts of both models paired by task, tasks with their rows."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int64

from jpt.backbones.registry import Backbone
from jpt.data.batches import shuffled
from jpt.data.encode import EncodedSplit
from jpt.errors import InputError
from jpt.files.study_files import refuse_twice
from jpt.mesh import place, replicated
from jpt.prompts.collection import load_prompts
from jpt.prompts.own import own_prompts, short_task
from jpt.prompts.store import PROMPT_FILE, load_prompt
from jpt.tasks.registry import load_task
from jpt.tasks.task import Task
from jpt.transfer.projector_options import ProjectorOptions
from jpt.transfer.projector_steps import TaskBatch
from jpt.tuning.feed import Feed, make_feed
from jpt.tuning.prepare import PreparedTask, prepare_for
from jpt.tuning.settle import settle_options
from jpt.types import Prompt

Prompts = Mapping[str, Prompt] | Prompt | str | Path
"""Prompts by name, a folder of them, or one prompt, its file or its run folder."""

TASK_TURNS = zlib.crc32(b"projector/task_turns")
PAIR_DRAWS = zlib.crc32(b"projector/pair_draws")
MORE_DRAWS = zlib.crc32(b"projector/pair_draws/more")


def read_prompts(prompts: Prompts) -> dict[str, Prompt]:
    """Loads prompts of one backbone and length by name."""
    if isinstance(prompts, Prompt):
        return {short_task(prompts.card.task): prompts}
    if isinstance(prompts, (str, Path)):
        path = Path(prompts)
        if path.is_file() or (path / PROMPT_FILE).is_file():
            name = path.parent.name if path.name == PROMPT_FILE else path.stem
            return {name: load_prompt(path)}
    return load_prompts(prompts)


def short_names(tasks: Iterable[Task | str | Path]) -> list[str]:
    """Gives the names of tasks as tables have them."""
    names = [t.short_name if isinstance(t, Task) else short_task(str(t)) for t in tasks]
    refuse_twice(names, "tasks")
    return names


def read_tasks(
    tasks: Iterable[Task | str | Path] | None,
    prompts: Mapping[str, Prompt],
    data: str | Path | None,
) -> dict[str, Task]:
    """Loads the tasks that were asked for, or those that the prompts' cards name."""
    if tasks is not None:
        asked = list(tasks)
        if not asked:
            raise InputError("no tasks were given; name at least one, for instance builtin/imdb")
        loaded = [task if isinstance(task, Task) else _load(task, data) for task in asked]
    else:
        loaded = [_named_by(*item, data) for item in _first_of_each_task(prompts).items()]
    refuse_twice([task.short_name for task in loaded], "tasks")
    return {task.short_name: task for task in loaded}


def _first_of_each_task(prompts: Mapping[str, Prompt]) -> dict[str, str]:
    """The first prompt of each task that the cards name."""
    return {prompt.card.task: name for name, prompt in reversed(list(prompts.items()))}


def _named_by(task: str, prompt: str, data: str | Path | None) -> Task:
    try:
        return _load(task, data)
    except InputError as error:
        raise InputError(f"the card of prompt {prompt} names its task: {error}") from None


def _load(task: str | Path, data: str | Path | None) -> Task:
    if data is None or str(task).startswith("builtin/") or not (Path(data) / str(task)).is_dir():
        return load_task(task)
    return load_task(task, Path(data) / str(task))


def prompts_of_tasks(
    prompts: Mapping[str, Prompt], tasks: Iterable[str], what: str
) -> dict[str, str]:
    """Finds the prompt of each task by what the cards say, never by an order of files."""
    tasks = list(tasks)
    own, _ = own_prompts(tasks, {name: prompt.card for name, prompt in prompts.items()})
    for task in tasks:
        if task not in own:
            named = {n: short_task(prompt.card.task) for n, prompt in prompts.items()}
            several = [name for name, of in named.items() if of == task]
            found = f"{len(several)} prompts ({', '.join(several)})" if several else "no prompt"
            raise InputError(
                f"task {task} has {found} among the {what}, whose cards name "
                f"{', '.join(sorted(set(named.values())))}; one expected: tune it, or leave the "
                "task out"
            )
    return own


def prompt_record(prompts: Mapping[str, Prompt], of: Mapping[str, str]) -> dict[str, Any]:
    """Records which prompt stands for which task, so that a resumed run can tell a change."""
    return {
        task: {
            "prompt": name,
            "sha256": hashlib.sha256(prompts[name].values.tobytes()).hexdigest()[:16],
        }
        for task, name in of.items()
    }


@dataclass(frozen=True)
class TrainingTask:
    """One task that a projector is trained on."""

    prepared: PreparedTask  # the task as the target reads it
    feed: Feed  # its training batches
    validation: EncodedSplit  # encoded rows
    source: Float[Array, "Ps Ds"]  # the source model's prompt of this task, on the devices


@dataclass(frozen=True)
class TaskFeed:
    """Batches of several tasks, one task a step, each with its own source prompt."""

    # Every task has its turn once before any has its next, in an order of the seed, so all weigh
    # the same, whatever their number of rows. (Paper's code: rows of all tasks in one batch, the
    # larger tasks cut to the smallest, and with more than one task the rows get another task's
    # prompt.)

    tasks: Mapping[str, TrainingTask]  # by short name
    seed: int  # of the order of tasks; that of rows is in their feeds
    mesh: Mesh = field(repr=False)  # the devices

    def task_at(self, step: int) -> str:
        """Gives the task of a step, counted from 0."""
        turn, place = divmod(step, len(self.tasks))
        return list(self.tasks)[shuffled(self.seed, TASK_TURNS, turn, len(self.tasks))[place]]

    def batch_at(self, step: int) -> TaskBatch:
        """Gives the batch of a step, on the devices."""
        task = self.tasks[self.task_at(step)]
        rows = task.feed.placed_at(step // len(self.tasks), self.mesh)
        return TaskBatch(rows, task.source, task.prepared.answer)


def training_task(
    task: Task, source: Prompt, backbone: Backbone, options: ProjectorOptions, mesh: Mesh
) -> tuple[TrainingTask, str]:
    """Reads what is needed of one task."""
    chosen = settle_options(options.feeding(), backbone, task)
    prepared = prepare_for(task, backbone, chosen)
    feed = make_feed(
        prepared.split("train"), chosen, prepared.batching, backbone.layout, mesh.shape["data"]
    )
    rows = place(jnp.asarray(source.values), replicated(mesh))
    return TrainingTask(prepared, feed, prepared.split("validation"), rows), chosen.objective


def draw_pairs(seed: int, step: int, batch_size: int, count: int) -> Int64[np.ndarray, "B"]:
    """Chooses the tasks of one step of the distance objective."""
    # Paper's code: names drawn without replacement, and topped up with replacement where there are
    # fewer than the batch has places.
    first = shuffled(seed, PAIR_DRAWS, step, count)[:batch_size]
    key = np.array([seed, MORE_DRAWS << 32 | step], dtype=np.uint64)
    more = np.random.Philox(key=key).random_raw(max(0, batch_size - count)) % np.uint64(count)
    return np.concatenate([first, more.astype(np.int64)])
