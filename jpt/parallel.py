"""Device meshes, shardings, placement of arrays, and several processes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Int64

from jpt.errors import InputError, unknown_name

# --- Joining the other processes: by hand, under SLURM or Open MPI, or on a TPU pod
# Before any of this jax must not have looked at its devices; nothing here imports it before that.

AUTO, NONE = "auto", "none"
TIMEOUT_S = 300
LEAVING_S = 120
"""How long a process waits for the others at its end; if they do not come, it ends as failed."""
HEARTBEAT_S = 100
"""Of so long a silence a process is taken for dead, and the others end."""


class ProcessPlace(NamedTuple):
    """Which of the processes this one is; all None where jax asks the cluster."""

    coordinator: str | None  # address of the first process, as ``HOST:PORT``
    processes: int | None  # how many there are
    process: int | None  # the number of this one, from 0


def find_process(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str] | None = None,
) -> ProcessPlace | None:
    """Decides whether there are several processes, and which of them this one is."""
    if coordinator is None:
        if processes is not None or process is not None:
            raise InputError(
                "processes and process are given, but no coordinator; give --coordinator HOST:PORT,"
                " the address of process 0"
            )
        known = os.environ if environment is None else environment
        return ProcessPlace(None, None, None) if _count_in(known) > 1 else None
    if coordinator in (AUTO, NONE):
        if processes is not None or process is not None:
            raise InputError(
                f"coordinator is {coordinator}, which settles processes and process; leave them out"
            )
        return ProcessPlace(None, None, None) if coordinator == AUTO else None
    return _place_by_hand(coordinator, processes, process)


def _place_by_hand(
    coordinator: str, processes: int | None, process: int | None
) -> ProcessPlace | None:
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
    return ProcessPlace(coordinator, processes, process) if processes > 1 else None


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
    place = find_process(coordinator, processes, process)
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


def _meet(place: ProcessPlace, timeout_s: float) -> None:
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


# --- Several processes that compute together: on the machines of a TPU pod, under SLURM, or by hand
# Every process runs the same command on the same input. Arrays are spread over the devices of all
# of them (:mod:`jpt.parallel`); the first process alone writes files, and what it finds on its disk
# (a finished run, scores of an earlier call) counts for all, so that none goes another way than the
# others and waits for them for ever. Nothing here imports jax before it is needed.

T = TypeVar("T")

UNSEEN_S = 10
"""How long a process looks for a file that the first one has just written."""


def process_count() -> int:
    """Counts the processes that compute together."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return 1
    return jax.process_count()


def process_number() -> int:
    """Gives the number of this process."""
    return 0 if process_count() == 1 else sys.modules["jax"].process_index()


def is_first() -> bool:
    """Says whether this process is the one that writes files and prints."""
    return process_number() == 0


@contextlib.contextmanager
def quiet_others() -> Iterator[None]:
    # Keeps all but the first process from printing what all of them would; errors are still told.
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
    """Does something on the first process alone and gives all what came out."""
    # All processes call it at the same place; the others wait, also for what the first one writes.
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
    """Compares a number of all processes; all call it at the same place."""
    return number if process_count() == 1 else int(_largest(number))


def check_shared(path: Path) -> None:
    """Refuses a disk that only some of the processes see: all of them read checkpoints."""
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
    """Lets all processes agree on a number without a wait: each asks, all hear of the largest."""

    # An answer is one call late, so that the devices go on while it is on its way. On a lone
    # machine it comes at once.

    def __init__(self) -> None:
        self._count = process_count()
        self._pending: Any = None

    def __call__(self, number: int) -> int:
        """Hands in a number."""
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


# --- One mesh of named axes, and where arrays lie on it
# The axes are ``prompt`` (prompts of a bank), ``data`` (rows of a batch) and ``model`` (columns of
# matrices). Programs are compiled by ``jax.jit`` over arrays with a ``NamedSharding``; the compiler
# adds the communication. The table from parameter path to axes lives in each family's file. With
# several processes each one has some of the devices, and builds the part of an array that they
# hold.

AXES = ("prompt", "data", "model")

PartitionTable = Sequence[tuple[str, PartitionSpec]]


def parse_mesh(text: str | None, devices: int) -> dict[str, int]:
    """Reads a mesh from text."""
    if text is None:
        return {"prompt": 1, "data": devices, "model": 1}
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (piece.strip() for piece in part.partition(":"))
        if axis not in AXES:
            raise unknown_name("mesh axis", axis, AXES)
        if not size.isdecimal() or int(size) < 1:
            raise InputError(
                f"mesh '{text}' gives axis {axis} the size '{size}'; write AXIS:NUMBER, "
                "for instance data:4,model:2"
            )
        if axis in sizes:
            raise InputError(f"mesh '{text}' names axis {axis} twice; name it once")
        sizes[axis] = int(size)
    wanted = math.prod(sizes.values())
    if wanted > devices:
        product = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise InputError(f"mesh {product} needs {wanted} devices, but there are {devices}")
    return {axis: sizes.get(axis, 1) for axis in AXES}


def make_mesh(text: str | None = None) -> Mesh:
    """Builds the mesh that a command runs on."""
    devices = jax.devices()
    if text is None and devices[0].platform == "cpu" and process_count() == 1:
        devices = devices[:1]
    sizes = parse_mesh(text, len(devices))
    count = math.prod(sizes.values())
    working = {device.process_index for device in devices[:count]}
    if len(working) < process_count():
        raise InputError(
            f"mesh {text} uses {count} of {len(devices)} devices, and {len(working)} of "
            f"{process_count()} processes would have no part in it; use a mesh of all devices, or "
            "start fewer processes"
        )
    auto = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=auto, devices=devices[:count])


def describe_devices(mesh: Mesh) -> str:
    """Says how many devices of which kind a mesh has."""
    return f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}"


def parameter_shardings(params: Any, table: PartitionTable, mesh: Mesh) -> tuple[Any, list[str]]:
    """Looks up where each parameter lies."""
    notes: list[str] = []

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = "/".join(str(key.key) for key in path)
        return parameter_sharding(name, leaf.shape, table, mesh, notes)

    return jax.tree_util.tree_map_with_path(sharding, params), notes


def parameter_sharding(
    name: str, shape: tuple[int, ...], table: PartitionTable, mesh: Mesh, notes: list[str]
) -> NamedSharding:
    """Looks up where one parameter lies."""
    return NamedSharding(mesh, _fit(name, shape, _find(name, table), mesh, notes))


def _find(name: str, table: PartitionTable) -> PartitionSpec:
    for pattern, spec in table:
        if re.fullmatch(pattern, name):
            return spec
    raise InputError(
        f"no rule of the partition table names the parameter {name}; add one to its family's table"
    )


def _fit(
    name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh, notes: list[str]
) -> PartitionSpec:
    """Leaves a dimension whole where its axis does not divide it, and notes that."""
    if len(spec) > len(shape):
        raise InputError(f"the rule {spec} of {name} has more axes than its shape {list(shape)}")
    axes: list[str | None] = []
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            notes.append(
                f"{name}: a dimension of {size} stays whole, axis {axis} of {mesh.shape[axis]} "
                "does not divide it"
            )
            axis = None
        axes.append(axis)
    return PartitionSpec(*axes)


def place(tree: Any, shardings: Any) -> Any:
    """Moves arrays to where they belong."""
    if process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda leaf: _place_part(leaf, shardings), tree)
    return jax.tree.map(_place_part, tree, shardings)


def _place_part(leaf: Any, sharding: Sharding) -> jax.Array:
    """Puts onto this process's devices what they hold of an array; jax would compare the whole."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def fetch(tree: Any) -> Any:
    """Reads arrays back whole, wherever their parts lie."""
    if process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_fetch_whole, tree)


def _fetch_whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def replicated(mesh: Mesh) -> NamedSharding:
    """Gives the sharding of what every device holds whole, such as a prompt."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Gives the sharding of a batch: its rows over the axis ``data``."""
    size = mesh.shape["data"]
    if rows % size:
        raise InputError(
            f"a batch of {rows} rows does not divide over the mesh axis data of {size}; "
            f"use a batch size that is a multiple of {size}"
        )
    return NamedSharding(mesh, PartitionSpec("data"))


def prompt_sharding(mesh: Mesh) -> NamedSharding:
    """Gives the sharding of a bank of prompts: its prompts over the axis ``prompt``."""
    return NamedSharding(mesh, PartitionSpec("prompt"))


@lru_cache(maxsize=256)
def local_rows(mesh: Mesh, rows: int) -> Int64[np.ndarray, "B"] | None:
    """Says which rows of a batch this process's devices hold."""
    sharding = batch_sharding(mesh, rows)
    if process_count() == 1:
        return None
    parts = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in parts]))


def place_batch(batch: Any, mesh: Mesh, rows: int | None = None) -> Any:
    """Puts a batch on the devices, its rows over the axis ``data``."""
    given = len(jax.tree.leaves(batch)[0])
    rows = given if rows is None else rows
    sharding, local = batch_sharding(mesh, rows), local_rows(mesh, rows)
    if local is None or given == rows:
        return place(batch, sharding)

    def put(part: np.ndarray) -> jax.Array:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            return part[np.searchsorted(local, np.arange(rows)[index[0]])]

        return jax.make_array_from_callback((rows, *part.shape[1:]), sharding, read)

    return jax.tree.map(put, batch)
