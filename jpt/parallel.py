"""Device meshes, shardings, and the placement of arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Int64

from jpt.distributed import process_count
from jpt.errors import InputError, unknown_name

# --- Mesh and shardings
# One mesh with the axes ``prompt`` (prompts of a bank), ``data`` (rows of a batch) and ``model``
# (columns of matrices). Each family has a table from parameter path to axes. With several
# processes, each builds the part of an array that its devices hold.

AXES = ("prompt", "data", "model")

PartitionTable = Sequence[tuple[str, PartitionSpec]]


def parse_mesh(text: str | None, devices: int) -> dict[str, int]:
    """Return the size of each axis of a mesh such as ``data:4,model:2``."""
    if text is None:
        return {"prompt": 1, "data": devices, "model": 1}
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (token.strip() for token in part.partition(":"))
        if axis not in AXES:
            raise unknown_name("mesh axis", axis, AXES)
        if not size.isdecimal() or int(size) < 1:
            raise InputError(
                f"mesh '{text}': expected a number as size of axis {axis}, got '{size}'; write "
                "AXIS:NUMBER, for instance data:4,model:2"
            )
        if axis in sizes:
            raise InputError(f"mesh '{text}': axis {axis} is given twice; give it once")
        sizes[axis] = int(size)
    wanted = math.prod(sizes.values())
    if wanted > devices:
        product = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise InputError(f"mesh {product} needs {wanted} devices, got {devices}")
    return {axis: sizes.get(axis, 1) for axis in AXES}


def make_mesh(text: str | None = None) -> Mesh:
    """Return the mesh of a command: by default all devices, on a CPU one."""
    devices = jax.devices()
    if text is None and devices[0].platform == "cpu" and process_count() == 1:
        devices = devices[:1]
    sizes = parse_mesh(text, len(devices))
    count = math.prod(sizes.values())
    working = {device.process_index for device in devices[:count]}
    if len(working) < process_count():
        raise InputError(
            f"mesh {text} uses {count} of {len(devices)} devices, which belong to {len(working)} "
            f"of {process_count()} processes; use a mesh of all devices, or start fewer processes"
        )
    auto = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=auto, devices=devices[:count])


def describe_devices(mesh: Mesh) -> str:
    """Return the number and kind of a mesh's devices."""
    return f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}"


def parameter_shardings(params: Any, table: PartitionTable, mesh: Mesh) -> tuple[Any, list[str]]:
    """Return the sharding of each parameter, and notes on dimensions that are not sharded."""
    notes: list[str] = []

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = "/".join(str(key.key) for key in path)
        return parameter_sharding(name, leaf.shape, table, mesh, notes)

    return jax.tree_util.tree_map_with_path(sharding, params), notes


def parameter_sharding(
    name: str, shape: tuple[int, ...], table: PartitionTable, mesh: Mesh, notes: list[str]
) -> NamedSharding:
    """Return the sharding of one parameter; append a note if a dimension is not sharded."""
    return NamedSharding(mesh, _fit(name, shape, _find(name, table), mesh, notes))


def _find(name: str, table: PartitionTable) -> PartitionSpec:
    for pattern, spec in table:
        if re.fullmatch(pattern, name):
            return spec
    raise InputError(
        f"no rule of the partition table matches parameter {name}; add one to its family's table"
    )


def _fit(
    name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh, notes: list[str]
) -> PartitionSpec:
    """Drop the axes that do not divide their dimension, with a note."""
    if len(spec) > len(shape):
        raise InputError(f"rule {spec} of {name} has more axes than its shape {list(shape)}")
    axes: list[str | None] = []
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            notes.append(
                f"{name} is not sharded: dimension {size} is not divisible by mesh axis "
                f"'{axis}' ({mesh.shape[axis]})"
            )
            axis = None
        axes.append(axis)
    return PartitionSpec(*axes)


def place(tree: Any, shardings: Any) -> Any:
    """Put arrays on devices by their shardings."""
    if process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda leaf: _place_part(leaf, shardings), tree)
    return jax.tree.map(_place_part, tree, shardings)


def _place_part(leaf: Any, sharding: Sharding) -> jax.Array:
    # Only the local part: `jax.device_put` would compare the whole array between processes.
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def fetch(tree: Any) -> Any:
    """Return arrays as whole NumPy arrays."""
    if process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_fetch_whole, tree)


def _fetch_whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that every device holds in full, such as a prompt."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Return the sharding of a batch: rows over the axis ``data``."""
    size = mesh.shape["data"]
    if rows % size:
        raise InputError(
            f"a batch of {rows} rows is not divisible by mesh axis 'data' ({size}); use a batch "
            f"size that is a multiple of {size}"
        )
    return NamedSharding(mesh, PartitionSpec("data"))


def prompt_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a prompt bank: prompts over the axis ``prompt``."""
    return NamedSharding(mesh, PartitionSpec("prompt"))


@lru_cache(maxsize=256)
def local_rows(mesh: Mesh, rows: int) -> Int64[np.ndarray, "B"] | None:
    """Return the rows of a batch that this process's devices hold; None for all."""
    sharding = batch_sharding(mesh, rows)
    if process_count() == 1:
        return None
    parts = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in parts]))


def place_batch(batch: Any, mesh: Mesh, rows: int | None = None) -> Any:
    """Put a batch, or this process's rows of it, on the devices."""
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
