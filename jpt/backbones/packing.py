"""Pack the real tokens of padded rows, so that no matrix product is spent on padding."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Packing(NamedTuple):
    """Index maps between padded rows and packed sequences, one sequence for each group of rows."""

    # G is the number of devices that share the rows: packing never mixes rows of two devices.
    position: Int[
        Array, "G M"
    ]  # row position (flat, in its group) of each packed token, or B/G * S
    slot: Int[Array, "B S"]  # packed index of each row position; M for padding


def pack_layout(
    packed_index: Int[Array, "G N"] | None, lengths: Int[Array, "B"], text: int, front: int = 0
) -> Packing | None:
    """Build the index maps for rows of ``front`` prompt tokens followed by text."""
    if packed_index is None:
        return None
    groups, count = packed_index.shape
    rows = lengths.shape[0] // groups
    wide, before = front + text, rows * front
    row, column = jnp.divmod(packed_index, text)
    fronts = jnp.arange(rows)[:, None] * wide + jnp.arange(front)[None]  # [B/G, F]
    fronts = jnp.broadcast_to(fronts.reshape(1, before), (groups, before))
    # Unused entries of packed_index name row B/G, one past the last.
    texts = jnp.where(row < rows, row * wide + front + column, rows * wide)
    position = jnp.concatenate([fronts, texts], axis=1)

    lengths = lengths.reshape(groups, rows)
    starts = (jnp.cumsum(lengths, axis=1) - lengths)[:, :, None]  # [G, B/G, 1]
    columns = jnp.arange(text)[None, None]
    texts = jnp.where(columns < lengths[:, :, None], before + starts + columns, before + count)
    heads = jnp.arange(before).reshape(1, rows, front)
    heads = jnp.broadcast_to(heads, (groups, rows, front))
    slot = jnp.concatenate([heads, texts], axis=2)
    return Packing(position, slot.reshape(groups * rows, wide))


def spread(packed: Float[Array, "G M ..."], packing: Packing | None) -> Float[Array, "B S ..."]:
    """Unpack values into padded rows, with 0 at padding."""
    return packed if packing is None else _spread(packed, packing)


def collect(rows: Float[Array, "B S ..."], packing: Packing | None) -> Float[Array, "G M ..."]:
    """Pack the values of padded rows, with 0 in unused slots."""
    return rows if packing is None else _collect(rows, packing)


def at_position(
    values: Float[Array, "B S D"] | Float[Array, "G M D"],
    position: Int[Array, "B"],
    packing: Packing | None,
) -> Float[Array, "B 1 D"]:
    """Return the values of one position of every row."""
    if packing is None:
        return jnp.take_along_axis(values, position[:, None, None], axis=1)
    slot = jnp.take_along_axis(packing.slot, position[:, None], axis=1)
    found = _take(values, slot.reshape(values.shape[0], -1))
    return found.reshape(position.shape[0], 1, values.shape[2])


# Each is the transpose of the other, so both backward passes are gathers instead of scatters.
@jax.custom_vjp
def _spread(packed: Float[Array, "G M ..."], packing: Packing) -> Float[Array, "B S ..."]:
    found = _take(packed, packing.slot.reshape(packed.shape[0], -1))
    return found.reshape(*packing.slot.shape, *packed.shape[2:])


@jax.custom_vjp
def _collect(rows: Float[Array, "B S ..."], packing: Packing) -> Float[Array, "G M ..."]:
    groups = packing.position.shape[0]
    return _take(rows.reshape(groups, -1, *rows.shape[2:]), packing.position)


def _take(values: Float[Array, "G X ..."], index: Int[Array, "G Y"]) -> Float[Array, "G Y ..."]:
    def take(group: Float[Array, "X ..."], wanted: Int[Array, "Y"]) -> Float[Array, "Y ..."]:
        return group.at[wanted].get(mode="fill", fill_value=0)

    return jax.vmap(take)(values, index)


def _spread_forward(packed: Array, packing: Packing) -> tuple[Array, Packing]:
    return _spread(packed, packing), packing


def _spread_back(packing: Packing, gradient: Array) -> tuple[Array, None]:
    return _collect(gradient, packing), None


def _collect_forward(rows: Array, packing: Packing) -> tuple[Array, Packing]:
    return _collect(rows, packing), packing


def _collect_back(packing: Packing, gradient: Array) -> tuple[Array, None]:
    return _spread(gradient, packing), None


_spread.defvjp(_spread_forward, _spread_back)
_collect.defvjp(_collect_forward, _collect_back)
