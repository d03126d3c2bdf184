"""A Ray cluster: whether it is there, how it is joined, what a task takes of its nodes."""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType

from jpt.errors import InputError
from jpt.mesh import parse_mesh
from jpt.recipes.sweep_grid import SweepRun

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
