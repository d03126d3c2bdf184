"""Train the groups of a sweep on a Ray cluster."""

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
    GROUPS,
    RUNS,
    RunGroup,
    RunLoader,
    SweepProgress,
    SweepRun,
    Workers,
    has_ended,
    remove_group_folder,
    train_group,
)
from jpt.tuning.multi_run import DIVERGED
from jpt.tuning.run_dir import CONFIG, RESULT, RunFolder
from jpt.tuning.trainer import EXIT_CODES, stop_requests
from jpt.types import Score

# --- Joining a cluster, and the resources of its nodes

ANSWER_S = 10  # Ray itself would wait for minutes
ACCELERATORS = ("TPU", "GPU")
MANY_DEVICES = 1_000_000


def require_ray() -> ModuleType:
    """Import Ray with usage statistics turned off."""
    # Ray reads it on import. A cluster that others started has its own setting.
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
    """Raise InputError if nothing answers at the address of a cluster."""
    if address is None or address in ("", "auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"address is {address!r}; expected HOST:PORT of the cluster's head")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one with "
            "`ray start --head --disable-usage-stats`"
        ) from None


def join_cluster(ray: ModuleType, address: str | None) -> None:
    """Join a cluster until this process ends; keep one that was joined before."""
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
    with _kept_handlers(), warnings.catch_warnings():
        # jax warns about forks, but Ray's children exec another program at once.
        warnings.simplefilter("ignore")
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise InputError(
                f"could not join a Ray cluster: {str(error).splitlines()[0]}; if it requires a "
                "token (Ray's default), set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            ) from None


@contextlib.contextmanager
def _kept_handlers() -> Iterator[None]:
    """Restore signal handlers: Ray's own would end the driver with another exit code."""
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
    """Parse the resources that a group takes of its node."""
    needs = {}
    for part in text.split(","):
        name, _, amount = (word.strip() for word in part.partition(":"))
        try:
            needs[name] = float(amount)
        except ValueError:
            needs[name] = math.nan
        possible = 0 < needs[name] <= 1 or needs[name].is_integer() and needs[name] >= 0
        if not name or not possible:
            raise InputError(
                f"needs has {part!r}; expected names and amounts (at most 1, or whole), for "
                "instance GPU:1,CPU:4"
            )
    return needs


def default_needs(
    nodes: Sequence[Mapping[str, float]], runs: Sequence[SweepRun]
) -> dict[str, float]:
    """Return the resources that a group takes of its node by default."""
    for kind in ACCELERATORS:
        if any(node.get(kind, 0) for node in nodes):
            return {"CPU": 1.0, kind: float(max([1, *map(_devices, runs)]))}
    # Without an accelerator, one run keeps all cores busy.
    return {"CPU": min((node["CPU"] for node in nodes if node.get("CPU", 0)), default=1.0)}


def _devices(run: SweepRun) -> int:
    mesh = run.options.mesh
    return math.prod(parse_mesh(mesh, MANY_DEVICES).values()) if mesh else 1


def count_room(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """Return the number of tasks that idle nodes can run at once."""
    taken = [(name, amount) for name, amount in needs.items() if amount]
    fitting = ([int(node.get(name, 0) / amount) for name, amount in taken] for node in nodes)
    return sum(min(counts, default=1) for counts in fitting)


class NodeNotes(io.TextIOBase):
    """Stream that forwards Ray's notes on lost nodes without its stack dumps."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def write(self, text: str) -> int:
        """Forward lines that are not indented."""
        for line in text.splitlines():
            if line.strip() and not line[0].isspace():
                self._say(line)
        return len(text)


# --- Groups of runs as Ray tasks
# A task trains one group in a temporary folder of its node and returns the files of its runs. The
# driver trains nothing: it writes these files into the folder of the sweep, a run's result last. A
# lost node costs its tasks another try elsewhere; after a lost driver, the same command trains
# again what was not returned. Paths named in a sweep (data, task folders, weights) and an installed
# jpt must exist on every node. Relative paths are relative to the driver's working directory.

TRIES = 10  # retries after a lost node or process; Ray's own default is 3
POLL_S = 2.0

Files = Mapping[str, bytes]
Needs = Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """Result of a task."""

    runs: Mapping[str, Files]  # files of each finished or diverged run, by run name
    error: str | None = None  # message of the InputError that ended the group


class MultiRunStoppedError(RuntimeError):
    """The node is being shut down; Ray retries the group on another one."""


def ray_workers(address: str | None = None, needs: str | None = None) -> Workers:
    """Return workers that train a sweep's groups of runs on a Ray cluster.

    Args:
        address: ``HOST:PORT`` of the cluster. Defaults to ``RAY_ADDRESS``, then to the cluster
            running on this machine, then to this machine alone.
        needs: Resources of a node per group, for instance ``GPU:1,CPU:4``. Defaults to one
            accelerator (or one per device of the runs' mesh) and one CPU; in a cluster without
            accelerators, to all CPUs of a node.

    Returns:
        A function for the argument ``workers`` of `jpt.sweep`. It raises `InputError` if the
        cluster cannot be joined or, after the other groups have ended, if a group failed. The
        cluster stays joined until this process ends.

    Raises:
        InputError: The needs are invalid, no cluster answers at the address, or Ray is not
            installed.

    Example:
        >>> from jpt.recipes.sweep import sweep
        >>> workers = ray_workers("10.0.0.1:6379")  # doctest: +SKIP
        >>> sweep("grid.toml", "sweeps/rates", workers=workers)  # doctest: +SKIP
    """
    wanted = None if needs is None else parse_needs(needs)
    ray = require_ray()
    check_address(address or os.environ.get("RAY_ADDRESS"))

    def work(
        groups: Sequence[RunGroup], runs: Sequence[SweepRun], folder: Path, reporter: SweepProgress
    ) -> None:
        if groups:
            join_cluster(ray, address)
            # Ray prints on stdout, which is for the result.
            with contextlib.redirect_stdout(NodeNotes(reporter.say)):
                _Driver(ray, groups, runs, folder, reporter).train(wanted)

    return work


def train_away(group: RunGroup, runs: Sequence[SweepRun], origin: str) -> Outcome:
    """Train one group in a temporary folder on a node of the cluster."""
    error = None
    with (
        tempfile.TemporaryDirectory(prefix="jpt-", ignore_cleanup_errors=True) as name,
        contextlib.chdir(origin if Path(origin).is_dir() else "."),
        SweepProgress(len(group.runs), 0, shown=False) as reporter,
    ):
        folder = Path(name)
        try:
            train_group(group, runs, folder, reporter, _loader())
        except InputError as raised:
            error = str(raised)
        except StoppedError as stopped:
            raise MultiRunStoppedError(str(stopped)) from None
        found = {run: _files(folder / RUNS / run) for run in group.runs}
    ended = {run: files for run, files in found.items() if {RESULT, DIVERGED} & set(files)}
    return Outcome(ended, error)


def bring_home(name: str, files: Files, folder: Path) -> None:
    """Write the files of a run into the folder of the sweep, its result last."""
    if has_ended(folder, name):  # its group had started before and was trained again
        return
    home = RunFolder(folder / RUNS / name, json.loads(files[CONFIG]))
    for file in sorted(files, key=lambda file: file in (RESULT, DIVERGED)):
        if file != CONFIG:
            write_bytes(home.path / file, files[file])


@lru_cache(maxsize=1)
def _loader() -> RunLoader:
    """Return the loader of this process, kept for its next group."""
    return RunLoader()


def _files(path: Path) -> dict[str, bytes]:
    if not path.is_dir():
        return {}
    files = (each for each in path.iterdir() if each.is_file() and each.name[0] != ".")
    return {each.name: each.read_bytes() for each in files}


class _Driver:
    """Submits groups and collects their results."""

    def __init__(
        self,
        ray: ModuleType,
        groups: Sequence[RunGroup],
        runs: Sequence[SweepRun],
        folder: Path,
        reporter: SweepProgress,
    ) -> None:
        self.ray, self.groups, self.folder, self.reporter = ray, groups, folder, reporter
        self.runs = {run.name: run for run in runs}
        self.failed: list[str] = []
        self.broken: list[Exception] = []
        self.rows, self.started_s = 0, time.monotonic()
        self.room: tuple[int, int] | None = None

    def train(self, wanted: Needs | None) -> None:
        """Submit all groups and wait until each has ended or failed."""
        waiting: dict[Any, tuple[RunGroup, Needs]] = {}
        for group in self.groups:
            runs = [self.runs[name] for name in group.runs]
            needs = wanted or default_needs(self._nodes(), runs)
            waiting[self._submit(group, runs, needs)] = (group, needs)
        # A signal must not raise inside Ray's calls: it is checked between them.
        with stop_requests() as stop:
            while waiting:
                self._say_room(len(waiting), next(iter(waiting.values()))[1])
                for task in self.ray.wait(list(waiting), timeout=POLL_S)[0]:
                    self._take(waiting.pop(task)[0], task)
                if stop and waiting:
                    raise StoppedError(
                        f"stopped with {len(waiting)} groups of runs unfinished; re-run to resume",
                        EXIT_CODES[stop[0]],
                    )
        if self.broken:
            raise self.broken[0]
        if self.failed:
            more = f" (and {len(self.failed) - 1} more)" if len(self.failed) > 1 else ""
            raise InputError(
                f"{len(self.failed)} of {len(self.groups)} groups of runs failed: "
                f"{self.failed[0]}{more}; re-run to try them again"
            )

    def _submit(self, group: RunGroup, runs: Sequence[SweepRun], needs: Needs) -> Any:
        try:
            task = self.ray.remote(**_options(group, needs))(train_away)
            return task.remote(group, runs, os.getcwd())
        except ValueError as error:
            raise InputError(f"Ray rejects the needs: {error}") from None

    def _take(self, group: RunGroup, task: Any) -> None:
        errors = self.ray.exceptions
        try:
            outcome = self.ray.get(task)
        except errors.RayTaskError as error:  # a bug, not invalid input: raised at the end
            self.broken.append(error)
            self._fail(group, str(error.cause))
        except errors.RayError as error:
            self._fail(group, f"node or process lost: {str(error).splitlines()[0]}")
        else:
            self._collect(group, outcome)

    def _collect(self, group: RunGroup, outcome: Outcome) -> None:
        message = outcome.error
        for name, files in outcome.runs.items():
            try:
                bring_home(name, files, self.folder)
            except InputError as error:
                message = str(error)
            else:
                self._report(name, files)
        self.reporter.stepped(group.steps, self.rows / (time.monotonic() - self.started_s))
        if message is None:
            remove_group_folder(self.folder / GROUPS / group.name)
        else:
            self._fail(group, message)

    def _report(self, name: str, files: Files) -> None:
        if RESULT in files:
            record, config = json.loads(files[RESULT]), json.loads(files[CONFIG])
            self.rows += config["steps"] * (config["batch_size"] or 0)
            self.reporter.scored(name, _score(record))
        else:
            record = json.loads(files[DIVERGED])
        self.reporter.ended(name, record)

    def _fail(self, group: RunGroup, message: str) -> None:
        more = f" and {len(group.runs) - 3} more" if len(group.runs) > 3 else ""
        self.failed.append(f"runs {', '.join(group.runs[:3])}{more}: {' '.join(message.split())}")
        self.reporter.say(f"failed: {self.failed[-1]}")

    def _nodes(self) -> list[Needs]:
        """Return the total resources of each live node."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _say_room(self, left: int, needs: Needs) -> None:
        """Report the number of running groups whenever it or the number of nodes changes."""
        nodes = self._nodes()
        running = min(left, count_room(nodes, needs))
        if (len(nodes), running) != self.room:
            self.room = (len(nodes), running)
            text = ",".join(f"{name}:{amount:g}" for name, amount in needs.items())
            lack = "" if running else f"; no node has {text}, which a group needs"
            counts = f"groups running: {running}, waiting: {left - running}"
            self.reporter.say(f"{counts}; nodes: {len(nodes)}{lack}")


def _options(group: RunGroup, needs: Needs) -> dict[str, Any]:
    """Return the options of a Ray task."""
    others = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
    return {
        "name": f"{group.runs[0]} ({len(group.runs)} runs)",
        "num_cpus": needs.get("CPU", 0),
        "num_gpus": needs.get("GPU", 0),
        "resources": others,
        "max_retries": TRIES,
        "retry_exceptions": [MultiRunStoppedError],
    }


def _score(record: Mapping[str, Any]) -> Score:
    """Return the score of a result, as far as progress needs it."""
    found, metric = record["validation"], record["metric"]
    return Score(metric, found[metric], found["loss"], found["rows"], None, {}, ())
