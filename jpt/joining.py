"""Joining the other processes: by hand, under SLURM or Open MPI, or on a TPU pod.

Before any of this jax must not have looked at its devices; nothing here imports it before that.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

from jpt.errors import InputError

AUTO, NONE = "auto", "none"
TIMEOUT_S = 300
LEAVING_S = 120
"""How long a process waits for the others at its end; if they do not come, it ends as failed."""
HEARTBEAT_S = 100
"""Of so long a silence a process is taken for dead, and the others end."""


class Place(NamedTuple):
    """Which of the processes this one is; all None where jax asks the cluster."""

    coordinator: str | None  # address of the first process, as ``HOST:PORT``
    processes: int | None  # how many there are
    process: int | None  # the number of this one, from 0


def find_place(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str] | None = None,
) -> Place | None:
    """Decides whether there are several processes, and which of them this one is."""
    if coordinator is None:
        if processes is not None or process is not None:
            raise InputError(
                "processes and process are given, but no coordinator; give --coordinator HOST:PORT,"
                " the address of process 0"
            )
        known = os.environ if environment is None else environment
        return Place(None, None, None) if _count_in(known) > 1 else None
    if coordinator in (AUTO, NONE):
        if processes is not None or process is not None:
            raise InputError(
                f"coordinator is {coordinator}, which settles processes and process; leave them out"
            )
        return Place(None, None, None) if coordinator == AUTO else None
    return _place_by_hand(coordinator, processes, process)


def _place_by_hand(coordinator: str, processes: int | None, process: int | None) -> Place | None:
    """Checks an address and two numbers."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"coordinator is '{coordinator}'; give HOST:PORT of process 0, for instance "
            "localhost:12345, or auto or none"
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
    # Joins the other processes, before jax looks at its devices; does nothing on a lone machine.
    place = find_place(coordinator, processes, process)
    if place is None:
        return 1
    import jax

    # SIGTERM is the loop's: it saves first. jax would take the signal for a service of its own.
    jax.config.update("jax_enable_preemption_service", False)
    given = {}
    if place.coordinator is not None:
        if jax.distributed.is_initialized():
            raise InputError("this process has joined others already; start it anew")
        _meet(place, TIMEOUT_S)
        given = {
            "coordinator_address": place.coordinator,
            "num_processes": place.processes,
            "process_id": place.process,
            "cluster_detection_method": "deactivate",
        }
    timeouts = {
        "initialization_timeout": TIMEOUT_S,
        "heartbeat_timeout_seconds": HEARTBEAT_S,
        "shutdown_timeout_seconds": LEAVING_S,
    }
    try:
        jax.distributed.initialize(**given, **timeouts)
    except (RuntimeError, ValueError, OSError) as error:
        where = f" at {place.coordinator}" if place.coordinator else ""
        raise InputError(
            f"the processes did not find each other{where} ({str(error).splitlines()[0]}); check "
            "that all were started, with one address that all of them reach"
        ) from None
    return jax.process_count()


def _meet(place: Place, timeout_s: float) -> None:
    """Waits until all processes are there: jax itself would end without a word to the user."""
    host, _, port = place.coordinator.rpartition(":")
    until_s = time.monotonic() + timeout_s
    if place.process == 0:
        _gather(int(port), place.processes, until_s)
    else:
        _report_to(host.strip("[]"), int(port), place.process, until_s)


def _gather(port: int, processes: int, until_s: float) -> None:
    """Hears every other process once, then lets them all go on."""
    came: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise InputError(
                f"port {port} of the coordinator cannot be opened ({error.strerror}); give another"
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
                    f"{len(missing)} of {processes} processes did not come to port {port}: "
                    f"{', '.join(map(str, missing[:8]))}; start them with the same address"
                ) from None
            except (ValueError, OSError):
                continue  # somebody who does not belong here
            if number in came or not 0 < number < processes:
                raise InputError(
                    f"a second process {number} came; number the {processes} processes from 0"
                )
            came[number] = connection
        for connection in came.values():
            connection.sendall(b"go")
            with contextlib.suppress(OSError):
                connection.recv(1)  # the other side closes first, so that the port is free at once


def _report_to(host: str, port: int, number: int, until_s: float) -> None:
    """Tells the first process that this one is there, and waits for the others."""
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 5) as connection:
            connection.settimeout(max(0.01, until_s - time.monotonic()))
            connection.sendall(str(number).encode("ascii"))
            if connection.recv(2) == b"go":
                return
        time.sleep(0.2)
    raise InputError(
        f"process 0 did not let process {number} in at {host}:{port}; start it, with an address "
        "that all machines reach, and see what it says"
    )
