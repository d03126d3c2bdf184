"""From what the user says to a task: a catalog name, ``builtin/NAME`` or a folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from jpt.errors import InputError, unknown_name
from jpt.tasks.builtin import BUILTIN, CANDIDATES
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import BUILTIN_PREFIX, Task
from jpt.tasks.user import TASK_FILE, load_user_task


def task_names() -> tuple[str, ...]:
    """Lists the tasks that have a name: the built-in ones, then the paper's.

    Returns:
        The names, each of which :func:`load_task` takes.

    Example:
        >>> "builtin/imdb" in task_names()
        True
    """
    return (*BUILTIN, *CATALOG)


def load_task(argument: str | Path, data: str | Path | None = None) -> Task:
    """Finds a task by its name or in a folder.

    Args:
        argument: a catalog name, ``builtin/NAME``, or a folder. A folder with a ``task.toml``
            defines itself; one without is named like a catalog task and takes that definition.
            A plain word is a name even where a folder is called so: write ``./sst2``.
        data: a folder with the rows of a catalog task, in place of the hub.

    Returns:
        The task.

    Raises:
        InputError: nothing has that name, or the folder holds no task.

    Example:
        >>> load_task("sst2").labels
        ('negative', 'positive')
    """
    name = os.fspath(argument)
    if isinstance(argument, str) and name.startswith(BUILTIN_PREFIX):
        return _load_builtin(name, data)
    if isinstance(argument, str) and name in CATALOG:
        return CATALOG[name] if data is None else replace(CATALOG[name], folder=_folder(data))
    if not _is_path(argument):
        raise unknown_name("task", name, task_names())
    task = _load_folder(_folder(name))
    return task if data is None else replace(task, folder=_folder(data))


def _load_builtin(name: str, data: str | Path | None) -> Task:
    known = {**BUILTIN, **CANDIDATES}
    if name not in known:
        raise unknown_name("task", name, task_names())
    if data is not None:
        raise InputError(f"task {name} brings its own rows; leave --data {data} out")
    return known[name]


def _is_path(argument: str | Path) -> bool:
    if isinstance(argument, Path) or os.path.isdir(argument):
        return True
    return os.sep in argument or argument.startswith(".")


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    state = "is a file" if folder.exists() else "does not exist"
    raise InputError(f"folder {folder} {state}; give a folder with the rows of a task")


def _load_folder(folder: Path) -> Task:
    if (folder / TASK_FILE).exists():
        return load_user_task(folder)
    name = os.path.basename(os.path.abspath(folder))
    if name not in CATALOG:
        raise InputError(
            f"folder {folder} has no {TASK_FILE} and {name!r} is no task of the catalog "
            f"({', '.join(sorted(CATALOG))}); add a {TASK_FILE} or give the folder such a name"
        )
    return replace(CATALOG[name], folder=folder)
