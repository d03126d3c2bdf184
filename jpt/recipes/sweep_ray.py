"""Banks as tasks of a Ray cluster: its retries, placement and dashboard; results come home.

The folder of the sweep stays the only truth. A task trains one bank in a temporary folder of its
node and gives back what its runs have written; the driver, which trains nothing, puts that into the
sweep's folder, the result of a run last. So a lost node costs its tasks another try elsewhere, and
a lost driver what had not come home: the same command trains that anew.

What a sweep names (data, folders of tasks and weights) must be visible under the same path on every
node, as must an installed jpt. Relative paths count from the driver's folder, where a node has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from jpt.errors import InputError, StoppedError
from jpt.files.atomic import write_bytes
from jpt.recipes.ray_cluster import (
    NodeNotes,
    check_address,
    count_room,
    default_needs,
    join_cluster,
    parse_needs,
    require_ray,
)
from jpt.recipes.sweep import Workers, remove_bank, train_bank
from jpt.recipes.sweep_grid import SweepRun
from jpt.recipes.sweep_plan import RUNS, Bank, Preparer, is_finished
from jpt.recipes.sweep_progress import SweepProgress
from jpt.tuning.bank_runs import DIVERGED
from jpt.tuning.loop import EXIT_CODES, stop_requests
from jpt.tuning.run_folder import CONFIG, RESULT, RunFolder
from jpt.tuning.scoring import Score

TRIES = 10
"""How often a bank is tried again whose node or process is lost; Ray's own default is 3."""
POLL_S = 2.0

Files = Mapping[str, bytes]
Needs = Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """What comes back from a node."""

    runs: Mapping[str, Files]  # by name, the files of each run that is finished or has diverged
    error: str | None = None  # what the user can mend, where the bank did not come to its end


class BankStoppedError(RuntimeError):
    """Says that a node is being shut down; Ray tries the bank again on another one."""


def ray_workers(address: str | None = None, needs: str | None = None) -> Workers:
    """Makes the workers that hand a sweep's banks to a Ray cluster.

    Args:
        address: of the cluster, as ``HOST:PORT``; by default the one that runs on this machine or
            that ``RAY_ADDRESS`` names, and where there is none, this machine alone.
        needs: what a bank takes of its node, for instance ``GPU:1,CPU:4``. By default one
            accelerator (as many as the mesh of its runs has devices) and one CPU; in a cluster
            without any, a node's CPUs.

    Returns:
        What `jpt.recipes.sweep.sweep` takes as ``workers``. It raises `InputError` where a cluster
        cannot be joined, or where a bank cannot be trained, after the others have been. The
        cluster stays joined until this process ends.

    Raises:
        InputError: needs that cannot be read, no cluster at the address, or no Ray.

    Example:
        >>> from jpt.recipes.sweep import sweep
        >>> workers = ray_workers("10.0.0.1:6379")  # doctest: +SKIP
        >>> sweep("grid.toml", "sweeps/rates", workers=workers)  # doctest: +SKIP
    """
    wanted = None if needs is None else parse_needs(needs)
    ray = require_ray()
    check_address(address or os.environ.get("RAY_ADDRESS"))

    def work(
        banks: Sequence[Bank], runs: Sequence[SweepRun], folder: Path, shown: SweepProgress
    ) -> None:
        if banks:
            join_cluster(ray, address)
            # Ray prints on stdout, which is for the result.
            with contextlib.redirect_stdout(NodeNotes(shown.say)):
                _Driver(ray, banks, runs, folder, shown).carry_out(wanted)

    return work


def train_away(bank: Bank, runs: Sequence[SweepRun], origin: str) -> Outcome:
    """Trains one bank in a temporary folder; what a node of the cluster does."""
    error = None
    with (
        tempfile.TemporaryDirectory(prefix="jpt-", ignore_cleanup_errors=True) as name,
        contextlib.chdir(origin if Path(origin).is_dir() else "."),
        SweepProgress(len(bank.runs), 0, shown=False) as shown,
    ):
        folder = Path(name)
        try:
            train_bank(bank, runs, folder, shown, _preparer())
        except InputError as said:
            error = str(said)
        except StoppedError as stopped:
            raise BankStoppedError(str(stopped)) from None
        found = {run: _files(folder / RUNS / run) for run in bank.runs}
    ended = {run: files for run, files in found.items() if {RESULT, DIVERGED} & set(files)}
    return Outcome(ended, error)


def bring_home(name: str, files: Files, folder: Path) -> None:
    """Writes what a run has left on its node into the folder of the sweep, its result last."""
    if is_finished(folder, name):  # of a bank that had begun before, and was trained anew
        return
    home = RunFolder(folder / RUNS / name, json.loads(files[CONFIG]))
    for file in sorted(files, key=lambda file: file in (RESULT, DIVERGED)):
        if file != CONFIG:
            write_bytes(home.path / file, files[file])


@lru_cache(maxsize=1)
def _preparer() -> Preparer:
    """What this process has loaded stays for its next bank."""
    return Preparer()


def _files(path: Path) -> dict[str, bytes]:
    if not path.is_dir():
        return {}
    files = (each for each in path.iterdir() if each.is_file() and each.name[0] != ".")
    return {each.name: each.read_bytes() for each in files}


class _Driver:
    """Hands banks out and brings results home."""

    def __init__(
        self,
        ray: ModuleType,
        banks: Sequence[Bank],
        runs: Sequence[SweepRun],
        folder: Path,
        shown: SweepProgress,
    ) -> None:
        self.ray, self.banks, self.folder, self.shown = ray, banks, folder, shown
        self.runs = {run.name: run for run in runs}
        self.failed: list[str] = []
        self.broken: list[Exception] = []
        self.rows, self.started_s = 0, time.monotonic()
        self.room: tuple[int, int] | None = None

    def carry_out(self, wanted: Needs | None) -> None:
        """Waits until every bank has come home or failed."""
        waiting: dict[Any, tuple[Bank, Needs]] = {}
        for bank in self.banks:
            runs = [self.runs[name] for name in bank.runs]
            needs = wanted or default_needs(self._nodes(), runs)
            waiting[self._hand_out(bank, runs, needs)] = (bank, needs)
        # Inside of Ray's calls a signal must not raise: it is noted, and looked at between them.
        with stop_requests() as stop:
            while waiting:
                self._say_room(len(waiting), next(iter(waiting.values()))[1])
                for task in self.ray.wait(list(waiting), timeout=POLL_S)[0]:
                    self._take(waiting.pop(task)[0], task)
                if stop and waiting:
                    raise StoppedError(
                        f"stopped with {len(waiting)} banks not home; the same command goes on "
                        "from what is",
                        EXIT_CODES[stop[0]],
                    )
        if self.broken:
            raise self.broken[0]
        if self.failed:
            more = f" (and {len(self.failed) - 1} more)" if len(self.failed) > 1 else ""
            raise InputError(
                f"{len(self.failed)} of {len(self.banks)} banks failed: {self.failed[0]}{more}; "
                "the same command tries them again"
            )

    def _hand_out(self, bank: Bank, runs: Sequence[SweepRun], needs: Needs) -> Any:
        try:
            task = self.ray.remote(**_options(bank, needs))(train_away)
            return task.remote(bank, runs, os.getcwd())
        except ValueError as error:
            raise InputError(f"Ray does not take these needs: {error}") from None

    def _take(self, bank: Bank, task: Any) -> None:
        errors = self.ray.exceptions
        try:
            outcome = self.ray.get(task)
        except errors.RayTaskError as error:  # nothing that the user could mend
            self.broken.append(error)
            self._fail(bank, str(error.cause))
        except errors.RayError as error:
            self._fail(bank, f"lost with its node or process: {str(error).splitlines()[0]}")
        else:
            self._bring_home(bank, outcome)

    def _bring_home(self, bank: Bank, outcome: Outcome) -> None:
        said = outcome.error
        for name, files in outcome.runs.items():
            try:
                bring_home(name, files, self.folder)
            except InputError as error:
                said = str(error)
            else:
                self._report(name, files)
        self.shown.turned(bank.steps, self.rows / (time.monotonic() - self.started_s))
        if said is None:
            remove_bank(bank, self.folder)
        else:
            self._fail(bank, said)

    def _report(self, name: str, files: Files) -> None:
        if RESULT in files:
            record, config = json.loads(files[RESULT]), json.loads(files[CONFIG])
            self.rows += config["steps"] * (config["batch_size"] or 0)
            self.shown.scored(name, _score(record))
        else:
            record = json.loads(files[DIVERGED])
        self.shown.ended(name, record)

    def _fail(self, bank: Bank, said: str) -> None:
        more = f" and {len(bank.runs) - 3} more" if len(bank.runs) > 3 else ""
        self.failed.append(f"runs {', '.join(bank.runs[:3])}{more}: {' '.join(said.split())}")
        self.shown.say(f"failed: {self.failed[-1]}")

    def _nodes(self) -> list[Needs]:
        """What each node that is alive has in all."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _say_room(self, left: int, needs: Needs) -> None:
        """Says how many banks run, whenever that or the nodes change."""
        nodes = self._nodes()
        running = min(left, count_room(nodes, needs))
        if (len(nodes), running) != self.room:
            self.room = (len(nodes), running)
            text = ",".join(f"{name}:{amount:g}" for name, amount in needs.items())
            lack = "" if running else f"; no node has {text}, which a bank takes"
            told = f"banks running: {running}, waiting: {left - running}"
            self.shown.say(f"{told}; nodes: {len(nodes)}{lack}")


def _options(bank: Bank, needs: Needs) -> dict[str, Any]:
    """What Ray is told of a task."""
    others = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
    return {
        "name": f"{bank.runs[0]} ({len(bank.runs)} runs)",
        "num_cpus": needs.get("CPU", 0),
        "num_gpus": needs.get("GPU", 0),
        "resources": others,
        "max_retries": TRIES,
        "retry_exceptions": [BankStoppedError],
    }


def _score(record: Mapping[str, Any]) -> Score:
    """The score of a result, as far as progress needs it."""
    found, metric = record["validation"], record["metric"]
    return Score(metric, found[metric], found["loss"], found["rows"], None, {}, ())
