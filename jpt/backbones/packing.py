"""Pack the real tokens of padded rows, so that padding costs no matrix products."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Packing(NamedTuple):
    """Which place of a line is which position of a row."""

    # Rows stand in G groups, one line each, so that devices which share the rows out need no
    # other's.

    # of each place of a line, counted through the group's rows; one past the last where nothing
    # stands
    position: Int[Array, "G M"]
    place: Int[Array, "B S"]  # of each position of a row; one past the last for padding


def pack_layout(
    packed_index: Int[Array, "G N"] | None, lengths: Int[Array, "B"], text: int, front: int = 0
) -> Packing | None:
    # Says where the positions of rows stand that have the same number of tokens before the text.
    if packed_index is None:
        return None
    groups, count = packed_index.shape
    rows = lengths.shape[0] // groups
    wide, before = front + text, rows * front
    row, column = jnp.divmod(packed_index, text)
    fronts = jnp.arange(rows)[:, None] * wide + jnp.arange(front)[None]  # [B/G, F]
    fronts = jnp.broadcast_to(fronts.reshape(1, before), (groups, before))
    # Of no position: row B / G, which is past the last.
    none = jnp.where(row < rows, row * wide + front + column, rows * wide)
    position = jnp.concatenate([fronts, none], axis=1)

    lengths = lengths.reshape(groups, rows)
    starts = (jnp.cumsum(lengths, axis=1) - lengths)[:, :, None]  # [G, B/G, 1]
    columns = jnp.arange(text)[None, None]
    texts = jnp.where(columns < lengths[:, :, None], before + starts + columns, before + count)
    heads = jnp.arange(before).reshape(1, rows, front)
    heads = jnp.broadcast_to(heads, (groups, rows, front))
    place = jnp.concatenate([heads, texts], axis=2)
    return Packing(position, place.reshape(groups * rows, wide))


def spread(line: Float[Array, "G M ..."], packing: Packing | None) -> Float[Array, "B S ..."]:
    """Puts a line's values where they stand in their rows, and 0 at padding."""
    return line if packing is None else _spread(line, packing)


def collect(rows: Float[Array, "B S ..."], packing: Packing | None) -> Float[Array, "G M ..."]:
    """Takes what stands at real tokens into a line; 0 where no token stands."""
    return rows if packing is None else _collect(rows, packing)


def at_position(
    values: Float[Array, "B S D"] | Float[Array, "G M D"],
    position: Int[Array, "B"],
    packing: Packing | None,
) -> Float[Array, "B 1 D"]:
    """Takes one position of every row."""
    if packing is None:
        return jnp.take_along_axis(values, position[:, None, None], axis=1)
    packed_index = jnp.take_along_axis(packing.place, position[:, None], axis=1)
    found = _take(values, packed_index.reshape(values.shape[0], -1))
    return found.reshape(position.shape[0], 1, values.shape[2])


@jax.custom_vjp
def _spread(line: Float[Array, "G M ..."], packing: Packing) -> Float[Array, "B S ..."]:
    found = _take(line, packing.place.reshape(line.shape[0], -1))
    return found.reshape(*packing.place.shape, *line.shape[2:])


@jax.custom_vjp
def _collect(rows: Float[Array, "B S ..."], packing: Packing) -> Float[Array, "G M ..."]:
    groups = packing.position.shape[0]
    return _take(rows.reshape(groups, -1, *rows.shape[2:]), packing.position)


def _take(
    values: Float[Array, "G X ..."], packed_index: Int[Array, "G Y"]
) -> Float[Array, "G Y ..."]:
    def take(group: Float[Array, "X ..."], wanted: Int[Array, "Y"]) -> Float[Array, "Y ..."]:
        return group.at[wanted].get(mode="fill", fill_value=0)

    return jax.vmap(take)(values, packed_index)


def _spread_forward(line: Array, packing: Packing) -> tuple[Array, Packing]:
    return _spread(line, packing), packing


def _spread_back(packing: Packing, gradient: Array) -> tuple[Array, None]:
    return _collect(gradient, packing), None


def _collect_forward(rows: Array, packing: Packing) -> tuple[Array, Packing]:
    return _collect(rows, packing), packing


def _collect_back(packing: Packing, gradient: Array) -> tuple[Array, None]:
    return _spread(gradient, packing), None


_spread.defvjp(_spread_forward, _spread_back)
_collect.defvjp(_collect_forward, _collect_back)
