"""One mesh of named axes, and where arrays lie on it.

The axes are ``prompt`` (prompts of a bank), ``data`` (rows of a batch) and ``model`` (columns of
matrices). Programs are compiled by ``jax.jit`` over arrays with a ``NamedSharding``; the compiler
adds the communication. The table from parameter path to axes lives in each family's file. With
several processes each one has some of the devices, and builds the part of an array that they hold.
"""

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

from jpt.errors import InputError, unknown_name
from jpt.processes import process_count

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
def own_rows(mesh: Mesh, rows: int) -> Int64[np.ndarray, "B"] | None:
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
    sharding, own = batch_sharding(mesh, rows), own_rows(mesh, rows)
    if own is None or given == rows:
        return place(batch, sharding)

    def put(part: np.ndarray) -> jax.Array:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            return part[np.searchsorted(own, np.arange(rows)[index[0]])]

        return jax.make_array_from_callback((rows, *part.shape[1:]), sharding, read)

    return jax.tree.map(put, batch)
