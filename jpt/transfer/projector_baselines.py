"""Ways to another model without training: what a trained projector has to beat.

``untrained``: a projector as it is drawn. ``least_squares``: one matrix, fitted to the embeddings
of the words that both models know. ``relative``: each row keeps its similarities to those words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from jpt.backbones.registry import Backbone
from jpt.config import check_counts
from jpt.errors import InputError, unknown_name
from jpt.transfer.projector import initial_parameters
from jpt.transfer.projector_options import ANCHORS, BASELINES, ProjectorOptions
from jpt.transfer.projector_sizes import length_of, make_card
from jpt.transfer.projector_store import ProjectorCard, TrainedProjector, check_source
from jpt.transfer.shared_pieces import choose_anchors, piece_embeddings, shared_pieces
from jpt.types import Prompt

ROUNDING = 1e-6
"""Directions weaker than this share of the strongest are the rounding of float32 tables."""

Method = Callable[[Prompt], Float32[np.ndarray, "P D"]]
"""Turns a prompt of the source into the values of one of the target."""


def untrained_projector(
    prompts: Mapping[str, Prompt],
    target: Backbone,
    options: ProjectorOptions,
    like: ProjectorCard | None = None,
) -> TrainedProjector:
    """Draws a projector and leaves it as it is. Paper: the random baseline."""
    card = make_card(prompts, target, "untrained", (), options)
    if like is not None:
        new = {"objective": "untrained", "tasks": (), "seed": options.seed}
        card = dataclasses.replace(like, **new, steps=0, score=None)
    size = (card.source_length, card.source_width)
    params = initial_parameters(card.module(), *size, options.seed)
    return TrainedProjector(card, params, "untrained")


def least_squares_projector(source: Backbone, target: Backbone, length: int) -> TrainedProjector:
    """Fits one matrix W to the words that both models know: least ||E_source W - E_target||."""
    # It is applied to a prompt row by row.
    ids, same = shared_pieces(source, target)
    first, second = piece_embeddings(source, ids), piece_embeddings(target, same)
    matrix = np.linalg.lstsq(first, second, rcond=ROUNDING)[0]
    card = ProjectorCard(
        source_backbone=source.name,
        target_backbone=target.name,
        target_layout=target.layout,
        objective="least_squares",
        tasks=(),
        source_length=length,
        source_width=matrix.shape[0],
        target_length=length,
        target_width=matrix.shape[1],
        activation="none",
        layer_norm=False,
        per_token=True,
    )
    row = {
        "kernel": jnp.asarray(matrix, jnp.float32),
        "bias": jnp.zeros(matrix.shape[1], jnp.float32),
    }
    return TrainedProjector(card, {"row": row}, "least_squares")


def relative_method(source: Backbone, target: Backbone, anchors: int = ANCHORS) -> Method:
    """Keeps each row's similarities to words that both models know (relative representation)."""
    # A row's code is its cosine to each of the anchors in the source model. The row of the target
    # is the one whose products with the target's anchors, each of length 1, come nearest to the
    # code (least squares), as long as the target's words are on average. PTfer, whose idea this is,
    # looks for it in gradient steps from random words and chooses the step on validation rows; this
    # form has one solution and sees no rows.
    check_counts(anchors=anchors)
    ids, same = shared_pieces(source, target)
    chosen = choose_anchors(len(ids), anchors)
    first = _unit(piece_embeddings(source, ids[chosen]))  # [A, Ds]
    second = piece_embeddings(target, same[chosen])
    norm = np.linalg.norm(second, axis=1).mean()
    inverse = np.linalg.pinv(_unit(second), rcond=ROUNDING)  # [D, A]

    def project(prompt: Prompt) -> Float32[np.ndarray, "P D"]:
        code = _unit(prompt.values.astype(np.float64)) @ first.T  # [P, A]
        return (norm * _unit(code @ inverse.T)).astype(np.float32)

    return project


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def baseline(
    name: str,
    prompts: Mapping[str, Prompt],
    source: Callable[[], Backbone],
    target: Backbone,
    options: ProjectorOptions,
    anchors: int = ANCHORS,
    like: ProjectorCard | None = None,
) -> Method:
    """Builds a baseline by its name."""
    if name not in BASELINES:
        raise unknown_name("method", name, BASELINES)
    if name == "untrained":
        return untrained_projector(prompts, target, options, like)
    rows = length_of(prompts)
    if options.length != rows:
        raise InputError(
            f"{name} keeps the rows of a prompt, but the source's have {rows} and the target's "
            f"shall have {options.length}; leave length out, or leave the method out"
        )
    if name == "relative":
        return relative_method(source(), target, anchors)
    return least_squares_projector(source(), target, rows)


def checked_method(projector: TrainedProjector, prompts: Mapping[str, Prompt]) -> Method:
    """Gives a projector as a method after a check of every prompt that it shall read."""
    for name, prompt in prompts.items():
        check_source(projector.card, prompt, f"prompt {name}")
    return partial(TrainedProjector.__call__, projector)
