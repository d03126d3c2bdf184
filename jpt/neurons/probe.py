"""Read the activations of feed-forward neurons under prompts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
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

from jpt.backbones.registry import Backbone, check_lengths, load_backbone
from jpt.config import (
    AT_ANSWER,
    OVER_TEXT,
    PROBE_START,
    PROBE_TEXT,
    Positions,
    ProbeOptions,
)
from jpt.data.batches import evaluation_batches, shuffled
from jpt.data.encode import EncodedSplit, encode_split, join_rows
from jpt.data.rows import Row, read_rows, read_texts
from jpt.errors import InputError
from jpt.parallel import fetch, local_rows, make_mesh, place, place_batch, prompt_sharding
from jpt.prompts.store import Prompts, check_prompt, load_runs, stack_prompts
from jpt.results.prompt_table import write_activations
from jpt.tasks.task import Task
from jpt.tuning.bound_task import (
    in_task_of,
    inherited,
    resolve_max_tokens,
    resolve_task,
    scoring_notes,
    task_as_tuned,
    weights_of,
)
from jpt.tuning.losses import neuron_shape
from jpt.types import Activations, Parameters, Prompt, PromptCard

# --- Linear CKA (Kornblith et al., 2019)
# X_a [rows, F]: centred activations of a layer with prompt a; K_a = X_a X_a'; CKA(a, b) =
# <K_a, K_b> / (|K_a| |K_b|). Kernels are rows x rows, so that memory is K x L x rows^2 whatever F.

# Variation of float32 activations below this share of their squares is rounding.
_ROUNDING = 1e-11


def row_kernels(
    neurons: Float32[np.ndarray, "K L N F"],
) -> Float64[np.ndarray, "L K N*N"]:
    """Return the kernels of centred activations."""
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
    """Return the CKA of every pair of prompts."""
    products = np.einsum("kif,kjf->kij", kernels, kernels, optimize=True)
    products = np.triu(products) + np.triu(products, 1).transpose(0, 2, 1)
    squares = np.einsum("kii->ki", products)
    norms = np.sqrt(squares[:, :, None] * squares[:, None])
    found = np.where(norms > 0, products / np.where(norms > 0, norms, 1), np.nan)
    diagonal = np.arange(found.shape[1])
    found[:, diagonal, diagonal] = np.where(squares > 0, 1.0, np.nan)
    return found


# --- Probe inputs

ROWS = 64  # default number of rows of a text probe
STREAM = crc32(b"probe/rows")


@dataclass(frozen=True)
class ProbeInput:
    """Input that is read with every prompt."""

    split: EncodedSplit
    max_tokens: int
    positions: Positions  # ``"answer"``, ``"text"`` or token numbers
    record: dict[str, Any]  # for the file of activations
    first_position: int = 0  # position of the text's first token


def start_token_input(backbone: Backbone, first_position: int = 0) -> ProbeInput:
    """Return the input of the paper's probe: the start token."""
    tokens, offsets = join_rows([[backbone.start_id]])
    split = EncodedSplit(tokens, offsets, np.zeros(1, np.int32), 0)
    return ProbeInput(split, 1, AT_ANSWER, {"kind": PROBE_START}, first_position)


def text_input(
    backbone: Backbone,
    options: ProbeOptions,
    prompt_rows: int,
    first_position: int = 0,
    cards: Mapping[str, PromptCard] | None = None,
) -> ProbeInput:
    """Encode a sample of rows of a task; labels are not used."""
    task, token_positions = resolve_task(options.task, options.data), options.token_positions
    cards = cards or {}
    in_task = in_task_of(task, cards)
    notes = scoring_notes(cards, task, options, weights_of(backbone), in_task)
    scoring = None if in_task is None else in_task.scoring
    if scoring is not None:
        task = task_as_tuned(task, backbone.layout, backbone.model_type, scoring, options)
    *_, tokens = inherited(options, scoring)  # no answer is read, so that none takes positions
    tokens = resolve_max_tokens(tokens, backbone, task, prompt_rows, first_position)
    rows = _sample(_read(task, options.split), options, f"{task.name} {options.split}")
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
        **({"notes": notes} if notes else {}),
    }
    return ProbeInput(encoded, tokens, token_positions, record, first_position)


def position_weights(
    positions: Positions, lengths: Int[np.ndarray, "B"], width: int
) -> Float32[np.ndarray, "B T"]:
    """Return the weight of each token of a batch in the mean over positions."""
    token_positions, lengths = np.arange(width), np.asarray(lengths)[:, None]
    is_text = token_positions < lengths
    chosen = is_text
    if positions != OVER_TEXT:
        numbers = np.array(positions)
        targets = np.where(numbers >= 0, numbers, lengths + numbers)  # [B, how many]
        chosen = is_text & (token_positions == targets[:, :, None]).any(1)
    return (chosen / np.maximum(chosen.sum(1, keepdims=True), 1)).astype(np.float32)


def _with_positions(split: EncodedSplit, positions: Positions) -> EncodedSplit:
    """Return the rows that have at least one of the positions."""
    if positions in (AT_ANSWER, OVER_TEXT):
        return split
    lengths = split.lengths
    has = position_weights(positions, lengths, int(lengths.max())).any(axis=1)
    if not has.any():
        raise InputError(
            f"positions: expected one within {lengths.max()} tokens, the longest of {split.n_rows}"
            f" rows, got {','.join(map(str, positions))}; give 0 to {lengths.max() - 1}, or"
            " negative numbers from the end"
        )
    ids = [split.tokens[a:b] for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)]
    tokens, offsets = join_rows([row for row, keep in zip(ids, has, strict=True) if keep])
    return dataclasses.replace(
        split, tokens=tokens, offsets=offsets, labels=split.labels[has], answers=None
    )


def _read(task: Task, split: str) -> list[Row]:
    return read_rows(task, split) if task.is_generative else read_texts(task, split)


def _sample(rows: Sequence[Row], options: ProbeOptions, where: str) -> list[Row]:
    """Return a random sample of rows, in their original order."""
    if options.rows is not None and options.rows > len(rows):
        raise InputError(
            f"rows: expected at most {len(rows)}, as {where} has, got {options.rows}; give fewer"
        )
    chosen = shuffled(options.seed, STREAM, 0, len(rows))[: options.rows or ROWS]
    return [rows[number] for number in sorted(chosen.tolist())]


# --- Probing a bank of prompts in chunks
# A chunk is a number of prompts times a number of rows that fits the memory budget. Its size
# changes no result beyond float32 rounding.

CKA_ROWS = 128  # limit of CKA, which keeps rows x rows numbers per prompt and layer


@dataclass(frozen=True)
class NeuronMeans:
    """Means of neurons over rows."""

    values: Float32[np.ndarray, "K L F"]  # mean activation
    rates: Float32[np.ndarray, "K L F"]  # share of rows in which a neuron is above 0
    cka: Float64[np.ndarray, "L K K"] | None  # None without a text probe of 2 to `CKA_ROWS` rows


class Chunk(NamedTuple):
    """Numbers of prompts and rows read at once."""

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
    """Read the neurons of all rows with all prompts."""
    rows, count = given.split.n_rows, len(bank)
    chunk = plan_chunk(backbone, bank.shape[:2], given, options, mesh)
    with_cka = options.probe != PROBE_START and 2 <= rows <= CKA_ROWS
    values, rates = np.zeros((2, count, *neuron_shape(backbone, options.stack)))
    kernels = np.zeros((values.shape[1], count, rows**2 if with_cka else 0))
    with tqdm(total=count * rows, desc="rows", disable=not progress) as bar:
        for start in range(0, count, chunk.prompts):
            some, kept = slice(start, min(start + chunk.prompts, count)), []
            prompts = _pad(bank[some], chunk.prompts)
            reading = (prompts, given, chunk.rows, options.stack, mesh)
            for neurons, active in _read_rows(backbone, *reading):
                neurons, active = neurons[: some.stop - start], active[: some.stop - start]
                values[some] += neurons.sum(2, dtype=np.float64)
                rates[some] += active.sum(2, dtype=np.float64)
                kept += [neurons] if with_cka else []
                bar.update(len(neurons) * neurons.shape[2])
            if with_cka:
                kernels[:, some] = row_kernels(np.concatenate(kept, axis=2))
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
    """Yield activations and shares of activated tokens, a batch of rows at a time."""
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
    """Read the neurons of a batch with every prompt of a bank."""
    # Only encoders have text positions independent of the prompt; only T5 has two stacks.
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


def plan_chunk(
    backbone: Backbone,
    shape: tuple[int, int],
    given: ProbeInput,
    options: ProbeOptions,
    mesh: Mesh | None = None,
) -> Chunk:
    """Return the largest chunk that fits `chunk_mb`."""
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
    # Chunks of equal size, so that the last one needs little padding.
    steps = math.ceil(prompts / parts)
    count = min(steps, fitting // rows)
    return Chunk(parts * math.ceil(steps / math.ceil(steps / count)), rows * shares)


def _pad(bank: Float32[np.ndarray, "k P D"], count: int) -> Float32[np.ndarray, "K P D"]:
    """Repeat the last prompt, so that all chunks have one shape and compile once."""
    return np.concatenate([bank, np.repeat(bank[-1:], count - len(bank), axis=0)])


# --- Activated neurons (paper, section 5)


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
    """Read the feed-forward neurons of all layers with each prompt, in one compiled call.

    The paper's probe, ``probe="start"``: the input is the prompt and the start token, without
    text; neurons are read at the answer position, after the non-linearity. In T5 that is the first
    step of the decoder, as in the paper, or the start token of the encoder.

    ``probe="text"`` reads rows of a task with each prompt: ``rates`` is the share of rows in which
    a neuron is above 0, ``values`` the mean activation, and ``cka`` (for 2 to 128 rows) the linear
    CKA between prompts. T5's encoder is read at the first token of the text.

    Args:
        prompts: Folder of prompts, or prompts by name; all of one backbone and length. Seeds are
            named ``NAME/seed-S``.
        out: File to write, usually ``neurons.npz``.
        backbone: Backbone to use instead of the one in the cards; the width is checked.
        dtype: Type of weights and matrix products.
        mesh: Devices by axis, ``prompt`` and ``data``; defaults to those of a loaded backbone.
        progress: Show a progress bar on stderr.
        **options: Fields of :class:`jpt.config.ProbeOptions`: ``probe``, ``task``,
            ``split``, ``rows``, ``data``, ``positions``, ``stack``, ``chunk_mb`` and others.

    Returns:
        The :class:`jpt.types.Activations` [K, L, F], prompts sorted by name.

    Raises:
        InputError: If prompts do not fit each other or the backbone, data is broken, or ``rows``
            or ``positions`` exceed the data.

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
    given = build_probe_input(model, loaded, chosen)
    bank = stack_prompts(loaded)
    means = probe_rows(model, bank, given, chosen, mesh=devices, progress=progress)
    record = given.record | ({"stack": chosen.stack} if chosen.stack else {})
    of_text = (None, None) if chosen.probe == PROBE_START else (means.rates, means.cka)
    found = Activations(tuple(loaded), means.values, *of_text, record)
    if out is not None:
        write_activations(out, found)
    return found


def describe_activations(found: Activations) -> tuple[dict[str, Any], str]:
    """Return a summary of activations as JSON and as text."""
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
        f" {100 * active.mean():.1f} % activated (above 0)"
    )
    if found.rates is not None:
        probe = found.probe
        text += f"\nmeans over {probe['rows']} rows of {probe['task']} {probe['split']}"
        text += "" if found.cka is not None else f" (no CKA: needs 2 to {CKA_ROWS} rows)"
        text += "".join(f"\nwarning: {note}" for note in probe.get("notes", ()))
    return record, text


def _on_mesh(
    backbone: Backbone | str | Path, dtype: str, mesh: str | None
) -> tuple[Backbone, Mesh | None]:
    """Return the model on the mesh; a loaded model without a mesh stays where it is."""
    if isinstance(backbone, Backbone):
        devices = None if mesh is None else make_mesh(mesh)
        return (backbone if devices is None else backbone.on_mesh(devices)), devices
    devices = make_mesh(mesh)
    return load_backbone(backbone, dtype=dtype, mesh=devices), devices


def build_probe_input(
    model: Backbone, prompts: Mapping[str, Prompt], options: ProbeOptions
) -> ProbeInput:
    """Return the input of a probe, checked against the model."""
    prompt = next(iter(prompts.values()))
    first_position, stack = prompt.card.first_position or 0, options.stack
    check_lengths(model, len(prompt.values), 1, first_position)
    neuron_shape(model, stack)  # checks the stack
    if options.probe == PROBE_START:
        return start_token_input(model, first_position)
    if options.positions != AT_ANSWER and model.layout == "encoder_decoder" and stack != "encoder":
        raise InputError(
            f"positions: expected {AT_ANSWER} for the decoder of {model.name}, which has no text"
            f" tokens, got {options.positions!r}; set stack to encoder, or positions to {AT_ANSWER}"
        )
    cards = {name: each.card for name, each in prompts.items()}
    return text_input(model, options, len(prompt.values), first_position, cards)
