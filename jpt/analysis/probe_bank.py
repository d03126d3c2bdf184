"""The neurons of rows of text behind each prompt of a bank: compiled once, read in pieces.

A piece is some prompts times some rows, as many as a memory budget holds; pieces change speed and
memory, never a number (beyond the rounding of float32).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Float64, Int
from tqdm import tqdm

from jpt.analysis.kernel_alignment import align_kernels, row_kernels
from jpt.analysis.probe_options import ANSWER, START, ProbeOptions
from jpt.analysis.probe_text import ProbeInput, position_weights
from jpt.backbones.registry import Backbone
from jpt.data.batches import evaluation_batches
from jpt.mesh import fetch, own_rows, place, place_batch, prompt_sharding
from jpt.types import Parameters

CKA_ROWS = 128
"""The most rows for which CKA is computed: it keeps rows x rows numbers a prompt and layer."""


@dataclass(frozen=True)
class Means:
    """What is kept of the neurons of all rows."""

    values: Float32[np.ndarray, "K L F"]  # means over the rows
    rates: Float32[np.ndarray, "K L F"]  # shares of the rows in which a neuron is above 0
    # how alike the rows look behind each two prompts, in each layer; None where it was not asked
    # for, or there are too few or too many rows
    cka: Float64[np.ndarray, "L K K"] | None


class Piece(NamedTuple):
    """How many prompts and rows are read at once."""

    prompts: int
    rows: int


def probe_rows(
    backbone: Backbone,
    bank: Float32[np.ndarray, "K P D"],
    given: ProbeInput,
    options: ProbeOptions,
    *,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Means:
    """Reads all rows behind all prompts."""
    rows, count = given.split.n_rows, len(bank)
    piece = plan_pieces(backbone, bank.shape[:2], given, options, mesh)
    with_cka = options.probe != START and 2 <= rows <= CKA_ROWS
    values, rates = np.zeros((2, count, *neuron_shape(backbone, options.stack)))
    kernels = np.zeros((values.shape[1], count, rows**2 if with_cka else 0))
    with tqdm(total=count * rows, desc="rows", disable=not progress) as bar:
        for start in range(0, count, piece.prompts):
            some, held = slice(start, min(start + piece.prompts, count)), []
            prompts = _filled(bank[some], piece.prompts)
            reading = (prompts, given, piece.rows, options.stack, mesh)
            for neurons, active in _read_rows(backbone, *reading):
                neurons, active = neurons[: some.stop - start], active[: some.stop - start]
                values[some] += neurons.sum(2, dtype=np.float64)
                rates[some] += active.sum(2, dtype=np.float64)
                held += [neurons] if with_cka else []
                bar.update(len(neurons) * neurons.shape[2])
            if with_cka:
                kernels[:, some] = row_kernels(np.concatenate(held, axis=2))
    means = [(sums / rows).astype(np.float32) for sums in (values, rates)]
    return Means(*means, align_kernels(kernels) if with_cka else None)


def _read_rows(
    backbone: Backbone,
    bank: Float32[np.ndarray, "K P D"],
    given: ProbeInput,
    batch_rows: int,
    stack: str | None,
    mesh: Mesh | None,
) -> Iterator[tuple[Float32[np.ndarray, "K L B F"], Float[np.ndarray, "K L B F"]]]:
    """Values and shares of activated tokens of the rows, some rows at a time."""
    module = backbone.module.clone(dropout_rate=0.0)
    prompts = jnp.asarray(bank) if mesh is None else place(bank, prompt_sharding(mesh))
    options = {"first_position": given.first_position, "stack": stack}
    own = None if mesh is None else own_rows(mesh, batch_rows)
    batches = evaluation_batches(given.split, batch_rows, given.max_tokens, backbone.pad_id, own)
    for rows, batch in batches:
        weights = None
        if given.positions != ANSWER:
            weights = position_weights(given.positions, batch.lengths, batch.tokens.shape[1])
        inputs = (batch.tokens, batch.lengths, weights)
        if mesh is not None:
            inputs = place_batch(inputs, mesh, batch_rows)
        values, active = fetch(probe_bank(module, backbone.params, prompts, *inputs, **options))
        values = values[:, :, : len(rows)]
        yield values, values > 0 if active is None else active[:, :, : len(rows)]


@partial(jax.jit, static_argnames=("module", "first_position", "stack"))
def probe_bank(
    module: nn.Module,
    params: Parameters,
    bank: Float[Array, "K P D"],
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    weights: Float[Array, "B T"] | None = None,
    first_position: int = 0,
    stack: str | None = None,
) -> tuple[Float[Array, "K L B F"], Float[Array, "K L B F"] | None]:
    """Reads a batch behind every prompt of a bank."""
    # Only encoders number their text apart from the prompt, only T5 has two stacks.
    options: dict[str, Any] = {"first_position": first_position} if first_position else {}
    options |= {"neuron_stack": stack} if stack else {}

    def probe(prompt: Float[Array, "P D"]) -> tuple[Array, Array | None]:
        neurons = module.apply(
            {"params": params},
            tokens,
            lengths,
            prompt,
            label_ids=jnp.zeros(1, jnp.int32),
            capture_neurons=True,
            every_position=weights is not None,
            **options,
        ).neurons.astype(jnp.float32)
        if weights is None:
            return neurons, None
        text = neurons[:, :, neurons.shape[2] - tokens.shape[1] :]  # [L, B, T, F]
        return _weighted(text, weights), _weighted((text > 0).astype(jnp.float32), weights)

    return jax.vmap(probe)(bank)


def _weighted(
    neurons: Float[Array, "L B T F"], weights: Float[Array, "B T"]
) -> Float[Array, "L B F"]:
    return jnp.einsum("lbtf,bt->lbf", neurons, weights, precision=jax.lax.Precision.HIGHEST)


def neuron_shape(backbone: Backbone, stack: str | None) -> tuple[int, int]:
    """Says how many layers and neurons are read."""
    config = backbone.config
    return config.encoder_layers if stack == "encoder" else config.layers, config.neurons


def plan_pieces(
    backbone: Backbone,
    shape: tuple[int, int],
    given: ProbeInput,
    options: ProbeOptions,
    mesh: Mesh | None = None,
) -> Piece:
    """Chooses how many prompts and rows are read at once."""
    parts, shares = (1, 1) if mesh is None else (mesh.shape["prompt"], mesh.shape["data"])
    (prompts, prompt_rows), rows = shape, math.ceil(given.split.n_rows / shares)
    config, (layers, neurons) = backbone.config, neuron_shape(backbone, options.stack)
    places = prompt_rows + int(given.split.lengths.max()) + 1
    kept = layers * neurons * (1 if given.positions == ANSWER else places)
    # One layer's states, neurons and attention at a time; in float32, rounded up.
    passing = places * (6 * config.width + neurons) + config.heads * places**2
    fitting = max(1, int(options.chunk_mb * 2**20 / (4 * (kept + passing))))
    if fitting < rows:
        return Piece(parts, fitting * shares)
    # Pieces of like size: the last one is filled up.
    turns = math.ceil(prompts / parts)
    count = min(turns, fitting // rows)
    return Piece(parts * math.ceil(turns / math.ceil(turns / count)), rows * shares)


def _filled(bank: Float32[np.ndarray, "k P D"], count: int) -> Float32[np.ndarray, "K P D"]:
    """Repeats the last prompt, so that all pieces have one shape and are compiled once."""
    return np.concatenate([bank, np.repeat(bank[-1:], count - len(bank), axis=0)])
