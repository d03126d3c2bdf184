"""Rows from the Hugging Face hub, where a task was asked for by name and without a folder."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jpt.errors import InputError
from jpt.tasks.task import HubSource, Task

REACH_TIMEOUT_S = 5


def read_hub_rows(task: Task, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads a split of a task from the hub, or from what the hub's library has kept of it.

    Args:
        task: a task with a hub source.
        split: one of the task's splits.

    Yields:
        The number of the row, from 0, and its values under the task's names of the fields.

    Raises:
        InputError: the hub cannot be reached and nothing of the data set was kept, or the data
            set has no such part.
    """
    assert task.hub is not None, "only tasks of the hub come here"
    name_of = {column: field for field, column in task.hub.fields.items()}
    for number, row in enumerate(_load(task, task.hub, split)):
        yield number, {name_of.get(column, column): value for column, value in row.items()}


def describe_hub_split(hub: HubSource, split: str) -> str:
    """Names a part of a data set of the hub for messages.

    Args:
        hub: the data set.
        split: one of the task's splits.

    Returns:
        For instance ``nyu-mll/glue sst2 train[-2000:]``.
    """
    return " ".join(part for part in (hub.path, hub.config, hub.splits[split]) if part)


def _load(task: Task, hub: HubSource, split: str) -> Any:
    import datasets

    try:
        with _offline_where_unreachable():
            return datasets.load_dataset(
                hub.path, hub.config, split=hub.splits[split], revision=hub.revision
            )
    except Exception as error:  # offline, gone, renamed, no space: the library raises many kinds
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"task {task.name} reads {describe_hub_split(hub, split)} from the hub, which failed "
            f"({type(error).__name__}: {reason}); give a folder with {split}.jsonl whose rows have "
            f"{', '.join((*task.fields, task.label_field))}: --data DIR"
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
