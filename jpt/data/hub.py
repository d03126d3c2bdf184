"""Rows from the Hugging Face hub, where a task was asked for by name and without a folder."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jpt.data.rows import value_names
from jpt.errors import InputError, unknown_name
from jpt.tasks.task import PARQUET_BRANCH, HubSource, Task

REACH_TIMEOUT_S = 5

HubRow = dict[str, Any]
"""The values of a row on the hub, under the task's names of the fields."""


def plain(row: HubRow, task: Task) -> HubRow | None:
    """Keeps a row as it is."""
    return row


def complete(row: HubRow, task: Task) -> HubRow | None:
    """Leaves out a row without label, which the hub numbers -1, or without text in a field."""
    texts = value_names(task) if task.is_written else task.fields
    if not all(_has_text(row[name]) for name in texts if name in row):
        return None
    unlabelled = not task.is_written and row.get(task.label_field, 0) in (None, -1)
    return None if unlabelled else row


def _has_text(value: object) -> bool:
    """Whether a text, a list of texts or an answer of SQuAD holds anything."""
    texts = value.get("text") if isinstance(value, dict) else value
    return any(text.strip() for text in ([texts] if isinstance(texts, str) else texts or ()))


def signed(row: HubRow, task: Task) -> HubRow | None:
    """Counts labels from 0 that the hub has as signs: -1 negative, 0 neutral, 1 positive."""
    label = row.get(task.label_field)
    return {**row, task.label_field: label + 1} if isinstance(label, int) else row


FORMS: dict[str, Callable[[HubRow, Task], HubRow | None]] = {
    "plain": plain,
    "complete": complete,
    "signed": signed,
}
"""How rows of the hub become ours; None leaves a row out."""


def read_hub_rows(task: Task, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads a split of a task from the hub, or from what the hub's library has kept of it."""
    assert task.hub is not None, "only tasks of the hub come here"
    if task.hub.form not in FORMS:
        raise unknown_name("form of hub rows", task.hub.form, FORMS)
    form = FORMS[task.hub.form]
    name_of = {column: field for field, column in task.hub.fields.items()}
    for number, values in enumerate(_load(task, task.hub, split)):
        row = form({name_of.get(column, column): value for column, value in values.items()}, task)
        if row is not None:
            yield number, row


def describe_hub_split(hub: HubSource, split: str) -> str:
    """Names a part of a data set of the hub for messages."""
    return " ".join(part for part in (hub.path, hub.config, hub.splits[split]) if part)


def _load(task: Task, hub: HubSource, split: str) -> Any:
    import datasets

    # In the branch of parquet copies a configuration has no name, but a folder.
    is_copy = hub.revision == PARQUET_BRANCH
    part = {"data_dir": hub.config} if is_copy else {"name": hub.config}
    try:
        with _offline_where_unreachable():
            return datasets.load_dataset(
                hub.path, split=hub.splits[split], revision=hub.revision, **part
            )
    except Exception as error:  # offline, gone, renamed, no space: the library raises many kinds
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"task {task.name} reads {describe_hub_split(hub, split)} from the hub, which failed "
            f"({type(error).__name__}: {reason}); give a folder with {split}.jsonl whose rows have "
            f"{', '.join(value_names(task))}: --data DIR"
        ) from None


@contextmanager
def _offline_where_unreachable() -> Iterator[None]:
    """Lets the library look only at what it has kept, where it would else retry for 25 seconds."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    offline = any(before) or not _is_reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = offline, offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _is_reachable(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False
    return True
