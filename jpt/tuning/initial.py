"""The prompt that a run starts from: the same for all tasks of a study, as in the paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from jpt.backbones.registry import Backbone
from jpt.config import TuneOptions
from jpt.prompts.initialisers import initial_values, parse_init, sampled_ids
from jpt.tuning.prepare import PreparedTask


def initial_prompt(
    backbone: Backbone, prepared: PreparedTask, options: TuneOptions
) -> Float32[np.ndarray, "P D"]:
    """Builds the initial rows of a run."""
    return initial_rows(
        backbone, options.init, options.seed, options.length, prepared.words.all_ids
    )


def initial_rows(
    backbone: Backbone, init: str, seed: int, length: int, label_ids: Sequence[int] = ()
) -> Float32[np.ndarray, "P D"]:
    """Builds the rows that a start stands for."""
    tokenizer = backbone.tokenizer
    # The table may have rows that the tokenizer does not name (padding to a round number).
    count = min(backbone.config.vocabulary, tokenizer.vocabulary_size)
    pieces = [tokenizer.piece(token) for token in range(count)]
    special = {token for token in tokenizer.ids if token is not None}
    return initial_values(
        parse_init(init),
        seed=seed,
        backbone=backbone.name,
        length=length,
        embedding=backbone.params["embeddings"]["word"],
        ids=sampled_ids(pieces, special),
        label_ids=label_ids,
        encode=lambda text: tokenizer.encode([text])[0],
        std=backbone.init_std(),
    )
