"""Distributed start, process index, and agreement between processes.

jax is imported only where it is needed: ``jpt --help``, tasks and data load none of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jpt.errors import InputError

# --- Distributed start: by hand, under SLURM or Open MPI, or on a TPU pod
# Must happen before jax looks at its devices; importing jax does not.

AUTO, NONE = "auto", "none"
TIMEOUT_S = 300
SHUTDOWN_S = 120
"""Longest wait for the other processes at the end; without them a process ends as failed."""
HEARTBEAT_S = 100
"""Time without a heartbeat after which a process counts as dead and the others end."""


class ProcessInfo(NamedTuple):
    """Coordinator, count and index of the processes; all None where jax asks the cluster."""

    coordinator: str | None  # address of process 0, as ``HOST:PORT``
    processes: int | None
    process: int | None  # index of this process


def find_process(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str] | None = None,
) -> ProcessInfo | None:
    """Return this process's coordinator, count and index, or None if it runs alone."""
    if coordinator is None:
        if processes is not None or process is not None:
            raise InputError(
                "processes and process need a coordinator; give --coordinator HOST:PORT, the "
                "address of process 0"
            )
        known = os.environ if environment is None else environment
        return ProcessInfo(None, None, None) if _count_in(known) > 1 else None
    if coordinator in (AUTO, NONE):
        if processes is not None or process is not None:
            raise InputError(
                f"coordinator is {coordinator}, which sets processes and process; omit both"
            )
        return ProcessInfo(None, None, None) if coordinator == AUTO else None
    return _explicit_process(coordinator, processes, process)


def _explicit_process(
    coordinator: str, processes: int | None, process: int | None
) -> ProcessInfo | None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"coordinator is '{coordinator}'; give HOST:PORT of process 0, for instance "
            "localhost:12345, or auto or none"
        )
    if processes is None or process is None:
        raise InputError(
            f"coordinator {coordinator} needs the number of processes and the index of this one; "
            "give --processes N and --process I, from 0"
        )
    if processes < 1:
        raise InputError(f"processes is {processes}; give a whole number of 1 or more")
    if not 0 <= process < processes:
        raise InputError(
            f"process is {process}; {processes} processes are numbered from 0 to {processes - 1}"
        )
    return ProcessInfo(coordinator, processes, process) if processes > 1 else None


def _count_in(environment: Mapping[str, str]) -> int:
    """Return the number of processes that SLURM, Open MPI or a TPU pod announces."""
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
    """Connect to the other processes, if there are any; return their number."""
    info = find_process(coordinator, processes, process)
    if info is None:
        return 1
    import jax

    # The training loop handles SIGTERM (it saves first); jax's own service would swallow it.
    jax.config.update("jax_enable_preemption_service", False)
    given = {}
    if info.coordinator is not None:
        if jax.distributed.is_initialized():
            raise InputError("this process is already connected to others; start a new one")
        _meet(info, TIMEOUT_S)
        given = {
            "coordinator_address": info.coordinator,
            "num_processes": info.processes,
            "process_id": info.process,
            "cluster_detection_method": "deactivate",
        }
    timeouts = {
        "initialization_timeout": TIMEOUT_S,
        "heartbeat_timeout_seconds": HEARTBEAT_S,
        "shutdown_timeout_seconds": SHUTDOWN_S,
    }
    try:
        jax.distributed.initialize(**given, **timeouts)
    except (RuntimeError, ValueError, OSError) as error:
        where = f" at {info.coordinator}" if info.coordinator else ""
        raise InputError(
            f"could not connect to the other processes{where} ({str(error).splitlines()[0]}); "
            "check that all were started with the same, reachable address"
        ) from None
    return jax.process_count()


def _meet(info: ProcessInfo, timeout_s: float) -> None:
    """Wait until all processes are started: jax itself would end without a useful message."""
    host, _, port = info.coordinator.rpartition(":")
    until_s = time.monotonic() + timeout_s
    if info.process == 0:
        _gather(int(port), info.processes, until_s)
    else:
        _report_to(host.strip("[]"), int(port), info.process, until_s)


def _gather(port: int, processes: int, until_s: float) -> None:
    """Accept a connection from every other process, then release them all."""
    came: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise InputError(
                f"cannot open port {port} of the coordinator ({error.strerror}); use another port"
            ) from None
        while len(came) < processes - 1:
            server.settimeout(max(0.01, until_s - time.monotonic()))
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5)
                number = int(connection.recv(16))
            except TimeoutError:
                if time.monotonic() < until_s:
                    continue
                missing = sorted({*range(1, processes)} - {*came})
                raise InputError(
                    f"{len(missing)} of {processes} processes did not connect to port {port}: "
                    f"{', '.join(map(str, missing[:8]))}; start them with the same address"
                ) from None
            except (ValueError, OSError):
                continue  # not one of ours
            if number in came or not 0 < number < processes:
                raise InputError(
                    f"a second process {number} connected; number the {processes} processes from 0"
                )
            came[number] = connection
        for connection in came.values():
            connection.sendall(b"go")
            with contextlib.suppress(OSError):
                connection.recv(1)  # the other side closes first, which frees the port at once


def _report_to(host: str, port: int, number: int, until_s: float) -> None:
    """Connect to process 0 and wait until it releases this one."""
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 5) as connection:
            connection.settimeout(max(0.01, until_s - time.monotonic()))
            connection.sendall(str(number).encode("ascii"))
            if connection.recv(2) == b"go":
                return
        time.sleep(0.2)
    raise InputError(
        f"process {number} got no answer from process 0 at {host}:{port}; start process 0 with an "
        "address that all machines reach, and check its output"
    )


# --- Agreement between processes
# Every process runs the same command on the same input. Only the first one writes files, and what
# it finds on disk (a finished run, earlier scores) holds for all: a process that took another
# branch would wait for the others forever.

T = TypeVar("T")

UNSEEN_S = 10
"""Longest wait for a file that the first process has just written."""


def process_count() -> int:
    """Return the number of processes, without importing or initialising jax."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return 1
    return jax.process_count()


def process_index() -> int:
    """Return the index of this process."""
    return 0 if process_count() == 1 else sys.modules["jax"].process_index()


def is_first() -> bool:
    """Return whether this process writes files and prints."""
    return process_index() == 0


@contextlib.contextmanager
def quiet_others() -> Iterator[None]:
    """Silence all processes but the first; errors still propagate."""
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
    """Run a function on the first process and return its JSON-like result on all of them."""
    # All processes call this at the same point; the others wait for the first one's files, too.
    if process_count() == 1:
        return work()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": work()}
        except InputError as error:
            answer = {"error": str(error)}
    answer = json.loads(_from_first(json.dumps(answer).encode("utf-8")))
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["value"]


def _from_first(data: bytes) -> bytes:
    """Broadcast bytes of the first process."""
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    # Powers of two, because each size is compiled.
    padded = np.zeros(max(1024, 1 << (size - 1).bit_length()), np.uint8)
    if is_first():
        padded[:size] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes()


def largest(number: int) -> int:
    """Return the largest of the processes' numbers; all call this at the same point."""
    return number if process_count() == 1 else int(_largest(number))


def check_shared(path: Path) -> None:
    """Raise InputError if some process does not see a path: all of them read checkpoints."""
    if process_count() == 1:
        return
    until_s = time.monotonic() + UNSEEN_S  # network file systems lag
    while not (is_seen := path.exists()) and time.monotonic() < until_s:
        time.sleep(0.1)
    blind = largest(0 if is_seen else process_index())
    if blind:
        raise InputError(
            f"process {blind} does not see {path}; use a folder on a disk that all machines share"
        )


class Vote:
    """Largest of the processes' numbers, one call late so that the devices never wait."""

    # On a single process the number is returned at once.

    def __init__(self) -> None:
        self._count = process_count()
        self._pending: Any = None

    def __call__(self, number: int) -> int:
        """Return the largest number of the previous call."""
        if self._count == 1:
            return number
        before, self._pending = self._pending, _largest(number)
        return 0 if before is None else int(before)


def _largest(number: int) -> Any:
    """Return the largest number as an array that may not be computed yet."""
    import jax
    import numpy as np

    rows, largest = _voting()
    numbers = jax.make_array_from_callback(
        (rows.mesh.size,), rows, lambda index: np.full(1, number, np.int32)
    )
    return largest(numbers)


@lru_cache(maxsize=1)
def _voting() -> tuple[Any, Callable[[Any], Any]]:
    """Return the sharding of one number per device, and the program that compares them."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    rows = NamedSharding(mesh, PartitionSpec("device"))
    return rows, jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
