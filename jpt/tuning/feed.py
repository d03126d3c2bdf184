"""The batches that a run is trained on, each a function of seed and step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, Int64

from jpt.backbones.registry import Backbone
from jpt.config import TuneOptions
from jpt.data.batches import fill_up, make_batch, text_places, training_rows
from jpt.data.encode import EncodedSplit
from jpt.data.token_budget import TokenBudget
from jpt.mesh import batch_sharding, make_mesh, own_rows, place, place_batch
from jpt.tasks.task import Task
from jpt.tuning.prepare import Data, as_backbone, as_task, prepare_for
from jpt.tuning.scoring import Batching
from jpt.tuning.settle import settle_options
from jpt.types import Batch


@dataclass(frozen=True)
class Feed:
    """Rows of a split as training batches."""

    split: EncodedSplit  # the encoded rows
    options: TuneOptions  # with every choice made; seed, sizes and order count
    batching: Batching  # longest text and padding
    budget: TokenBudget | None = None  # tokens of a batch, where they and not the rows are counted
    shares: int = 1  # the rows of a batch are divided by this number of devices

    @property
    def is_packed(self) -> bool:
        """Whether real tokens are computed alone; rows of like lengths have little padding."""
        return not self.options.group_by_length

    def batch_at(self, step: int) -> Batch:
        """Gives the batch of a step."""
        rows, size = self._rows_at(step)
        batch = make_batch(self.split, rows, size, self.batching.max_tokens, self.batching.pad)
        return batch._replace(places=self._places(rows, size, batch.tokens.shape[1]))

    def placed_at(self, step: int, mesh: Mesh) -> Batch:
        """Gives the batch of a step on the devices; a process reads the rows of its own part."""
        rows, size = self._rows_at(step)
        shape = (size, self.batching.max_tokens, self.batching.pad)
        batch = make_batch(self.split, rows, *shape, own_rows(mesh, size))
        places = self._places(rows, size, batch.tokens.shape[1])
        if places is not None:
            places = place(places, batch_sharding(mesh, self.shares))
        return place_batch(batch, mesh, size)._replace(places=places)

    def _places(
        self, rows: Int64[np.ndarray, "N"], size: int, text: int
    ) -> Int32[np.ndarray, "G N"] | None:
        if not self.is_packed:
            return None
        return text_places(self.split.lengths[fill_up(rows, size)], text, self.shares)

    def _rows_at(self, step: int) -> tuple[Int64[np.ndarray, "N"], int]:
        """The numbers of a step's rows, and the places of its batch."""
        options, size = self.options, self.options.batch_size
        if self.budget is not None:
            return self.budget.training_rows(options.seed, step)
        lengths = self.split.lengths if options.group_by_length else None
        return training_rows(options.seed, step, size, self.split.n_rows, lengths), size


def make_feed(
    split: EncodedSplit, options: TuneOptions, batching: Batching, layout: str, shares: int = 1
) -> Feed:
    """Decides how rows are put into batches."""
    budget = None
    if options.tokens_per_batch is not None:
        beside = {"encoder": options.length + 1, "encoder_decoder": options.length}.get(layout, 0)
        tokens = options.tokens_per_batch
        budget = TokenBudget(split.lengths, options.max_tokens, tokens, beside, shares)
    return Feed(split, options, batching, budget, shares)


def training_batches(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    *,
    data: Data | None = None,
    **options: Any,
) -> Iterator[Batch]:
    """Gives the very batches that `jpt.tune` trains on, for a loop of one's own.

    Args:
        backbone: whose vocabulary and choices count: a loaded one, a name, a folder or a hub id.
        task: a task, its name, or its folder.
        data: folder of the task's rows, or the rows by split.
        **options: fields of :class:`jpt.config.TuneOptions`.

    Yields:
        One batch a step, in numpy, for as many steps as the options say.

    Raises:
        InputError: for broken data, or options that do not fit.

    Example:
        >>> batches = training_batches("builtin/bert-small", "builtin/imdb_number", batch_size=4)
        >>> next(batches).labels.shape
        (4,)
    """
    model, definition = as_backbone(backbone), as_task(task, data)
    chosen = settle_options(TuneOptions(**options), model, definition)
    prepared = prepare_for(definition, model, chosen)
    shares = make_mesh(chosen.mesh).shape["data"]
    feed = make_feed(prepared.split("train"), chosen, prepared.batching, model.layout, shares)
    return (feed.batch_at(step) for step in range(chosen.steps))
