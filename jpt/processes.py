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
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from jpt.errors import InputError

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
