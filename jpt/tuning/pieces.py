"""How rows and prompts are put together where they are scored; changes speed, never a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jpt.data.batches import bucket_length
from jpt.data.encode import EncodedSplit
from jpt.mesh import fetch, place, prompt_sharding, replicated

BANK_MB = 1024
"""Memory of a device for what passes through the layers of a bank's prompts, roughly."""

CPU_ROWS = 16
"""Rows whose states pass a CPU's layers in its cache, where each row has a prompt's states too."""

AT_ONCE = 64
"""Prompts that are worth handing in together, on each part of the axis ``prompt``."""


class Batching(NamedTuple):
    """How rows are put into batches."""

    batch_size: int  # rows of a batch
    max_tokens: int  # the length the rows were encoded with, which is the longest bucket
    pad: int  # id of the padding piece
    # the most rows of a batch on each device that is a CPU; None for batch_size
    cpu_rows: int | None = None

    def rows_at_once(self, mesh: Mesh | None) -> int:
        """Says how many rows are scored at once."""
        if self.cpu_rows is None or _platform(mesh) != "cpu":
            return self.batch_size
        return min(self.batch_size, self.cpu_rows * (1 if mesh is None else mesh.shape["data"]))


class Piece(NamedTuple):
    """Prompts that go through one program at once."""

    numbers: tuple[int, ...]  # their places among all prompts
    # one prompt, None for the untouched model, or a bank, filled up to divide over the axis
    # ``prompt``
    values: Float[Array, "K P D"] | Float[Array, "P D"] | None


def prompts_at_once(mesh: Mesh | None) -> int:
    """Says how many prompts are best scored in one call."""
    # On a CPU one after the other was measured to be faster than all at once.
    if mesh is None or (mesh.shape["prompt"] == 1 and _platform(mesh) == "cpu"):
        return 1
    return AT_ONCE * mesh.shape["prompt"]


def _platform(mesh: Mesh | None) -> str:
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def plan_pieces(
    config: Any,
    prompts: Sequence[Float[Array, "P D"] | None],
    split: EncodedSplit,
    batching: Batching,
    n_words: int,
    mesh: Mesh | None,
) -> list[Piece]:
    """Decides which prompts go through the model together, and puts them on the devices."""
    alone = [number for number, prompt in enumerate(prompts) if prompt is None]
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        if prompt is not None:
            by_length.setdefault(len(prompt), []).append(number)
    if prompts_at_once(mesh) == 1:
        return [Piece((number,), _alone(prompt, mesh)) for number, prompt in enumerate(prompts)]
    pieces = [Piece((number,), None) for number in alone]
    for rows, numbers in by_length.items():
        size = _fitting(config, rows, split, batching, n_words, mesh)
        for some in np.array_split(numbers, math.ceil(len(numbers) / size)):
            pieces.append(_piece(prompts, tuple(some.tolist()), mesh))
    return pieces


def _fitting(
    config: Any, rows: int, split: EncodedSplit, batching: Batching, n_words: int, mesh: Mesh
) -> int:
    """How many prompts of a length fit into the budget: a multiple of the axis ``prompt``."""
    longest = bucket_length(int(split.lengths.max()), batching.max_tokens)
    places = rows + longest + 1
    # One layer's states, neurons and attention at a time, in float32, rounded up.
    passing = places * (6 * config.width + config.neurons) + config.heads * places**2
    passing += n_words * config.vocabulary
    share = math.ceil(batching.rows_at_once(mesh) / mesh.shape["data"])
    return mesh.shape["prompt"] * max(1, int(BANK_MB * 2**20 / (4 * passing * share)))


def _alone(prompt: Float[Array, "P D"] | None, mesh: Mesh | None) -> Float[Array, "P D"] | None:
    """Puts one prompt where training has it: from elsewhere, its program would be another one."""
    return prompt if prompt is None or mesh is None else place(prompt, replicated(mesh))


def _piece(
    prompts: Sequence[Float[Array, "P D"] | None], numbers: tuple[int, ...], mesh: Mesh
) -> Piece:
    """Puts some prompts into one array; the last one is repeated until the axis divides them."""
    if len(numbers) == 1:
        return Piece(numbers, _alone(prompts[numbers[0]], mesh))
    missing = -len(numbers) % mesh.shape["prompt"]
    chosen = [*numbers, *[numbers[-1]] * missing]
    bank = np.stack([np.asarray(fetch(prompts[number]), np.float32) for number in chosen])
    return Piece(numbers, place(bank, prompt_sharding(mesh)))
