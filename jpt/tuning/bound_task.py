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
from jpt.errors import InputError
from jpt.io.tokenizer import TextTokenizer
from jpt.parallel import (
    fetch,
    local_rows,
    place,
    place_batch,
    process_count,
    prompt_sharding,
    replicated,
)
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

# --- How rows and prompts are put together where they are scored; changes speed, never a number

BANK_MB = 1024
"""Memory of a device for what passes through the layers of a bank's prompts, roughly."""

CPU_ROWS = 16
"""Rows whose states pass a CPU's layers in its cache, where each row has a prompt's states too."""

AT_ONCE = 64
"""Prompts that are worth handing in together, on each part of the axis ``prompt``."""


class Batching(NamedTuple):
    """How rows are put into batches."""

    batch_size: int  # rows of a batch
    max_tokens: int  # the length the rows were encoded with, which is the longest bucket
    pad: int  # id of the padding piece
    # the most rows of a batch on each device that is a CPU; None for batch_size
    cpu_rows: int | None = None

    def rows_at_once(self, mesh: Mesh | None) -> int:
        """Says how many rows are scored at once."""
        if self.cpu_rows is None or _platform(mesh) != "cpu":
            return self.batch_size
        return min(self.batch_size, self.cpu_rows * (1 if mesh is None else mesh.shape["data"]))


class Chunk(NamedTuple):
    """Prompts that go through one program at once."""

    numbers: tuple[int, ...]  # their places among all prompts
    # one prompt, None for the untouched model, or a bank, filled up to divide over the axis
    # ``prompt``
    values: Float[Array, "K P D"] | Float[Array, "P D"] | None


def prompts_at_once(mesh: Mesh | None) -> int:
    """Says how many prompts are best scored in one call."""
    # On a CPU one after the other was measured to be faster than all at once.
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
    """Decides which prompts go through the model together, and puts them on the devices."""
    alone = [number for number, prompt in enumerate(prompts) if prompt is None]
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        if prompt is not None:
            by_length.setdefault(len(prompt), []).append(number)
    if prompts_at_once(mesh) == 1:
        return [Chunk((number,), _alone(prompt, mesh)) for number, prompt in enumerate(prompts)]
    pieces = [Chunk((number,), None) for number in alone]
    for rows, numbers in by_length.items():
        size = _fitting(config, rows, split, batching, n_words, mesh)
        for some in np.array_split(numbers, math.ceil(len(numbers) / size)):
            pieces.append(_piece(prompts, tuple(some.tolist()), mesh))
    return pieces


def _fitting(
    config: Any, rows: int, split: EncodedSplit, batching: Batching, n_words: int, mesh: Mesh
) -> int:
    """How many prompts of a length fit into the budget: a multiple of the axis ``prompt``."""
    longest = bucket_length(int(split.lengths.max()), batching.max_tokens)
    places = rows + longest + 1
    # One layer's states, neurons and attention at a time, in float32, rounded up.
    passing = places * (6 * config.width + config.neurons) + config.heads * places**2
    passing += n_words * config.vocabulary
    share = math.ceil(batching.rows_at_once(mesh) / mesh.shape["data"])
    return mesh.shape["prompt"] * max(1, int(BANK_MB * 2**20 / (4 * passing * share)))


def _alone(prompt: Float[Array, "P D"] | None, mesh: Mesh | None) -> Float[Array, "P D"] | None:
    """Puts one prompt where training has it: from elsewhere, its program would be another one."""
    return prompt if prompt is None or mesh is None else place(prompt, replicated(mesh))


def _piece(
    prompts: Sequence[Float[Array, "P D"] | None], numbers: tuple[int, ...], mesh: Mesh
) -> Chunk:
    """Puts some prompts into one array; the last one is repeated until the axis divides them."""
    if len(numbers) == 1:
        return Chunk(numbers, _alone(prompts[numbers[0]], mesh))
    missing = -len(numbers) % mesh.shape["prompt"]
    chosen = [*numbers, *[numbers[-1]] * missing]
    bank = np.stack([np.asarray(fetch(prompts[number]), np.float32) for number in chosen])
    return Chunk(numbers, place(bank, prompt_sharding(mesh)))


# --- Scoring a prompt over every row of a split, whatever the batch size


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
    """Scores the labels of every row of a split behind each of several prompts."""
    # Rows travel to the device once, and prompts of one length share a compiled program. Where the
    # mesh has an axis ``prompt``, or the devices are no CPU, many prompts go through it at once, as
    # many as a memory budget holds.
    n_labels = answer.n_labels or len(answer.label_ids)
    logits = np.zeros((len(prompts), split.n_rows, n_labels), np.float32)
    n_words = 0 if answer.label_tokens is None else answer.label_tokens.size
    pieces = plan_chunks(module.config, prompts, split, batching, n_words, mesh)
    whole = mesh if process_count() > 1 else None
    pending: tuple[np.ndarray, list[Array]] | None = None
    for rows, batch in sharded_batches(split, batching, mesh):
        given = (batch, answer, neuron_mask, whole)
        scores = [_score_step(module, params, piece.values, *given) for piece in pieces]
        # One batch behind, so that the device computes while the host copies.
        _collect(logits, pieces, pending)
        pending = (rows, scores)
    _collect(logits, pieces, pending)
    return logits


def _collect(
    logits: Float[np.ndarray, "K N C"],
    pieces: Sequence[Chunk],
    pending: tuple[np.ndarray, list[Array]] | None,
) -> None:
    if pending is not None:
        rows, scores = pending
        for piece, found in zip(pieces, scores, strict=True):
            values = np.asarray(found).reshape(-1, *found.shape[-2:])
            logits[np.ix_(piece.numbers, rows)] = values[: len(piece.numbers), : len(rows)]


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
    """Scores behind one prompt or a bank; with a mesh, every process gets all of them."""

    def score(prompt: Float[Array, "P D"] | None) -> Float[Array, "B C"]:
        return label_scores(module, params, prompt, batch, answer, neuron_mask=neuron_mask)

    is_bank = prompts is not None and prompts.ndim == 3
    scores = (jax.vmap(score) if is_bank else score)(prompts)
    return scores if mesh is None else jax.lax.with_sharding_constraint(scores, replicated(mesh))


def sharded_batches(
    split: EncodedSplit, batching: Batching, mesh: Mesh | None
) -> Iterator[tuple[Int[np.ndarray, "N"], Batch]]:
    """Goes through all rows of a split once; a process reads the rows of its own part."""
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
    """Turns the scores of labels into a score of the split."""
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


# --- Scoring answers that are written: greedy text against the references, and the loss


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
    """Lets a model write the answer of every row of a split and compares it with the references."""
    rows: list[Generation | None] = [None] * split.n_rows
    loss = tokens = 0.0
    for numbers, batch in sharded_batches(split, batching, mesh):
        found, total = fetch(_loss_step(module, params, prompt, batch))
        loss, tokens = loss + float(found), tokens + float(total)
        written = write_answers(module, params, prompt, batch, tokenizer, split.answers.width)
        for number, ids in zip(numbers, written, strict=False):  # filling rows are left over
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
        written=tuple(rows),
    )


def write_answers(
    module: nn.Module,
    params: Parameters,
    prompt: Float[Array, "P D"] | None,
    batch: Batch,
    tokenizer: TextTokenizer,
    width: int,
) -> list[list[int]]:
    """Writes an answer to each row of a batch, the most probable token each time."""
    most = width - (tokenizer.ids.eos is not None)
    inputs = (module, params, batch.tokens, batch.lengths, prompt, most, tokenizer.end_ids)
    return without_ends(fetch(greedy(*inputs)), tokenizer.end_ids)


def _compare(
    split: EncodedSplit, number: int, ids: Sequence[int], tokenizer: TextTokenizer
) -> Generation:
    answers = split.answers
    # A decoder's answer begins with the space behind its cue.
    text = tokenizer.decode(ids).strip()
    return Generation(
        text, answers.references[number], tuple(ids), answers.reference_tokens[number]
    )


# --- A task as one backbone reads it: label words found, rows tokenised, answers scored


@dataclass(frozen=True)
class BoundTask:
    """One task on one backbone."""

    task: Task  # what is asked
    backbone: Backbone  # who is asked
    words: LabelWords  # label words with their pieces in this vocabulary
    answer: Answer  # which words are scored, on the device
    batching: Batching  # how rows are put together
    answer_tokens: int | None  # the most tokens of a written answer

    def split(self, name: str) -> EncodedSplit:
        """Reads and tokenises a split."""
        return encode_cached(
            read_rows(self.task, name),
            self.task,
            self.backbone.tokenizer,
            self.batching.max_tokens,
            self.backbone.layout,
            self.answer_tokens,
        )

    def splits(self) -> dict[str, EncodedSplit]:
        """Reads what a run needs: train, validation, and test where the task has one."""
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
        """Scores prompts over a whole split, without dropout."""
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
        """Lists label words with their ids, for the first line of a log."""
        if self.task.is_generative:
            return f"the answer is written, in {self.answer_tokens} tokens at most"
        by_label = zip(self.task.labels, self.words.words, self.words.token_ids, strict=True)
        return ", ".join(
            f"{label} = {' or '.join(map(self._describe_word, words, pieces))}"
            for label, words, pieces in by_label
        )

    def _describe_word(self, word: str, pieces: tuple[int, ...]) -> str:
        """A word with its ids, and its pieces where they show more, such as a leading space."""
        tokenizer, is_whole = self.backbone.tokenizer, self.answer.label_tokens is not None
        shown = pieces if is_whole else pieces[:1]
        names = [tokenizer.token_text(token) for token in shown]
        ids = " ".join(
            str(token) if [name] == [word] else f"{name} {token}"
            for name, token in zip(names, shown, strict=True)
        )
        return f"'{word}' ({ids}{', first piece' if len(shown) < len(pieces) else ''})"


def bind_task(
    task: Task,
    backbone: Backbone,
    max_tokens: int,
    batch_size: int,
    first_position: int = 0,
    label_scoring: str = "phrase",
    answer_tokens: int | None = None,
) -> BoundTask:
    """Finds a task's label words in a backbone's vocabulary."""
    if task.is_generative and backbone.layout == "encoder":
        raise InputError(
            f"the answers of task {task.name} are written, but {backbone.name} has the layout "
            "encoder, which fills gaps and writes no text; take a T5 or a decoder, for instance "
            "builtin/t5-mini"
        )
    if answer_tokens is not None and not task.is_generative:
        raise InputError(
            f"answer_tokens is {answer_tokens}, but task {task.name} has labels "
            f"({', '.join(task.labels)}) and no answer to be written; leave it out"
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
        # A decoder computes the prompt once a batch, whatever the rows.
        Batching(batch_size, max_tokens, backbone.pad_id, None if is_decoder else CPU_ROWS),
        answer_tokens or task.answer_tokens,
    )


def bind(task: Task, backbone: Backbone, options: TuneOptions) -> BoundTask:
    """Prepares a task as the options of a run say."""
    return bind_task(
        task,
        backbone,
        options.max_tokens,
        options.eval_batch_size,
        label_scoring=options.label_scoring,
        answer_tokens=options.answer_tokens,
    )


def _answer(words: LabelWords, label_scoring: str, first_position: int) -> Answer:
    """Puts the words of all labels into arrays."""
    flat = [pieces for of in words.token_ids for pieces in of]
    owners = [number for number, of in enumerate(words.token_ids) for _ in of]
    longest = max(map(len, flat), default=1)
    table = None
    if label_scoring == "phrase" and longest > 1:
        padded = [[*pieces, *[NO_TOKEN] * (longest - len(pieces))] for pieces in flat]
        table = jnp.asarray(padded, jnp.int32)
    several = len(flat) > len(words.token_ids)
    return Answer(
        jnp.asarray([pieces[0] for pieces in flat], jnp.int32),
        table,
        jnp.asarray(owners, jnp.int32) if several else None,
        len(words.token_ids) if several else 0,
        first_position,
    )


def resolve_task(task: Task | str | Path, data: Data | None) -> Task:
    """Loads a task unless it is one."""
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
    """Loads a backbone unless it is one."""
    if isinstance(backbone, Backbone):
        return backbone if mesh is None else backbone.on_mesh(mesh)
    return load_backbone(backbone, dtype=dtype, dropout=dropout, mesh=mesh, remat=remat)


def data_record(splits: dict[str, EncodedSplit]) -> dict[str, Any]:
    """Records what was read, so that a resumed run can tell whether it changed."""
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


# --- Choices that were left open, made for a backbone and a task; lengths held against positions


def resolve_options(options: TuneOptions, backbone: Backbone, task: Task) -> TuneOptions:
    """Makes every choice that was left open: the backbone's, then the task's, then the paper's."""
    chosen = options.resolve({**_choices(task), **backbone.defaults})
    answer = chosen.answer_tokens or task.answer_tokens or 0
    if options.max_tokens is None:
        most = longest_text(backbone, chosen.length, answer_tokens=answer)
        chosen = dataclasses.replace(chosen, max_tokens=max(1, min(chosen.max_tokens, most)))
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
    """Chooses how long a text may be where a prompt is used, as `resolve_options` does."""
    answer = answer_tokens or task.answer_tokens or 0
    if max_tokens is None:
        choice = {**PAPER_CHOICES, **_choices(task), **backbone.defaults}["max_tokens"]
        most = longest_text(backbone, prompt_rows, first_position, answer)
        max_tokens = max(1, min(choice, most))
    check_lengths(backbone, prompt_rows, max_tokens, first_position, answer)
    return max_tokens


def _choices(task: Task) -> dict[str, Any]:
    return {} if task.max_tokens is None else {"max_tokens": task.max_tokens}
