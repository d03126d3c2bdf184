"""What a transfer matrix is made of, before a model is loaded: runs, tasks, and their rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jpt.data.rows import Row, rows_checksum
from jpt.data.sources import has_split, read_rows
from jpt.errors import InputError, unknown_name
from jpt.files.study_files import RANDOM, UNTOUCHED, refuse_twice
from jpt.prompts.seed_prompts import Prompts, load_seed_prompts, run_name
from jpt.tasks.registry import load_task
from jpt.tasks.task import SPLITS, Task
from jpt.types import Prompt, PromptCard

# Of a task, these say where rows come from; what the rows are is told by their checksum.
_PLACES = ("name", "type", "hub", "folder", "files", "rows", "label_field")


class MatrixRun(NamedTuple):
    """One prompt that is scored: a column of the matrix, or one of the seeds behind a column."""

    column: str  # name of the column
    seed: int | None  # of this run, where the column is the mean of several
    # what is scored; None for the baselines, which are made once the model is loaded
    prompt: Prompt | None

    @property
    def name(self) -> str:
        """Its name in records, for instance ``imdb/seed-0``."""
        return run_name(self.column, self.seed)


@dataclass(frozen=True)
class MatrixPlan:
    """Runs and targets of a matrix; nothing in it needs a model."""

    # the prompts, baselines last; the seeds of a column follow each other
    runs: tuple[MatrixRun, ...]
    tasks: dict[str, Task]  # the targets by short name
    splits: dict[str, str]  # which split of each target is scored
    rows: dict[str, list[Row]]  # the rows of that split
    seed: int  # of the random start

    @property
    def first(self) -> Prompt:
        """A prompt that stands for all: they have one backbone, layout, length and width."""
        return next(run.prompt for run in self.runs if run.prompt is not None)

    @property
    def columns(self) -> dict[str, list[MatrixRun]]:
        """The runs behind each column."""
        found: dict[str, list[MatrixRun]] = {}
        for run in self.runs:
            found.setdefault(run.column, []).append(run)
        return found

    @property
    def cards(self) -> dict[str, PromptCard]:
        """The card of each column that is no baseline."""
        named = ((name, runs[0].prompt) for name, runs in self.columns.items())
        return {name: prompt.card for name, prompt in named if prompt and name != RANDOM}

    def contents(self) -> dict[str, dict[str, Any]]:
        """Gives what a target's scores depend on: the question and the rows."""
        return {
            name: {
                "task": _task_checksum(task),
                "split": self.splits[name],
                "rows": rows_checksum(self.rows[name]),
            }
            for name, task in self.tasks.items()
        }

    def identity(self, run: MatrixRun) -> dict[str, Any]:
        """Gives what a run's scores depend on."""
        card, shape = self.first.card, list(self.first.values.shape)
        told = {"shape": shape, "first_position": card.first_position or 0}
        if run.prompt is not None:
            values = np.ascontiguousarray(run.prompt.values, np.float32)
            return {"prompt": hashlib.sha256(values.tobytes()).hexdigest()[:16], **told}
        seed = {"seed": self.seed} if run.column == RANDOM else {}
        return {"prompt": run.column, **seed, **told}


def plan_matrix(
    prompts: Prompts,
    tasks: Iterable[Task | str | Path] | None,
    split: str,
    data: str | Path | None,
    random: bool,
    untouched: bool,
    seed: int,
) -> MatrixPlan:
    """Loads and checks prompts, tasks and rows."""
    loaded = load_seed_prompts(prompts)
    if UNTOUCHED in loaded:
        raise InputError(
            f"a prompt is called {UNTOUCHED}, which stands for the model without a prompt in every"
            " table; rename it"
        )
    named = _tasks(tasks, [prompt for of in loaded.values() for prompt in of.values()], data)
    runs = [MatrixRun(name, s, prompt) for name, of in loaded.items() for s, prompt in of.items()]
    if random and RANDOM not in loaded:
        runs.append(MatrixRun(RANDOM, None, None))
    if untouched:
        runs.append(MatrixRun(UNTOUCHED, None, None))
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    splits = {
        name: split if has_split(task, split) else "validation" for name, task in named.items()
    }
    # All rows are read before anything is loaded or compiled: broken data shows at once.
    rows = {name: read_rows(task, splits[name]) for name, task in named.items()}
    return MatrixPlan(tuple(runs), named, splits, rows, seed)


def _tasks(
    tasks: Iterable[Task | str | Path] | None,
    prompts: Iterable[Prompt],
    data: str | Path | None,
) -> dict[str, Task]:
    """The targets by short name."""
    if tasks is None:
        asked = sorted({prompt.card.task for prompt in prompts})
    else:
        asked = list(tasks)
    if not asked:
        raise InputError("no tasks were given; name at least one, for instance builtin/imdb")
    loaded = [task if isinstance(task, Task) else _load(task, data) for task in asked]
    refuse_twice([task.short_name for task in loaded], "tasks")
    return {task.short_name: task for task in loaded}


def _load(task: str | Path, data: str | Path | None) -> Task:
    if data is None or str(task).startswith("builtin/") or not (Path(data) / str(task)).is_dir():
        return load_task(task)
    return load_task(task, Path(data) / str(task))


def _task_checksum(task: Task) -> str:
    told: Mapping[str, Any] = {
        each.name: getattr(task, each.name)
        for each in dataclasses.fields(task)
        if each.name not in _PLACES
    }
    text = json.dumps(told, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
