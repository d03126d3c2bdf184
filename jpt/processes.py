"""Several processes that compute together: on the machines of a TPU pod, under SLURM, or by hand.

Every process runs the same command on the same input. Arrays are spread over the devices of all of
them (:mod:`jpt.mesh`); the first process alone writes files, and what it finds on its disk (a
finished run, scores of an earlier call) counts for all, so that none goes another way than the
others and waits for them for ever. Nothing here imports jax before it is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jpt.errors import InputError

T = TypeVar("T")

AUTO = "auto"
TIMEOUT_S = 300
UNSEEN_S = 10
LEAVING_S = 120
"""How long a process waits for the others at its end; if they do not come, it ends as failed."""


class Place(NamedTuple):
    """Which of the processes this one is; all None where jax asks the cluster.

    Attributes:
        coordinator: address of the first process, as ``HOST:PORT``.
        processes: how many there are.
        process: the number of this one, from 0.
    """

    coordinator: str | None
    processes: int | None
    process: int | None


def find_place(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str] | None = None,
) -> Place | None:
    """Decides whether there are several processes, and which of them this one is.

    Args:
        coordinator: ``HOST:PORT`` of the first process; ``auto`` lets jax ask the cluster; None
            looks at the environment.
        processes: how many there are, with an address.
        process: the number of this one, with an address.
        environment: variables of the process; by default its own.

    Returns:
        The place; None on a lone machine.

    Raises:
        InputError: for an address without a port, a part that is missing, or a number that is out
            of range.

    Example:
        >>> find_place("node1:1234", 2, 0)
        Place(coordinator='node1:1234', processes=2, process=0)
        >>> find_place(None, None, None, {"SLURM_STEP_NUM_TASKS": "1"}) is None
        True
    """
    if coordinator is None:
        if processes is not None or process is not None:
            raise InputError(
                "processes and process are given, but no coordinator; give --coordinator HOST:PORT,"
                " the address of process 0"
            )
        known = os.environ if environment is None else environment
        return Place(None, None, None) if _count_in(known) > 1 else None
    if coordinator == AUTO:
        if processes is not None or process is not None:
            raise InputError("coordinator is auto, which finds processes and process; leave them")
        return Place(None, None, None)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"coordinator is '{coordinator}'; give HOST:PORT of process 0, for instance "
            "localhost:12345, or auto"
        )
    if processes is None or process is None:
        raise InputError(
            f"coordinator {coordinator} needs the number of processes and which one this is; "
            "give --processes N and --process I, from 0"
        )
    if processes < 1:
        raise InputError(f"processes is {processes}; give a whole number of 1 or more")
    if not 0 <= process < processes:
        raise InputError(
            f"process is {process}, but {processes} processes are numbered from 0 to "
            f"{processes - 1}"
        )
    return Place(coordinator, processes, process) if processes > 1 else None


def _count_in(environment: Mapping[str, str]) -> int:
    """How many processes SLURM, Open MPI or the variables of a TPU pod speak of."""
    counts = [
        environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    ]
    hosts = (
        environment.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    )
    counts += [str(1 + names.count(",")) for names in hosts]
    return max(int(count) for count in counts if count.isdecimal())


def start_processes(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> int:
    """Joins the other processes, before jax looks at its devices; does nothing on a lone machine.

    Args:
        coordinator: as for :func:`find_place`.
        processes: likewise.
        process: likewise.

    Returns:
        How many processes there are.

    Raises:
        InputError: for an address that cannot be, processes that do not come, or jax that has begun
            to compute already.

    Example:
        >>> start_processes("localhost:12345", 1, 0)
        1
    """
    place = find_place(coordinator, processes, process)
    if place is None:
        return 1
    import jax

    # SIGTERM is the loop's: it saves first. jax would take the signal for a service of its own.
    jax.config.update("jax_enable_preemption_service", False)
    given = {}
    if place.coordinator is not None:
        given = {
            "coordinator_address": place.coordinator,
            "num_processes": place.processes,
            "process_id": place.process,
            "cluster_detection_method": "deactivate",
        }
    timeouts = {"initialization_timeout": TIMEOUT_S, "shutdown_timeout_seconds": LEAVING_S}
    try:
        jax.distributed.initialize(**given, **timeouts)
    except (RuntimeError, ValueError, OSError) as error:
        where = f" at {place.coordinator}" if place.coordinator else ""
        raise InputError(
            f"the processes did not find each other{where} ({str(error).splitlines()[0]}); check "
            "that all were started, with one address that all of them reach"
        ) from None
    return jax.process_count()


def process_count() -> int:
    """Counts the processes that compute together.

    Returns:
        1 on a lone machine.

    Example:
        >>> process_count()
        1
    """
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return 1
    return jax.process_count()


def process_number() -> int:
    """Gives the number of this process.

    Returns:
        From 0.

    Example:
        >>> process_number()
        0
    """
    return 0 if process_count() == 1 else sys.modules["jax"].process_index()


def is_first() -> bool:
    """Says whether this process is the one that writes files and prints.

    Returns:
        True on a lone machine.

    Example:
        >>> is_first()
        True
    """
    return process_number() == 0


@contextlib.contextmanager
def quiet_others() -> Iterator[None]:
    """Keeps all but the first process from printing what all of them would; errors are still told.

    Yields:
        Nothing.

    Example:
        >>> with quiet_others():
        ...     print("once")
        once
    """
    if is_first():
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield


def on_first(work: Callable[[], T]) -> T:
    """Does something on the first process alone and gives all what came out.

    All processes call it at the same place; the others wait, also for what the first one writes.

    Args:
        work: gives something that JSON can hold; tuples become lists where there are several
            processes.

    Returns:
        What the first process found.

    Raises:
        InputError: on all processes, where the first one raises it.

    Example:
        >>> on_first(lambda: {"step": 5})
        {'step': 5}
    """
    if process_count() == 1:
        return work()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": work()}
        except InputError as error:
            answer = {"error": str(error)}
    told = json.loads(_from_first(json.dumps(answer).encode("utf-8")))
    if "error" in told:
        raise InputError(told["error"])
    return told["value"]


def _from_first(data: bytes) -> bytes:
    """Sends bytes of the first process to all."""
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    # Few sizes, because each is compiled.
    padded = np.zeros(max(1024, 1 << (size - 1).bit_length()), np.uint8)
    if is_first():
        padded[:size] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes()


def largest(number: int) -> int:
    """Compares a number of all processes; all call it at the same place.

    Args:
        number: this process's.

    Returns:
        The largest.

    Example:
        >>> largest(3)
        3
    """
    return number if process_count() == 1 else int(_largest(number))


def check_shared(path: Path) -> None:
    """Refuses a disk that only some of the processes see: all of them read checkpoints.

    Args:
        path: a file that the first process has written.

    Raises:
        InputError: on all processes, where one of them does not see it.

    Example:
        >>> check_shared(Path("runs/imdb/config.json"))  # nothing to share with on a lone machine
    """
    if process_count() == 1:
        return
    until_s = time.monotonic() + UNSEEN_S  # a network's disk may be late
    while not (is_seen := path.exists()) and time.monotonic() < until_s:
        time.sleep(0.1)
    blind = largest(0 if is_seen else process_number())
    if blind:
        raise InputError(
            f"process {blind} does not see {path}; give a folder on a disk that all machines share"
        )


class Vote:
    """Lets all processes agree on a number without a wait: each asks, all hear of the largest.

    An answer is one call late, so that the devices go on while it is on its way. On a lone machine
    it comes at once.

    Example:
        >>> vote = Vote()
        >>> vote(0), vote(15)
        (0, 15)
    """

    def __init__(self) -> None:
        self._count = process_count()
        self._pending: Any = None

    def __call__(self, number: int) -> int:
        """Hands in a number.

        Args:
            number: 0 or more.

        Returns:
            The largest one that any process handed in one call earlier; 0 at first.
        """
        if self._count == 1:
            return number
        before, self._pending = self._pending, _largest(number)
        return 0 if before is None else int(before)


def _largest(number: int) -> Any:
    """The largest number of all processes, as an array that is on its way."""
    import jax
    import numpy as np

    rows, largest = _voting()
    numbers = jax.make_array_from_callback(
        (rows.mesh.size,), rows, lambda index: np.full(1, number, np.int32)
    )
    return largest(numbers)


@lru_cache(maxsize=1)
def _voting() -> tuple[Any, Callable[[Any], Any]]:
    """Where the numbers lie, one on each device, and the program that compares them."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    rows = NamedSharding(mesh, PartitionSpec("device"))
    return rows, jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
