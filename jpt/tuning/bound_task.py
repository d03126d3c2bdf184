"""A task bound to a backbone: label token ids, encoded splits, scores."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from scipy.special import log_softmax

from jpt.backbones.generation import greedy, without_ends
from jpt.backbones.registry import Backbone, check_lengths, load_backbone, longest_text
from jpt.config import PAPER_CHOICES, TuneOptions
from jpt.data.batches import bucket_length, evaluation_batches
from jpt.data.encode import EncodedSplit, encode_cached
from jpt.data.rows import attach_data, has_split, read_rows
from jpt.distributed import process_count
from jpt.errors import InputError
from jpt.io.tokenizer import TextTokenizer
from jpt.parallel import fetch, local_rows, place, place_batch, prompt_sharding, replicated
from jpt.tasks.catalog import load_task
from jpt.tasks.metrics import TEXT_METRICS, compute_measures, score_texts
from jpt.tasks.task import Task
from jpt.tasks.verbalizers import LabelWords, label_words
from jpt.tuning.losses import (
    NO_TOKEN,
    Answer,
    NeuronMask,
    check_neuron_mask,
    generation_totals,
    label_scores,
)
from jpt.types import Batch, Data, Generation, Parameters, Score

# --- Batching of rows and prompts: affects speed, never a number

BANK_MB = 1024  # approximate activation memory per device for a prompt bank
CPU_ROWS = 16  # rows whose activations, prompt included, fit into a CPU's cache
AT_ONCE = 64  # prompts worth scoring together, per shard of the mesh axis `prompt`


class Batching(NamedTuple):
    """How rows are put into batches."""

    batch_size: int  # rows per batch
    max_tokens: int  # encoded text length, which is the longest bucket
    pad: int  # padding token id
    cpu_rows: int | None = None  # limit per CPU device; None for batch_size

    def rows_at_once(self, mesh: Mesh | None) -> int:
        """Return the number of rows scored in one call."""
        if self.cpu_rows is None or _platform(mesh) != "cpu":
            return self.batch_size
        return min(self.batch_size, self.cpu_rows * (1 if mesh is None else mesh.shape["data"]))


class Chunk(NamedTuple):
    """Prompts scored in one call."""

    indices: tuple[int, ...]  # into the list of all prompts
    # one prompt, None for the bare model, or a bank padded to a multiple of the axis `prompt`
    values: Float[Array, "K P D"] | Float[Array, "P D"] | None


def prompts_at_once(mesh: Mesh | None) -> int:
    """Return how many prompts to score in one call."""
    # On a CPU one prompt at a time was measured to be faster than a bank.
    if mesh is None or (mesh.shape["prompt"] == 1 and _platform(mesh) == "cpu"):
        return 1
    return AT_ONCE * mesh.shape["prompt"]


def _platform(mesh: Mesh | None) -> str:
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def plan_chunks(
    config: Any,
    prompts: Sequence[Float[Array, "P D"] | None],
    split: EncodedSplit,
    batching: Batching,
    n_words: int,
    mesh: Mesh | None,
) -> list[Chunk]:
    """Group prompts of one length into chunks and place them on the devices."""
    if prompts_at_once(mesh) == 1:
        return [Chunk((index,), _replicate(prompt, mesh)) for index, prompt in enumerate(prompts)]
    chunks, by_length = [], {}
    for index, prompt in enumerate(prompts):
        if prompt is None:
            chunks.append(Chunk((index,), None))
        else:
            by_length.setdefault(len(prompt), []).append(index)
    for length, indices in by_length.items():
        size = _chunk_size(config, length, split, batching, n_words, mesh)
        for part in np.array_split(indices, math.ceil(len(indices) / size)):
            chunks.append(_make_chunk(prompts, tuple(part.tolist()), mesh))
    return chunks


def _chunk_size(
    config: Any, length: int, split: EncodedSplit, batching: Batching, n_words: int, mesh: Mesh
) -> int:
    """Return how many prompts fit into BANK_MB, a multiple of the axis `prompt`."""
    tokens = length + bucket_length(int(split.lengths.max()), batching.max_tokens) + 1
    # One layer at a time, in float32, rounded up: states, neurons and attention.
    activations = tokens * (6 * config.width + config.neurons) + config.heads * tokens**2
    activations += n_words * config.vocabulary
    rows = math.ceil(batching.rows_at_once(mesh) / mesh.shape["data"])
    return mesh.shape["prompt"] * max(1, int(BANK_MB * 2**20 / (4 * activations * rows)))


def _replicate(prompt: Float[Array, "P D"] | None, mesh: Mesh | None) -> Float[Array, "P D"] | None:
    # With the sharding that training uses, else scoring would compile another program.
    return prompt if prompt is None or mesh is None else place(prompt, replicated(mesh))


def _make_chunk(
    prompts: Sequence[Float[Array, "P D"] | None], indices: tuple[int, ...], mesh: Mesh
) -> Chunk:
    """Stack prompts, repeating the last one until the axis `prompt` divides their number."""
    if len(indices) == 1:
        return Chunk(indices, _replicate(prompts[indices[0]], mesh))
    missing = -len(indices) % mesh.shape["prompt"]
    padded = [*indices, *[indices[-1]] * missing]
    bank = np.stack([np.asarray(fetch(prompts[index]), np.float32) for index in padded])
    return Chunk(indices, place(bank, prompt_sharding(mesh)))


# --- Scoring of labels


def bank_logits(
    module: nn.Module,
    params: Parameters,
    prompts: Sequence[Float[Array, "P D"] | None],
    split: EncodedSplit,
    answer: Answer,
    batching: Batching,
    mesh: Mesh | None = None,
    neuron_mask: NeuronMask | None = None,
) -> Float[np.ndarray, "K N C"]:
    """Score the labels of every row of a split with each of several prompts."""
    # Rows are transferred to the device once; prompts of one length share a compiled program.
    n_labels = answer.n_labels or len(answer.label_ids)
    logits = np.zeros((len(prompts), split.n_rows, n_labels), np.float32)
    n_words = 0 if answer.label_tokens is None else answer.label_tokens.size
    chunks = plan_chunks(module.config, prompts, split, batching, n_words, mesh)
    gather = mesh if process_count() > 1 else None
    pending: tuple[np.ndarray, list[Array]] | None = None
    for rows, batch in sharded_batches(split, batching, mesh):
        given = (batch, answer, neuron_mask, gather)
        scores = [_score_step(module, params, chunk.values, *given) for chunk in chunks]
        # One batch behind, so that the device computes while the host copies.
        _collect(logits, chunks, pending)
        pending = (rows, scores)
    _collect(logits, chunks, pending)
    return logits


def _collect(
    logits: Float[np.ndarray, "K N C"],
    chunks: Sequence[Chunk],
    pending: tuple[np.ndarray, list[Array]] | None,
) -> None:
    if pending is not None:
        rows, scores = pending
        for chunk, found in zip(chunks, scores, strict=True):
            values = np.asarray(found).reshape(-1, *found.shape[-2:])
            logits[np.ix_(chunk.indices, rows)] = values[: len(chunk.indices), : len(rows)]


@partial(jax.jit, static_argnums=(0, 6))
def _score_step(
    module: nn.Module,
    params: Parameters,
    prompts: Float[Array, "K P D"] | Float[Array, "P D"] | None,
    batch: Batch,
    answer: Answer,
    neuron_mask: NeuronMask | None,
    mesh: Mesh | None,
) -> Float[Array, "*K B C"]:
    """Score labels with one prompt or a bank; with a mesh, replicate the scores."""

    def score(prompt: Float[Array, "P D"] | None) -> Float[Array, "B C"]:
        return label_scores(module, params, prompt, batch, answer, neuron_mask=neuron_mask)

    is_bank = prompts is not None and prompts.ndim == 3
    scores = (jax.vmap(score) if is_bank else score)(prompts)
    return scores if mesh is None else jax.lax.with_sharding_constraint(scores, replicated(mesh))


def sharded_batches(
    split: EncodedSplit, batching: Batching, mesh: Mesh | None
) -> Iterator[tuple[Int[np.ndarray, "N"], Batch]]:
    """Yield all rows of a split once; each process reads its own shard."""
    size = batching.rows_at_once(mesh)
    local = None if mesh is None else local_rows(mesh, size)
    shape = (size, batching.max_tokens, batching.pad)
    for rows, batch in evaluation_batches(split, *shape, local):
        yield rows, batch if mesh is None else place_batch(batch, mesh, size)


def score_logits(
    logits: Float[np.ndarray, "N C"],
    labels: Int[np.ndarray, "N"],
    label_names: Sequence[str],
    metric: str,
) -> Score:
    """Return the score of a split from the logits of its labels."""
    predictions = logits.argmax(axis=-1)
    log_probs = log_softmax(logits.astype(np.float64), axis=-1)
    answered = np.bincount(predictions, minlength=len(label_names))
    measures = compute_measures(predictions, labels, len(label_names))
    return Score(
        metric=metric,
        value=measures[metric],
        loss=float(-log_probs[np.arange(len(labels)), labels].mean()),
        rows=len(labels),
        majority=float(np.bincount(labels).max() / len(labels)),
        counts={name: int(count) for name, count in zip(label_names, answered, strict=True)},
        predictions=predictions,
        measures=measures,
        log_probs=log_probs,
    )


# --- Scoring of generated answers


@partial(jax.jit, static_argnums=0)
def _loss_step(
    module: nn.Module, params: Parameters, prompt: Float[Array, "P D"] | None, batch: Batch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    loss, _, total = generation_totals(module, params, prompt, batch)
    return loss, total


def score_generated(
    module: nn.Module,
    params: Parameters,
    prompt: Float[Array, "P D"] | None,
    split: EncodedSplit,
    tokenizer: TextTokenizer,
    metric: str,
    batching: Batching,
    mesh: Mesh | None = None,
) -> Score:
    """Generate an answer to every row of a split and compare it with the references."""
    rows: list[Generation | None] = [None] * split.n_rows
    loss = tokens = 0.0
    for numbers, batch in sharded_batches(split, batching, mesh):
        found, total = fetch(_loss_step(module, params, prompt, batch))
        loss, tokens = loss + float(found), tokens + float(total)
        generated = generate_answers(module, params, prompt, batch, tokenizer, split.answers.width)
        for number, ids in zip(numbers, generated, strict=False):  # padding rows are left over
            rows[number] = _compare(split, int(number), ids, tokenizer)
    measures = score_texts(tuple(TEXT_METRICS), rows)
    return Score(
        metric=metric,
        value=measures[metric],
        loss=loss / tokens,
        rows=split.n_rows,
        majority=None,
        counts={},
        predictions=tuple(row.prediction for row in rows),
        measures=measures,
        generated=tuple(rows),
    )


def generate_answers(
    module: nn.Module,
    params: Parameters,
    prompt: Float[Array, "P D"] | None,
    batch: Batch,
    tokenizer: TextTokenizer,
    width: int,
) -> list[list[int]]:
    """Generate an answer to each row of a batch by greedy decoding."""
    new_tokens = width - (tokenizer.ids.eos is not None)
    inputs = (module, params, batch.tokens, batch.lengths, prompt, new_tokens, tokenizer.end_ids)
    return without_ends(fetch(greedy(*inputs)), tokenizer.end_ids)


def _compare(
    split: EncodedSplit, number: int, ids: Sequence[int], tokenizer: TextTokenizer
) -> Generation:
    answers = split.answers
    # A decoder's answer starts with the space after its cue.
    text = tokenizer.decode(ids).strip()
    return Generation(
        text, answers.references[number], tuple(ids), answers.reference_tokens[number]
    )


# --- Tasks bound to a backbone


@dataclass(frozen=True)
class BoundTask:
    """A task with the label token ids and the batching of one backbone."""

    task: Task
    backbone: Backbone
    label_words: LabelWords  # with their token ids in this vocabulary
    answer: Answer  # the same ids, on the device
    batching: Batching
    answer_tokens: int | None  # longest generated answer

    def split(self, name: str) -> EncodedSplit:
        """Read and tokenise a split."""
        return encode_cached(
            read_rows(self.task, name),
            self.task,
            self.backbone.tokenizer,
            self.batching.max_tokens,
            self.backbone.layout,
            self.answer_tokens,
        )

    def splits(self) -> dict[str, EncodedSplit]:
        """Read train, validation, and test if the task has one."""
        names = ["train", "validation"]
        if has_split(self.task, "test"):
            names.append("test")
        return {name: self.split(name) for name in names}

    def score(
        self,
        prompts: Sequence[Float[Array, "P D"] | None],
        split: EncodedSplit,
        mesh: Mesh | None = None,
        neuron_mask: NeuronMask | None = None,
    ) -> list[Score]:
        """Score prompts over a whole split, without dropout."""
        task, backbone = self.task, self.backbone
        if neuron_mask is not None:
            check_neuron_mask(neuron_mask, backbone, task)
        module = backbone.module.clone(dropout_rate=0.0)
        if task.is_generative:
            rows = (split, backbone.tokenizer, task.metric, self.batching, mesh)
            return [score_generated(module, backbone.params, prompt, *rows) for prompt in prompts]
        found = bank_logits(
            module, backbone.params, prompts, split, self.answer, self.batching, mesh, neuron_mask
        )
        return [score_logits(each, split.labels, task.labels, task.metric) for each in found]

    def describe_label_words(self) -> str:
        """Return the label words with their ids, as one line of a log."""
        if self.task.is_generative:
            return f"generated answers of at most {self.answer_tokens} tokens"
        found = self.label_words
        by_label = zip(self.task.labels, found.words, found.token_ids, strict=True)
        return ", ".join(
            f"{label} = {' or '.join(map(self._describe_word, words, token_ids))}"
            for label, words, token_ids in by_label
        )

    def _describe_word(self, word: str, token_ids: tuple[int, ...]) -> str:
        tokenizer, is_whole = self.backbone.tokenizer, self.answer.label_tokens is not None
        shown = token_ids if is_whole else token_ids[:1]
        # A token's text is shown where it differs from the word, e.g. by a leading space.
        names = [tokenizer.token_text(token) for token in shown]
        ids = " ".join(
            str(token) if [name] == [word] else f"{name} {token}"
            for name, token in zip(names, shown, strict=True)
        )
        return f"'{word}' ({ids}{', first token' if len(shown) < len(token_ids) else ''})"


def bind_task(
    task: Task,
    backbone: Backbone,
    max_tokens: int,
    batch_size: int,
    first_position: int = 0,
    label_scoring: str = "phrase",
    answer_tokens: int | None = None,
) -> BoundTask:
    """Bind a task to a backbone; raise InputError if the backbone cannot answer it."""
    if task.is_generative and backbone.layout == "encoder":
        raise InputError(
            f"task {task.name} is generative, but {backbone.name} has the layout encoder, which "
            "generates no text; use a T5 or a decoder, e.g. builtin/t5-mini"
        )
    if answer_tokens is not None and not task.is_generative:
        raise InputError(
            f"answer_tokens is {answer_tokens}, but task {task.name} has labels "
            f"({', '.join(task.labels)}) and no generated answer; omit it"
        )
    is_decoder = backbone.layout == "decoder"
    words = label_words(
        task, backbone.tokenizer, backbone.model_type, backbone.layout, label_scoring
    )
    return BoundTask(
        task,
        backbone,
        words,
        _answer(words, label_scoring, first_position),
        # A decoder computes its prompt once per batch, not per row.
        Batching(batch_size, max_tokens, backbone.pad_id, None if is_decoder else CPU_ROWS),
        answer_tokens or task.answer_tokens,
    )


def bind(task: Task, backbone: Backbone, options: TuneOptions) -> BoundTask:
    """Bind a task with the options of a run."""
    return bind_task(
        task,
        backbone,
        options.max_tokens,
        options.eval_batch_size,
        label_scoring=options.label_scoring,
        answer_tokens=options.answer_tokens,
    )


def _answer(words: LabelWords, label_scoring: str, first_position: int) -> Answer:
    flat = [token_ids for label in words.token_ids for token_ids in label]
    owners = [number for number, label in enumerate(words.token_ids) for _ in label]
    longest = max(map(len, flat), default=1)
    table = None
    if label_scoring == "phrase" and longest > 1:
        padded = [[*token_ids, *[NO_TOKEN] * (longest - len(token_ids))] for token_ids in flat]
        table = jnp.asarray(padded, jnp.int32)
    several = len(flat) > len(words.token_ids)
    return Answer(
        jnp.asarray([token_ids[0] for token_ids in flat], jnp.int32),
        table,
        jnp.asarray(owners, jnp.int32) if several else None,
        len(words.token_ids) if several else 0,
        first_position,
    )


def resolve_task(task: Task | str | Path, data: Data | None) -> Task:
    """Return the task, loading it by name or folder if needed."""
    if isinstance(task, Task):
        return task if data is None else attach_data(task, data)
    if data is None or isinstance(data, str | Path):
        return load_task(task, data)
    return attach_data(load_task(task), data)


def resolve_backbone(
    backbone: Backbone | str | Path,
    dtype: str = "float32",
    dropout: bool = False,
    mesh: Mesh | None = None,
    remat: str = "dots",
) -> Backbone:
    """Return the backbone on the mesh, loading it by name or folder if needed."""
    if isinstance(backbone, Backbone):
        return backbone if mesh is None else backbone.on_mesh(mesh)
    return load_backbone(backbone, dtype=dtype, dropout=dropout, mesh=mesh, remat=remat)


def data_record(splits: dict[str, EncodedSplit]) -> dict[str, Any]:
    """Return row counts and checksums of splits, by which a resumed run detects changed data."""
    return {
        name: {
            "rows": split.n_rows,
            "cut_rows": split.cut_rows,
            **({"cut_answers": split.answers.cut_rows} if split.answers else {}),
            "content": split.content,
            "sha256": _checksum(split),
        }
        for name, split in splits.items()
    }


def _checksum(split: EncodedSplit) -> str:
    digest = hashlib.sha256()
    arrays = [split.tokens, split.offsets, split.labels]
    if split.answers is not None:
        arrays += [split.answers.tokens, split.answers.offsets]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


# --- Defaults of a backbone and a task


def resolve_options(options: TuneOptions, backbone: Backbone, task: Task) -> TuneOptions:
    """Fill in omitted options: from the backbone, else the task, else the paper."""
    chosen = options.resolve({**_choices(task), **backbone.defaults})
    answer = chosen.answer_tokens or task.answer_tokens or 0
    if options.max_tokens is None:
        limit = longest_text(backbone, chosen.length, answer_tokens=answer)
        chosen = dataclasses.replace(chosen, max_tokens=max(1, min(chosen.max_tokens, limit)))
    check_lengths(backbone, chosen.length, chosen.max_tokens, answer_tokens=answer)
    return chosen


def resolve_max_tokens(
    max_tokens: int | None,
    backbone: Backbone,
    task: Task,
    prompt_rows: int,
    first_position: int = 0,
    answer_tokens: int | None = None,
) -> int:
    """Return the longest text in tokens for a given prompt, as `resolve_options` does."""
    answer = answer_tokens or task.answer_tokens or 0
    if max_tokens is None:
        choice = {**PAPER_CHOICES, **_choices(task), **backbone.defaults}["max_tokens"]
        limit = longest_text(backbone, prompt_rows, first_position, answer)
        max_tokens = max(1, min(choice, limit))
    check_lengths(backbone, prompt_rows, max_tokens, first_position, answer)
    return max_tokens


def _choices(task: Task) -> dict[str, Any]:
    return {} if task.max_tokens is None else {"max_tokens": task.max_tokens}
