"""The training batches of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, Int64

from jpt.config import TuneOptions
from jpt.data.batches import TokenBudget, fill_up, make_batch, pack_indices, training_rows
from jpt.data.encode import EncodedSplit
from jpt.parallel import batch_sharding, local_rows, place, place_batch
from jpt.tuning.bound_task import Batching
from jpt.types import Batch


@dataclass(frozen=True)
class TrainBatches:
    """The training batches of a split, each a function of seed and step."""

    split: EncodedSplit
    options: TuneOptions  # resolved
    batching: Batching
    budget: TokenBudget | None = None  # tokens per batch, instead of rows
    shares: int = 1  # number of devices that share the rows of a batch

    @property
    def is_packed(self) -> bool:
        """Whether padding is skipped; rows of similar lengths have too little of it."""
        return not self.options.group_by_length

    def batch_at(self, step: int) -> Batch:
        """Return the batch of a step in numpy."""
        rows, size = self._rows_at(step)
        batch = make_batch(self.split, rows, size, self.batching.max_tokens, self.batching.pad)
        return batch._replace(packed_index=self._pack(rows, size, batch.tokens.shape[1]))

    def batch(self, step: int, mesh: Mesh) -> Batch:
        """Return the batch of a step on the devices; each process reads its own rows."""
        rows, size = self._rows_at(step)
        shape = (size, self.batching.max_tokens, self.batching.pad)
        batch = make_batch(self.split, rows, *shape, local_rows(mesh, size))
        packed_index = self._pack(rows, size, batch.tokens.shape[1])
        if packed_index is not None:
            packed_index = place(packed_index, batch_sharding(mesh, self.shares))
        return place_batch(batch, mesh, size)._replace(packed_index=packed_index)

    def _pack(
        self, rows: Int64[np.ndarray, "N"], size: int, text: int
    ) -> Int32[np.ndarray, "G N"] | None:
        if not self.is_packed:
            return None
        return pack_indices(self.split.lengths[fill_up(rows, size)], text, self.shares)

    def _rows_at(self, step: int) -> tuple[Int64[np.ndarray, "N"], int]:
        """Return the row indices of a step, and the padded number of rows."""
        options, size = self.options, self.options.batch_size
        if self.budget is not None:
            return self.budget.training_rows(options.seed, step)
        lengths = self.split.lengths if options.group_by_length else None
        return training_rows(options.seed, step, size, self.split.n_rows, lengths), size


def make_train_batches(
    split: EncodedSplit, options: TuneOptions, batching: Batching, layout: str, shares: int = 1
) -> TrainBatches:
    """Return the training batches of a split."""
    budget = None
    if options.tokens_per_batch is not None:
        # Tokens per row besides its text; a decoder computes its prompt once per batch.
        extra = {"encoder": options.length + 1, "encoder_decoder": options.length}.get(layout, 0)
        tokens = options.tokens_per_batch
        budget = TokenBudget(split.lengths, options.max_tokens, tokens, extra, shares)
    return TrainBatches(split, options, batching, budget, shares)
