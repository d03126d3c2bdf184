"""Many runs from one file: packed into banks, resumable, ending in one table.

The folder is the only truth. Each run is an ordinary run folder below ``runs``; a bank that is
under way has its checkpoints below ``banks``; the tables are read from the results, never kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jpt.errors import InputError
from jpt.files.atomic import make_folder, write_json
from jpt.files.reading import read_json
from jpt.processes import on_first
from jpt.recipes.sweep_grid import OPTIONS, Sweep, SweepRun, on_mesh, parse_sweep, read_sweep
from jpt.recipes.sweep_memory import MOST_PLACES, choose_places
from jpt.recipes.sweep_plan import (
    BANKS,
    RUNS,
    Bank,
    Preparer,
    banked_runs,
    group_runs,
    pack,
    still_to_do,
)
from jpt.recipes.sweep_progress import SweepProgress
from jpt.recipes.sweep_search import Search, describe_search
from jpt.recipes.sweep_table import DONE, WAITING, describe_rows, run_row, write_tables
from jpt.recipes.sweep_tidy import BANK_RUNS, one_at_a_time, remove_bank_folder, tidy_ended
from jpt.transfer.made_with import made_with
from jpt.tuning.bank import run_bank
from jpt.tuning.bank_runs import read_diverged
from jpt.tuning.run_folder import CHECKPOINTS, CONFIG, MAY_DIFFER, RESULT, RunFolder
from jpt.tuning.tune import PreparedRun

RECORD = "sweep.json"

Workers = Callable[[Sequence[Bank], Sequence[SweepRun], Path, SweepProgress], None]


@dataclass(frozen=True)
class SweepResult:
    """What `sweep` gives.

    Attributes:
        folder: of the sweep; ``runs`` below it is a folder of prompts.
        rows: a row for each run, as in ``runs.csv``.
        record: counts by state, the rows, and what a search has found.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    record: dict[str, Any]

    def describe(self) -> str:
        """Says what came out, the best setting of each task first."""
        counts = ", ".join(f"{count} {state}" for state, count in self.record["states"].items())
        search = self.record.get("search")
        found = f"{describe_search(search)}\n" if search else ""
        return f"{describe_rows(self.rows)}\n{found}{counts}: {self.folder}"


def sweep(
    grid: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    shard: str | None = None,
    trials: int | None = None,
    mesh: str | None = None,
    workers: Workers | None = None,
    progress: bool = False,
) -> SweepResult:
    """Tunes a prompt for every run of a grid, and puts their scores into one table.

    Args:
        grid: the TOML file, or its tables as a dictionary.
        out: folder of the sweep; the same call goes on there, and a larger grid adds to it.
        shard: ``"i/n"``: only every n-th bank from the i-th on, for job arrays on one folder.
        trials: how many settings are tried of a grid with ``[search]``; needs optuna.
        mesh: devices by axis, where the file names none; runs of a bank lie over ``prompt``.
        workers: who trains the banks; by default this process, one bank after the other.
        progress: whether to show on stderr how far it is.

    Returns:
        A row a run. With a shard, other jobs' runs may still be waiting.

    Raises:
        InputError: a grid that cannot work, before anything is compiled.
        StoppedError: after SIGTERM or Ctrl-C; the same call goes on.

    Example:
        >>> fixed = {"backbone": "builtin/bert-small", "task": "builtin/imdb_number", "steps": 9}
        >>> grid = {"fixed": fixed, "grid": {"seed": [0, 1, 2]}}
        >>> [row["state"] for row in sweep(grid, "swept").rows]  # doctest: +SKIP
        ['done', 'done', 'done']
    """
    plan = read_sweep(grid) if isinstance(grid, str | Path) else parse_sweep(grid)
    plan = plan if mesh is None else on_mesh(plan, mesh)
    share = _shard(shard)
    if not plan.ranges and trials is None:
        return run_sweep(plan, make_folder(out), share, workers, progress)
    if shard is not None:
        raise InputError("a search asks for its next settings in one place; leave out shard")
    return _search(plan, trials, Path(out), workers, progress)


def run_sweep(
    plan: Sweep, folder: Path, share: tuple[int, int], workers: Workers | None, progress: bool
) -> SweepResult:
    """Carries out what a sweep file says."""
    preparer = Preparer()
    chosen = workers or partial(train_here, preparer=preparer)  # what was read is read once

    def work(*given: Any) -> None:
        try:
            chosen(*given)
        except InputError:  # of one bank; the others may have ended
            _collect(plan, folder)
            raise

    _carry_out(plan, folder, share, work, progress, preparer)
    return _collect(plan, folder)


def _search(
    plan: Sweep, trials: int | None, out: Path, workers: Workers | None, progress: bool
) -> SweepResult:
    """Lets a search choose the runs, round after round."""
    search, preparer = Search(plan, trials), Preparer()
    workers = workers or partial(train_here, preparer=preparer)

    def places() -> int:
        parts, most = preparer.prepare(search.lowest), plan.places or MOST_PLACES
        return choose_places(parts, most, plan.places, plan.memory_gb)

    folder = make_folder(out)
    at_once = search.settle_round(folder, places)
    while (part := search.ask(at_once)) is not None:
        _carry_out(part, folder, (1, 1), workers, progress, preparer)
        for line in search.tell(_rows(part, folder)):
            if progress:
                print(line, file=sys.stderr)
        result = _collect(search.whole, folder, search.record())
    return result


def _carry_out(
    plan: Sweep,
    folder: Path,
    share: tuple[int, int],
    workers: Workers,
    progress: bool,
    preparer: Preparer,
) -> None:
    """Trains what is left of a sweep."""
    names = on_first(lambda: _done(plan, folder))
    done = [run for run in plan.runs if run.name in names]
    for run in done:
        _refuse_changed(folder, run)
    tidy_ended(folder, [run.name for run in done])
    with SweepProgress(len(plan.runs), len(done), progress) as shown:
        if len(done) < len(plan.runs):
            banks = _banks(plan, folder, shown, preparer)[share[0] - 1 :: share[1]]
            left = still_to_do(banks, folder, [run.name for run in done])
            shown.planned(sum(bank.steps for bank in left), len(left))
            workers(left, plan.runs, folder, shown)


def _banks(plan: Sweep, folder: Path, shown: SweepProgress, preparer: Preparer) -> list[Bank]:
    """Makes every run ready once, which finds what cannot work, and packs them."""
    parts = {}
    for run in plan.runs:
        parts[run.name] = preparer.prepare(run)
        RunFolder(folder / RUNS / run.name, parts[run.name].config())
    shown.say(f"{len(parts)} runs, {len(preparer.splits)} tasks read")
    places = {
        key: choose_places(parts[names[0]], len(names), plan.places, plan.memory_gb)
        for key, names in group_runs(parts).items()
    }
    return pack(parts, places)


def train_here(
    banks: Sequence[Bank],
    runs: Sequence[SweepRun],
    folder: Path,
    shown: SweepProgress,
    preparer: Preparer | None = None,
) -> None:
    """Trains banks in this process, one after the other."""
    preparer = preparer or Preparer()
    for bank in banks:
        train_bank(bank, runs, folder, shown, preparer)


def train_bank(
    bank: Bank,
    runs: Sequence[SweepRun],
    folder: Path,
    shown: SweepProgress,
    preparer: Preparer | None = None,
) -> None:
    """Trains one bank to its end."""
    preparer = preparer or Preparer()
    by_name = {run.name: run for run in runs}
    parts: dict[str, PreparedRun] = {name: preparer.prepare(by_name[name]) for name in bank.runs}
    place = folder / BANKS / bank.name
    write_json(make_folder(place) / BANK_RUNS, list(bank.runs))
    shown.bank(bank.runs, len(bank.timeline.places))
    run_bank(banked_runs(bank, parts, folder), bank.timeline, place / CHECKPOINTS, shown)
    remove_bank(bank, folder)


def remove_bank(bank: Bank, folder: Path) -> None:
    """Removes the checkpoints of a bank whose runs have all ended."""
    remove_bank_folder(folder / BANKS / bank.name)


def _done(plan: Sweep, folder: Path) -> list[str]:
    return [
        run.name for run in plan.runs if run_row(run, *_outcome(folder, run))["state"] != WAITING
    ]


def _refuse_changed(folder: Path, run: SweepRun) -> None:
    """A finished run is not made ready again: what the file sets is held against its config."""
    path = folder / RUNS / run.name / CONFIG
    stored = read_json(path)
    changed = [
        f"{name} was {stored.get(name)!r} and is now {value!r}"
        for name, value in run.values.items()
        if name in OPTIONS and name not in MAY_DIFFER and stored.get(name) != value
    ]
    if changed:
        raise InputError(f"{path.parent} holds another run: {'; '.join(changed)}; give a new --out")


def _outcome(folder: Path, run: SweepRun) -> tuple[dict[str, Any] | None, bool]:
    path = folder / RUNS / run.name
    result = path / RESULT
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8")), False
    return None, read_diverged(path) is not None


def _rows(plan: Sweep, folder: Path) -> list[dict[str, Any]]:
    return [run_row(run, *_outcome(folder, run)) for run in plan.runs]


def _collect(plan: Sweep, folder: Path, search: dict[str, Any] | None = None) -> SweepResult:
    rows = _rows(plan, folder)
    states: dict[str, int] = {DONE: 0}
    for row in rows:
        states[row["state"]] = states.get(row["state"], 0) + 1
    record = {"states": states, "runs": rows} | ({"search": search} if search else {})
    record |= made_with()
    with one_at_a_time(folder):
        write_tables(folder, plan, rows)
        write_json(folder / RECORD, record)
    return SweepResult(folder, tuple(rows), record)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"shard is {text!r}; give i/n, for instance 1/4 to 4/4")
    return int(number), int(count)
