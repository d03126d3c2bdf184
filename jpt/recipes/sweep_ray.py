"""Run the runs of a sweep on a Ray cluster."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from jpt.errors import InputError, StoppedError
from jpt.io.files import write_bytes
from jpt.parallel import parse_mesh
from jpt.recipes.sweep import (
    RUNS,
    RunGroup,
    RunLoader,
    SweepProgress,
    SweepRun,
    Workers,
    is_finished,
    remove_group,
    train_group,
)
from jpt.tuning.multi_run import DIVERGED
from jpt.tuning.run_dir import CONFIG, RESULT, RunFolder
from jpt.tuning.trainer import EXIT_CODES, stop_requests
from jpt.types import Score

# --- A Ray cluster: whether it is there, how it is joined, what a task takes of its nodes

ANSWER_S = 10
"""How long a cluster may take to answer; Ray itself would wait for minutes."""
ACCELERATORS = ("TPU", "GPU")
MANY_DEVICES = 1_000_000


def require_ray() -> ModuleType:
    """Imports Ray, its statistics of usage off."""
    # Before the import: Ray reads it then. A cluster that others started has its own setting.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise InputError(
            "a sweep on a Ray cluster needs the ray package; run `pip install 'jpt[cluster]'`"
        ) from None
    return ray


def check_address(address: str | None) -> None:
    """Checks that something answers where a cluster should be."""
    if address is None or address in ("", "auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"address is {address!r}; give HOST:PORT of the cluster's head")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one with "
            "`ray start --head --disable-usage-stats`"
        ) from None


def join_cluster(ray: ModuleType, address: str | None) -> None:
    """Joins a cluster until this process ends; one that was joined before stays."""
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
    with _kept_handlers(), warnings.catch_warnings():
        # Of jax, about forks: what Ray starts becomes another program at once.
        warnings.simplefilter("ignore")
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise InputError(
                f"no Ray cluster: {str(error).splitlines()[0]}; one that wants a token (Ray's "
                "default now) is joined with RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
            ) from None


@contextlib.contextmanager
def _kept_handlers() -> Iterator[None]:
    """Ray sets its own handler of SIGTERM, which would end the driver with another exit code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse_needs(text: str) -> dict[str, float]:
    """Reads what a bank takes of its node."""
    needs = {}
    for part in text.split(","):
        name, _, amount = (piece.strip() for piece in part.partition(":"))
        try:
            needs[name] = float(amount)
        except ValueError:
            needs[name] = math.nan
        possible = 0 < needs[name] <= 1 or needs[name].is_integer() and needs[name] >= 0
        if not name or not possible:
            raise InputError(
                f"needs has {part!r}; give names and amounts (1 at most, or whole), as in "
                "GPU:1,CPU:4"
            )
    return needs


def default_needs(
    nodes: Sequence[Mapping[str, float]], runs: Sequence[SweepRun]
) -> dict[str, float]:
    """Chooses what a bank takes of its node."""
    for kind in ACCELERATORS:
        if any(node.get(kind, 0) for node in nodes):
            return {"CPU": 1.0, kind: float(max([1, *map(_devices, runs)]))}
    # Without an accelerator one run keeps all cores busy.
    return {"CPU": min((node["CPU"] for node in nodes if node.get("CPU", 0)), default=1.0)}


def _devices(run: SweepRun) -> int:
    mesh = run.options.mesh
    return math.prod(parse_mesh(mesh, MANY_DEVICES).values()) if mesh else 1


def count_room(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """Counts the tasks that nodes can run at once, if they do nothing else."""
    taken = [(name, amount) for name, amount in needs.items() if amount]
    fitting = ([int(node.get(name, 0) / amount) for name, amount in taken] for node in nodes)
    return sum(min(counts, default=1) for counts in fitting)


class NodeNotes(io.TextIOBase):
    """Takes what Ray prints of lost nodes and tells it on, without its long dumps."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def write(self, text: str) -> int:
        """Tells lines on that do not belong to a dump."""
        for line in text.splitlines():
            if line.strip() and not line[0].isspace():
                self._say(line)
        return len(text)


# --- Banks as tasks of a Ray cluster: its retries, placement and dashboard; results come home
# The folder of the sweep stays the only truth. A task trains one bank in a temporary folder of its
# node and gives back what its runs have written; the driver, which trains nothing, puts that into
# the sweep's folder, the result of a run last. So a lost node costs its tasks another try
# elsewhere, and a lost driver what had not come home: the same command trains that anew. What a
# sweep names (data, folders of tasks and weights) must be visible under the same path on every
# node, as must an installed jpt. Relative paths count from the driver's folder, where a node has
# it.

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


class MultiRunStoppedError(RuntimeError):
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
        banks: Sequence[RunGroup], runs: Sequence[SweepRun], folder: Path, shown: SweepProgress
    ) -> None:
        if banks:
            join_cluster(ray, address)
            # Ray prints on stdout, which is for the result.
            with contextlib.redirect_stdout(NodeNotes(shown.say)):
                _Driver(ray, banks, runs, folder, shown).carry_out(wanted)

    return work


def train_away(bank: RunGroup, runs: Sequence[SweepRun], origin: str) -> Outcome:
    """Trains one bank in a temporary folder; what a node of the cluster does."""
    error = None
    with (
        tempfile.TemporaryDirectory(prefix="jpt-", ignore_cleanup_errors=True) as name,
        contextlib.chdir(origin if Path(origin).is_dir() else "."),
        SweepProgress(len(bank.runs), 0, shown=False) as shown,
    ):
        folder = Path(name)
        try:
            train_group(bank, runs, folder, shown, _preparer())
        except InputError as said:
            error = str(said)
        except StoppedError as stopped:
            raise MultiRunStoppedError(str(stopped)) from None
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
def _preparer() -> RunLoader:
    """What this process has loaded stays for its next bank."""
    return RunLoader()


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
        banks: Sequence[RunGroup],
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
        waiting: dict[Any, tuple[RunGroup, Needs]] = {}
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

    def _hand_out(self, bank: RunGroup, runs: Sequence[SweepRun], needs: Needs) -> Any:
        try:
            task = self.ray.remote(**_options(bank, needs))(train_away)
            return task.remote(bank, runs, os.getcwd())
        except ValueError as error:
            raise InputError(f"Ray does not take these needs: {error}") from None

    def _take(self, bank: RunGroup, task: Any) -> None:
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

    def _bring_home(self, bank: RunGroup, outcome: Outcome) -> None:
        said = outcome.error
        for name, files in outcome.runs.items():
            try:
                bring_home(name, files, self.folder)
            except InputError as error:
                said = str(error)
            else:
                self._report(name, files)
        self.shown.stepped(bank.steps, self.rows / (time.monotonic() - self.started_s))
        if said is None:
            remove_group(bank, self.folder)
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

    def _fail(self, bank: RunGroup, said: str) -> None:
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


def _options(bank: RunGroup, needs: Needs) -> dict[str, Any]:
    """What Ray is told of a task."""
    others = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
    return {
        "name": f"{bank.runs[0]} ({len(bank.runs)} runs)",
        "num_cpus": needs.get("CPU", 0),
        "num_gpus": needs.get("GPU", 0),
        "resources": others,
        "max_retries": TRIES,
        "retry_exceptions": [MultiRunStoppedError],
    }


def _score(record: Mapping[str, Any]) -> Score:
    """The score of a result, as far as progress needs it."""
    found, metric = record["validation"], record["metric"]
    return Score(metric, found[metric], found["loss"], found["rows"], None, {}, ())
