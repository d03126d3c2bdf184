"""What a killed process leaves in the folder of a sweep when its runs had ended already.

Runs and banks that are not done clear up when they go on. Those that are done are not opened again,
so their locks, temporary files and checkpoints are looked for here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from jpt.errors import InputError
from jpt.files.reading import read_json
from jpt.processes import is_first, on_first
from jpt.recipes.sweep_plan import BANKS, RUNS
from jpt.tuning.bank_runs import read_diverged
from jpt.tuning.run_folder import CHECKPOINTS, CONFIG, RESULT, RunFolder

BANK_RUNS = "runs.json"
"""In the folder of a bank: the names of its runs."""


def tidy_ended(folder: Path, ended: Sequence[str]) -> None:
    """Removes what was left of runs that have ended, and of banks that have no others."""
    # What another process is at work on stays.
    for name in on_first(lambda: [each for each in ended if _has_hidden(folder / RUNS / each)]):
        with suppress(InputError), _open(folder, name).lock():
            pass
    for bank, names in on_first(lambda: _ended_banks(folder)):
        with suppress(InputError), ExitStack() as held:
            for name in names:
                held.enter_context(_open(folder, name).lock())
            remove_bank_folder(folder / BANKS / bank)
    if is_first():
        with suppress(OSError):  # there is none, or banks are under way
            (folder / BANKS).rmdir()


def remove_bank_folder(path: Path) -> None:
    """Removes the checkpoints of a bank, and with the last one the folder of all banks."""
    if is_first():
        shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)  # first: its runs are named beside it
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # other banks are under way
            path.parent.rmdir()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one job at a time write the tables; the temporary files of one that was killed go."""
    if not is_first():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk without locks: a leftover stays
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for path in folder.glob(".jpt-*.tmp"):
                path.unlink()
        yield
    finally:
        os.close(descriptor)


def _has_hidden(path: Path) -> bool:
    return any(each.name.startswith(".") for each in path.iterdir())


def _open(folder: Path, name: str) -> RunFolder:
    path = folder / RUNS / name
    return RunFolder(path, on_first(lambda: read_json(path / CONFIG)))


def _ended_banks(folder: Path) -> list[tuple[str, list[str]]]:
    banks = [
        (path.parent.name, read_json(path)) for path in (folder / BANKS).glob(f"*/{BANK_RUNS}")
    ]
    return [(bank, names) for bank, names in banks if all(_ended(folder, name) for name in names)]


def _ended(folder: Path, name: str) -> bool:
    path = folder / RUNS / name
    return (path / RESULT).exists() or read_diverged(path) is not None
