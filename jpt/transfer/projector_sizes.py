"""How large a projector is: what the prompts of both models say, checked against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from jpt.backbones.lengths import check_lengths
from jpt.backbones.registry import Backbone
from jpt.errors import InputError
from jpt.transfer.projector_options import ProjectorOptions
from jpt.transfer.projector_store import ProjectorCard
from jpt.tuning.prepare import as_backbone
from jpt.types import Prompt


def refuse_same_backbone(prompts: Mapping[str, Prompt], target: Backbone | str | Path) -> None:
    """Refuses a projector from a model to itself."""
    name = target.name if isinstance(target, Backbone) else str(target)
    if next(iter(prompts.values())).card.backbone == name:
        raise InputError(
            f"source and target are the same backbone, {name}; a projector goes between two: on "
            "one model a prompt is used as it is, with jpt transfer or jpt warm-start"
        )


def make_card(
    prompts: Mapping[str, Prompt],
    backbone: Backbone,
    objective: str,
    tasks: tuple[str, ...],
    options: ProjectorOptions,
) -> ProjectorCard:
    """Describes a projector that is not trained yet."""
    first = next(iter(prompts.values()))
    return ProjectorCard(
        source_backbone=first.card.backbone,
        target_backbone=backbone.name,
        target_layout=backbone.layout,
        objective=objective,
        tasks=tasks,
        source_length=len(first.values),
        source_width=first.values.shape[1],
        target_length=options.length,
        target_width=backbone.config.width,
        bottleneck=options.bottleneck,
        activation=options.activation,
        layer_norm=options.layer_norm,
        rescale_to=mean_norm(backbone) if options.rescale else None,
        per_token=options.per_token,
        seed=options.seed,
    )


def mean_norm(backbone: Backbone) -> float:
    """Gives the mean Euclidean norm of a model's word embeddings."""
    words = backbone.params["embeddings"]["word"].astype(jnp.float32)
    return float(jnp.linalg.norm(words, axis=-1).mean())


def with_backbone(
    prompts: Mapping[str, Prompt],
    target: Backbone | str | Path,
    options: ProjectorOptions,
    objective: str,
    length: int | None,
    mesh: Mesh,
) -> tuple[ProjectorOptions, Backbone]:
    """Settles length and learning rate, and loads the target."""
    rows = length_of(prompts)
    options = dataclasses.replace(options, length=length or rows)
    if options.per_token and options.length != rows:
        raise InputError(
            f"a per-token projector maps row by row, but the source's prompts have {rows} rows and "
            f"the target's shall have {options.length}; leave per_token out"
        )
    backbone = as_backbone(target, options.dtype, mesh=mesh, remat=options.remat)
    check_lengths(backbone, options.length, 1)
    return options.with_rate(objective, backbone.defaults), backbone


def check_targets(targets: Mapping[str, Prompt], backbone: Backbone) -> None:
    """Refuses own prompts that are of another model."""
    first = next(iter(targets.values()))
    if first.card.backbone != backbone.name or first.values.shape[1] != backbone.config.width:
        raise InputError(
            f"the target's own prompts were tuned on {first.card.backbone} (width "
            f"{first.values.shape[1]}), and the target is {backbone.name} (width "
            f"{backbone.config.width}); give prompts tuned on the target"
        )


def length_of(prompts: Mapping[str, Prompt]) -> int:
    """Gives the number of rows that all of some prompts have."""
    return len(next(iter(prompts.values())).values)
