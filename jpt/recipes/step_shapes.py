"""The train step of a model of which nothing is there but its config.json: shapes for arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from jpt.backbones.families import find_family
from jpt.backbones.registry import Backbone
from jpt.config import TuneOptions
from jpt.errors import InputError
from jpt.files.reading import read_json
from jpt.files.tokenizer import SpecialIds
from jpt.mesh import batch_sharding, parameter_shardings, replicated
from jpt.tuning.losses import Answer
from jpt.tuning.own_loop import step_of
from jpt.tuning.step import TuneState, init_state, prompt_optimizer
from jpt.types import Batch, Parameters

LABEL_WORDS = 2


@dataclass(frozen=True)
class StepShapes:
    """The arguments of a train step, as shapes with places."""

    params: Parameters  # the weights
    state: TuneState  # step number, prompt and optimizer state
    batch: Batch  # the rows
    answer: Answer  # the label words
    # dimensions of weights that stay whole because their axis does not divide them
    notes: tuple[str, ...]


def shape_backbone(path: str | Path, options: TuneOptions) -> Backbone:
    """Builds a backbone whose weights are shapes only."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}; expected an object of fields")
    family = find_family(content, str(path))
    try:
        config = family.config(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    dtype = jnp.dtype(options.dtype)
    # A config names no mask; which word stands there changes no size.
    ids = SpecialIds(cls=None, sep=None, mask=None, pad=None, unk=None)
    module = family.module(config, ids, dtype, 0.0, options.remat)
    return Backbone(
        name=str(path),
        family=family,
        config=config,
        module=module,
        params=_parameter_shapes(module, dtype, path),
        tokenizer=None,  # type: ignore[arg-type]
        fingerprint="",
        defaults=family.choices(config),
    )


def _parameter_shapes(module: nn.Module, dtype: jnp.dtype, path: str | Path) -> Parameters:
    tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    try:
        shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, lengths)["params"]
    except (OverflowError, MemoryError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{path}: no model of these sizes can be built ({reason}); check them"
        ) from None
    return jax.tree.map(lambda leaf: leaf.update(dtype=dtype), shapes)


def step_shapes(model: Backbone, options: TuneOptions, mesh: Mesh) -> StepShapes:
    """Says what a train step is given, and where each array lies, as `jpt tune` places them."""
    rows = batch_sharding(mesh, options.batch_size)
    shardings, notes = parameter_shardings(model.params, model.family.weights.partition, mesh)

    def place(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return leaf.update(sharding=sharding)

    def row(dtype: Any, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((options.batch_size, *more), dtype, sharding=rows)

    optimizer = prompt_optimizer(options.learning_rate)
    prompt = jax.ShapeDtypeStruct((options.length, model.config.width), jnp.float32)
    state = jax.eval_shape(lambda prompt: init_state(prompt, optimizer), prompt)
    return StepShapes(
        params=jax.tree.map(place, model.params, shardings),
        state=jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), state),
        batch=Batch(
            tokens=row(jnp.int32, options.max_tokens),
            lengths=row(jnp.int32),
            labels=row(jnp.int32),
            weights=row(jnp.float32),
        ),
        answer=Answer(jax.ShapeDtypeStruct((LABEL_WORDS,), jnp.int32)),
        notes=tuple(notes),
    )


def lower_step(model: Backbone, options: TuneOptions, shapes: StepShapes) -> jax.stages.Lowered:
    """Traces the very step that `jpt tune` runs."""
    step = step_of(model, options, shapes.batch.tokens.sharding.mesh)
    return step.lower(shapes.params, shapes.state, shapes.batch, shapes.answer)
