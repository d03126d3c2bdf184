"""One step of several runs at once on one frozen model: the step of a single run, vmapped.

Nothing of the weights is copied: the products of all runs are one product, of which only the prompt
side has an axis of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt32

from jpt.data.batches import text_places
from jpt.errors import InputError
from jpt.mesh import replicated
from jpt.tuning.losses import NO_PIECE, Answer
from jpt.tuning.step import StepMetrics, TuneState, paper_step
from jpt.types import Batch, Parameters

BankStep = Callable[
    [Parameters, TuneState, Batch, Answer, Float[Array, "K"], UInt32[Array, "K"]],
    tuple[TuneState, StepMetrics],
]


@lru_cache(maxsize=16)
def bank_train_step(
    module: nn.Module,
    objective: str = "labels",
    mesh: Mesh | None = None,
    clip_norm: float | None = None,
) -> BankStep:
    """Gives the compiled step of a bank; rates and seeds are arguments, so that runs share it."""
    bank = jax.vmap(paper_step(module, objective, clip_norm), in_axes=(None, 0, 0, 0, 0, 0))
    shardings = {} if mesh is None else {"out_shardings": (run_sharding(mesh), replicated(mesh))}
    return jax.jit(bank, donate_argnums=1, **shardings)


def run_sharding(mesh: Mesh) -> NamedSharding:
    """Gives the sharding of what each run has of its own: runs over the axis ``prompt``."""
    return NamedSharding(mesh, PartitionSpec("prompt"))


def stack_trees(trees: Sequence[Any]) -> Any:
    """Stacks trees of one structure leaf by leaf."""

    def stack(*leaves: Any) -> Any:
        on_host = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
        return np.stack(leaves) if on_host else jnp.stack(leaves)

    return jax.tree.map(stack, *trees)


def stack_batches(batches: Sequence[Batch], pad: int, groups: int | None = None) -> Batch:
    """Stacks the batches of several runs, their texts padded to the longest bucket among them."""
    longest = max(batch.tokens.shape[1] for batch in batches)

    def padded(batch: Batch) -> Batch:
        room = longest - batch.tokens.shape[1]
        tokens = np.pad(batch.tokens, ((0, 0), (0, room)), constant_values=pad)
        return batch._replace(tokens=tokens, places=None)

    stacked = stack_trees([padded(batch) for batch in batches])
    if groups is None:
        return stacked
    return stacked._replace(places=text_places(stacked.lengths, longest, groups))


def stack_answers(answers: Sequence[Answer]) -> Answer:
    """Stacks the label words of several tasks, which may have different numbers of them."""
    kinds = {answer_kind(answer) for answer in answers}
    if len(kinds) > 1:
        raise InputError(f"tasks with answers of {len(kinds)} kinds do not go into one bank")
    words = max(len(answer.label_ids) for answer in answers)
    pieces = max((a.pieces.shape[1] for a in answers if a.pieces is not None), default=0)
    return stack_trees([_filled_up(answer, words, pieces) for answer in answers])


def answer_kind(answer: Answer) -> tuple[Any, ...]:
    """Says which answers go into one bank."""
    own = None
    if answer.owners is not None:
        shape = None if answer.pieces is None else answer.pieces.shape
        own = (len(answer.owners), answer.n_labels, shape)
    return answer.pieces is None, own, answer.first_position


def _filled_up(answer: Answer, words: int, pieces: int) -> Answer:
    """Repeats the last word and says how many are real; further pieces are none."""
    count = len(answer.label_ids)
    if answer.owners is not None or not count:
        return answer
    room = (0, words - count)
    filled = answer.replace(
        label_ids=jnp.pad(answer.label_ids, room, mode="edge"), n_own=jnp.int32(count)
    )
    if answer.pieces is None:
        return filled
    wide = ((0, 0), (0, pieces - answer.pieces.shape[1]))
    longer = jnp.pad(answer.pieces, wide, constant_values=NO_PIECE)
    return filled.replace(pieces=jnp.pad(longer, (room, (0, 0)), mode="edge"))
