"""Read the activations of feed-forward neurons under prompts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Float64, Int
from tqdm import tqdm

from jpt.backbones.registry import Backbone, check_lengths, load_backbone, longest_text
from jpt.config import (
    AT_ANSWER,
    OVER_TEXT,
    PAPER_CHOICES,
    PROBE_START,
    PROBE_TEXT,
    Positions,
    ProbeOptions,
    check_choice,
)
from jpt.data.batches import evaluation_batches, shuffled
from jpt.data.encode import EncodedSplit, encode_split, join_rows
from jpt.data.rows import Row, attach_data, read_rows, read_texts
from jpt.errors import InputError
from jpt.parallel import fetch, local_rows, make_mesh, place, place_batch, prompt_sharding
from jpt.prompts.store import Prompts, check_prompt, load_runs, stack_prompts
from jpt.results.prompt_table import write_activations
from jpt.tasks.catalog import load_task
from jpt.tasks.task import Task
from jpt.types import Activations, Data, Parameters, Prompt

# --- Linear CKA: how alike two prompts make a model see the same rows of text, in each layer
# With X_a [rows, F] the activations of a layer behind prompt a, each column minus its mean, and the
# kernel K_a = X_a X_a', CKA(a, b) = <K_a, K_b> / (|K_a| |K_b|), as Kornblith et al. (2019) define
# it for linear kernels. Kernels are rows x rows however many neurons a layer has, so that neither
# the activations of all prompts nor F x F products are ever held: K x L x rows^2 numbers are.

# Activations are float32: variation below this share of their squares is rounding.
_ROUNDING = 1e-11


def row_kernels(
    neurons: Float32[np.ndarray, "K L N F"],
) -> Float64[np.ndarray, "L K N*N"]:
    """Multiplies the centred activations of every row with those of every other."""
    prompts, layers, rows, _ = neurons.shape
    kernels = np.zeros((layers, prompts, rows * rows))
    for prompt in range(prompts):
        for layer in range(layers):
            values = neurons[prompt, layer].astype(np.float64)
            size = (values**2).sum()
            values -= values.mean(0)
            if (values**2).sum() > _ROUNDING * size:
                kernels[layer, prompt] = (values @ values.T).ravel()
    return kernels


def align_kernels(kernels: Float64[np.ndarray, "L K N*N"]) -> Float64[np.ndarray, "L K K"]:
    """Computes the CKA of every two prompts."""
    products = np.einsum("kif,kjf->kij", kernels, kernels, optimize=True)
    products = np.triu(products) + np.triu(products, 1).transpose(0, 2, 1)
    squares = np.einsum("kii->ki", products)
    norms = np.sqrt(squares[:, :, None] * squares[:, None])
    found = np.where(norms > 0, products / np.where(norms > 0, norms, 1), np.nan)
    token_positions = np.arange(found.shape[1])
    found[:, token_positions, token_positions] = np.where(squares > 0, 1.0, np.nan)
    return found


# --- What a probe reads behind each prompt, and where


# --- Which rows of a task a probe on text reads, and at which of their tokens

ROWS = 64
"""Rows of a probe on text, where nothing else is said."""

STREAM = crc32(b"probe/rows")


@dataclass(frozen=True)
class ProbeInput:
    """What every prompt of a bank is put in front of."""

    split: EncodedSplit  # the encoded rows
    max_tokens: int  # the length they were encoded with
    positions: Positions  # ``"answer"``, ``"text"`` or numbers of tokens
    record: dict[str, Any]  # what was read, for the file of activations
    first_position: int = 0  # position of the text's first token


def start_token_input(backbone: Backbone, first_position: int = 0) -> ProbeInput:
    """Gives the paper's probe: the start token alone."""
    tokens, offsets = join_rows([[backbone.start_id]])
    split = EncodedSplit(tokens, offsets, np.zeros(1, np.int32), 0)
    return ProbeInput(split, 1, AT_ANSWER, {"kind": PROBE_START}, first_position)


def text_input(
    backbone: Backbone, options: ProbeOptions, prompt_rows: int, first_position: int = 0
) -> ProbeInput:
    """Encodes some rows of a task; their labels are not looked at."""
    task, token_positions = _as_task(options.task, options.data), options.token_positions
    tokens = _text_tokens(options.max_tokens, backbone, task, prompt_rows, first_position)
    rows = _some(_read(task, options.split), options, f"{task.name} {options.split}")
    encoded = encode_split(rows, task, backbone.tokenizer, tokens, backbone.layout)
    encoded = _with_positions(encoded, token_positions)
    record = {
        "kind": PROBE_TEXT,
        "task": task.name,
        "split": options.split,
        "rows": encoded.n_rows,
        "seed": options.seed,
        "max_tokens": tokens,
        "positions": token_positions if isinstance(token_positions, str) else list(token_positions),
    }
    return ProbeInput(encoded, tokens, token_positions, record, first_position)


def position_weights(
    positions: Positions, lengths: Int[np.ndarray, "B"], width: int
) -> Float32[np.ndarray, "B T"]:
    """Says how much each token of a batch counts."""
    token_positions, lengths = np.arange(width), np.asarray(lengths)[:, None]
    is_text = token_positions < lengths
    chosen = is_text
    if positions != OVER_TEXT:
        numbers = np.array(positions)
        targets = np.where(numbers >= 0, numbers, lengths + numbers)  # [B, how many]
        chosen = is_text & (token_positions == targets[:, :, None]).any(1)
    return (chosen / np.maximum(chosen.sum(1, keepdims=True), 1)).astype(np.float32)


def _with_positions(split: EncodedSplit, positions: Positions) -> EncodedSplit:
    """The rows that have at least one of the tokens."""
    if positions in (AT_ANSWER, OVER_TEXT):
        return split
    lengths = split.lengths
    has = position_weights(positions, lengths, int(lengths.max())).any(axis=1)
    if not has.any():
        raise InputError(
            f"positions is {','.join(map(str, positions))}, but the longest of {split.n_rows} rows"
            f" has {lengths.max()} tokens; choose from 0 to {lengths.max() - 1}, or from the end"
        )
    ids = [split.tokens[a:b] for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)]
    tokens, offsets = join_rows([row for row, keep in zip(ids, has, strict=True) if keep])
    return dataclasses.replace(
        split, tokens=tokens, offsets=offsets, labels=split.labels[has], answers=None
    )


def _as_task(task: Task | str | Path, data: Data | None) -> Task:
    if isinstance(task, Task):
        return task if data is None else attach_data(task, data)
    if data is None or isinstance(data, str | Path):
        return load_task(task, data)
    return attach_data(load_task(task), data)


def _read(task: Task, split: str) -> list[Row]:
    return read_rows(task, split) if task.is_generative else read_texts(task, split)


def _some(rows: Sequence[Row], options: ProbeOptions, where: str) -> list[Row]:
    """Rows by chance, in the order in which they stood."""
    if options.rows is not None and options.rows > len(rows):
        raise InputError(
            f"rows is {options.rows}, but {where} has {len(rows)} rows; ask for {len(rows)} or"
            " fewer"
        )
    chosen = shuffled(options.seed, STREAM, 0, len(rows))[: options.rows or ROWS]
    return [rows[number] for number in sorted(chosen.tolist())]


def _text_tokens(
    max_tokens: int | None, backbone: Backbone, task: Task, prompt_rows: int, first_position: int
) -> int:
    """The longest text that a run of this task on this backbone would read."""
    answer = task.answer_tokens or 0
    if max_tokens is None:
        local = {} if task.max_tokens is None else {"max_tokens": task.max_tokens}
        choice = {**PAPER_CHOICES, **local, **backbone.defaults}["max_tokens"]
        most = longest_text(backbone, prompt_rows, first_position, answer)
        max_tokens = max(1, min(choice, most))
    check_lengths(backbone, prompt_rows, max_tokens, first_position, answer)
    return max_tokens


# --- The neurons of rows of text behind each prompt of a bank: compiled once, read in pieces
# A piece is some prompts times some rows, as many as a memory budget holds; pieces change speed and
# memory, never a number (beyond the rounding of float32).

CKA_ROWS = 128
"""The most rows for which CKA is computed: it keeps rows x rows numbers a prompt and layer."""


@dataclass(frozen=True)
class NeuronMeans:
    """What is kept of the neurons of all rows."""

    values: Float32[np.ndarray, "K L F"]  # means over the rows
    rates: Float32[np.ndarray, "K L F"]  # shares of the rows in which a neuron is above 0
    # how alike the rows look behind each two prompts, in each layer; None where it was not asked
    # for, or there are too few or too many rows
    cka: Float64[np.ndarray, "L K K"] | None


class Chunk(NamedTuple):
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
) -> NeuronMeans:
    """Reads all rows behind all prompts."""
    rows, count = given.split.n_rows, len(bank)
    chunk = plan_chunk(backbone, bank.shape[:2], given, options, mesh)
    with_cka = options.probe != PROBE_START and 2 <= rows <= CKA_ROWS
    values, rates = np.zeros((2, count, *neuron_shape(backbone, options.stack)))
    kernels = np.zeros((values.shape[1], count, rows**2 if with_cka else 0))
    with tqdm(total=count * rows, desc="rows", disable=not progress) as bar:
        for start in range(0, count, chunk.prompts):
            some, held = slice(start, min(start + chunk.prompts, count)), []
            prompts = _filled(bank[some], chunk.prompts)
            reading = (prompts, given, chunk.rows, options.stack, mesh)
            for neurons, active in _read_rows(backbone, *reading):
                neurons, active = neurons[: some.stop - start], active[: some.stop - start]
                values[some] += neurons.sum(2, dtype=np.float64)
                rates[some] += active.sum(2, dtype=np.float64)
                held += [neurons] if with_cka else []
                bar.update(len(neurons) * neurons.shape[2])
            if with_cka:
                kernels[:, some] = row_kernels(np.concatenate(held, axis=2))
    means = [(sums / rows).astype(np.float32) for sums in (values, rates)]
    return NeuronMeans(*means, align_kernels(kernels) if with_cka else None)


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
    local = None if mesh is None else local_rows(mesh, batch_rows)
    batches = evaluation_batches(given.split, batch_rows, given.max_tokens, backbone.pad_id, local)
    for rows, batch in batches:
        weights = None
        if given.positions != AT_ANSWER:
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


def plan_chunk(
    backbone: Backbone,
    shape: tuple[int, int],
    given: ProbeInput,
    options: ProbeOptions,
    mesh: Mesh | None = None,
) -> Chunk:
    """Chooses how many prompts and rows are read at once."""
    parts, shares = (1, 1) if mesh is None else (mesh.shape["prompt"], mesh.shape["data"])
    (prompts, prompt_rows), rows = shape, math.ceil(given.split.n_rows / shares)
    config, (layers, neurons) = backbone.config, neuron_shape(backbone, options.stack)
    token_positions = prompt_rows + int(given.split.lengths.max()) + 1
    kept = layers * neurons * (1 if given.positions == AT_ANSWER else token_positions)
    # One layer's states, neurons and attention at a time; in float32, rounded up.
    passing = token_positions * (6 * config.width + neurons) + config.heads * token_positions**2
    fitting = max(1, int(options.chunk_mb * 2**20 / (4 * (kept + passing))))
    if fitting < rows:
        return Chunk(parts, fitting * shares)
    # Pieces of like size: the last one is filled up.
    turns = math.ceil(prompts / parts)
    count = min(turns, fitting // rows)
    return Chunk(parts * math.ceil(turns / math.ceil(turns / count)), rows * shares)


def _filled(bank: Float32[np.ndarray, "k P D"], count: int) -> Float32[np.ndarray, "K P D"]:
    """Repeats the last prompt, so that all pieces have one shape and are compiled once."""
    return np.concatenate([bank, np.repeat(bank[-1:], count - len(bank), axis=0)])


# --- The neurons of the feed-forward layers that a prompt activates, for many prompts at once

STACKS = ("decoder", "encoder")


def activated_neurons(
    prompts: Prompts,
    out: str | Path | None = None,
    *,
    backbone: Backbone | str | Path | None = None,
    dtype: str = "float32",
    mesh: str | None = None,
    progress: bool = False,
    **options: Any,
) -> Activations:
    """Reads the feed-forward neurons of all layers behind each prompt, in one compiled call.

    The paper's probe, ``probe="start"``: the input is the prompt and the start token, without any
    text, and the neurons are read where the answer stands, after the non-linearity. In T5 the
    decoder is read at its first step, as in the paper, or the encoder at the start token.

    ``probe="text"`` reads rows of a task behind each prompt: ``rates`` is the share of the rows in
    which a neuron is above 0, ``values`` the mean, and ``cka`` (for 2 to 128 rows) how alike the
    rows' activations are between prompts. The encoder of a T5 is read at the text's first token.

    Args:
        prompts: a folder, or prompts by name; of one backbone and length. Runs are ``NAME/seed-S``.
        out: file to write, by custom ``neurons.npz``.
        backbone: instead of the one that the cards name; the width is checked.
        dtype: of weights and matrix products.
        mesh: devices by axis: prompts go over ``prompt``, rows over ``data``; by default, of a
            loaded backbone those that it lies on.
        progress: whether to show a bar on stderr.
        **options: fields of :class:`jpt.config.ProbeOptions`: ``probe``, ``task``,
            ``split``, ``rows``, ``data``, ``positions``, ``stack``, ``chunk_mb`` and others.

    Returns:
        Activations [K, L, F], the prompts sorted by name.

    Raises:
        InputError: prompts that do not belong together or to the backbone, broken data, more rows
            than there are, or positions that no row has.

    Example:
        >>> import numpy as np
        >>> from jpt.types import PromptCard
        >>> values = np.zeros((20, 128), np.float32)
        >>> prompt = Prompt(values, PromptCard("builtin/bert-small", "builtin/imdb"))
        >>> activated_neurons({"imdb": prompt}).values.shape
        (1, 4, 512)
    """
    chosen, loaded = ProbeOptions(**options), load_runs(prompts)
    first = next(iter(loaded.values()))
    name = backbone if backbone is not None else first.card.backbone
    model, devices = _on_mesh(name, dtype, mesh)
    check_prompt(first, model.name, model.config.width, model.layout, backbone is not None)
    given = _input(model, first, chosen)
    bank = stack_prompts(loaded)
    means = probe_rows(model, bank, given, chosen, mesh=devices, progress=progress)
    record = given.record | ({"stack": chosen.stack} if chosen.stack else {})
    of_text = (None, None) if chosen.probe == PROBE_START else (means.rates, means.cka)
    found = Activations(tuple(loaded), means.values, *of_text, record)
    if out is not None:
        write_activations(out, found)
    return found


def describe_activations(found: Activations) -> tuple[dict[str, Any], str]:
    """Says what was read."""
    active = found.values > 0 if found.rates is None else found.rates
    count, layers, width = found.values.shape
    record = {
        "prompts": list(found.names),
        "layers": layers,
        "neurons": width,
        "share_activated": float(active.mean()),
        "probe": found.probe,
    }
    text = (
        f"{count} prompt{'' if count == 1 else 's'}, {layers} layers of {width} neurons,"
        f" {100 * active.mean():.1f} % of them above 0"
    )
    if found.rates is not None:
        probe = found.probe
        text += f"\nmeans over {probe['rows']} rows of {probe['task']} {probe['split']}"
        text += "" if found.cka is not None else " (no CKA: it needs 2 to 128 rows)"
    return record, text


def _on_mesh(
    backbone: Backbone | str | Path, dtype: str, mesh: str | None
) -> tuple[Backbone, Mesh | None]:
    """The model on the devices that are asked for; without a mesh a loaded one stays."""
    if isinstance(backbone, Backbone):
        devices = None if mesh is None else make_mesh(mesh)
        return (backbone if devices is None else backbone.on_mesh(devices)), devices
    devices = make_mesh(mesh)
    return load_backbone(backbone, dtype=dtype, mesh=devices), devices


def _input(model: Backbone, prompt: Prompt, options: ProbeOptions) -> ProbeInput:
    """What is read behind the prompts, checked against the model."""
    first_position, stack = prompt.card.first_position or 0, options.stack
    check_lengths(model, len(prompt.values), 1, first_position)
    if stack is not None:
        _check_stack(model, stack)
    if options.probe == PROBE_START:
        return start_token_input(model, first_position)
    if options.positions != AT_ANSWER and model.layout == "encoder_decoder" and stack != "encoder":
        raise InputError(
            f"positions is {options.positions!r}, but the decoder of {model.name} stands at no"
            " token of the text; set stack to encoder, or positions to answer"
        )
    return text_input(model, options, len(prompt.values), first_position)


def _check_stack(model: Backbone, stack: str) -> None:
    """Refuses a stack that is not there."""
    check_choice("stack", stack, STACKS)
    if model.layout != "encoder_decoder":
        raise InputError(f"stack is '{stack}', but {model.name} has one stack; leave it out")
