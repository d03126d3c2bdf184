"""The rows that a recommendation may look at: a few of train, with their labels or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

from jpt.data.batches import shuffled
from jpt.data.rows import Row
from jpt.data.sources import has_split, read_rows, read_texts
from jpt.errors import InputError
from jpt.tasks.task import Task

LABELS = 64
"""Labelled rows, where nothing else is said."""

TEXTS = 256
"""Texts without labels, where there are no labels."""

STREAM = crc32(b"recommend/rows")


def labelled_task(task: Task, labels: int | None, seed: int) -> tuple[Task, list[str]]:
    """Gives a task that knows a few labelled rows of train and nothing else."""
    if not has_split(task, "train"):
        raise InputError(
            f"task {task.name} has no train rows, so there are no labels to score sources and to"
            " tune a probe on; give some, or rank without labels: --labels 0"
        )
    rows = read_rows(task, "train")
    if labels is not None and labels > len(rows):
        raise InputError(
            f"labels is {labels}, but task {task.name} has {len(rows)} train rows; ask for"
            f" {len(rows)} or fewer"
        )
    chosen = _some(rows, LABELS if labels is None else labels, seed)
    notes = []
    lacking = [label for label in task.labels if all(row["label"] != label for row in chosen)]
    if lacking:
        notes.append(
            f"no labelled row is {' or '.join(lacking)}: scores say nothing of telling that apart"
        )
    return _with(task, chosen), notes


def unlabelled_task(task: Task, seed: int) -> Task:
    """Gives a task that knows some texts and no labels."""
    if task.is_written:
        raise InputError(
            f"the answers of task {task.name} are written: without labelled rows there is nothing"
            " to rank sources by; give some rows with answers (--labels 16)"
        )
    if not has_split(task, "train"):
        raise InputError(
            f"task {task.name} has no train rows, so there are no texts to ask sources about; give"
            " some, labels are not needed"
        )
    return _with(task, _some(read_texts(task, "train"), TEXTS, seed))


def _some(rows: Sequence[Row], count: int, seed: int) -> tuple[Row, ...]:
    """Rows by chance, in the order in which they stood."""
    chosen = shuffled(seed, STREAM, 0, len(rows))[:count]
    return tuple(rows[number] for number in sorted(chosen.tolist()))


def _with(task: Task, rows: tuple[Row, ...]) -> Task:
    """A task with these rows alone. Checked rows have their target under one name."""
    target = {"answer_field": "answers"} if task.is_written else {"label_field": "label"}
    splits = {"train": rows, "validation": rows}
    return replace(task, rows=splits, folder=None, files={}, **target)
