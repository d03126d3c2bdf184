"""A task bound to a backbone: label token ids, encoded splits, scores."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
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
from jpt.backbones.registry import (
    Backbone,
    check_lengths,
    load_backbone,
    longest_text,
    weights_fingerprint,
)
from jpt.config import PAPER_CHOICES, TuneOptions
from jpt.data.batches import bucket_length, evaluation_batches
from jpt.data.encode import EncodedSplit, encode_cached
from jpt.data.rows import Row, attach_data, data_warnings, has_split, read_rows
from jpt.distributed import process_count
from jpt.errors import InputError, shorten, warn_data
from jpt.io.tokenizer import TextTokenizer
from jpt.parallel import fetch, local_rows, place, place_batch, prompt_sharding, replicated
from jpt.results.prompt_table import match_in_task_prompts, short_task
from jpt.results.statistics import mean_error, score_error
from jpt.tasks.catalog import load_task
from jpt.tasks.metrics import (
    TEXT_METRICS,
    chance_level,
    compute_measures,
    mean_scores,
    row_scores,
)
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
from jpt.types import (
    Batch,
    Data,
    Generation,
    Parameters,
    Prompt,
    PromptCard,
    Score,
    Scoring,
)

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
        chance=chance_level(metric, labels),
        standard_error=score_error(metric, predictions, labels),
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
    of_rows = [row_scores(tuple(TEXT_METRICS), row) for row in rows]
    measures = mean_scores(of_rows)
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
        chance=0.0,
        standard_error=mean_error([row[metric] for row in of_rows]),
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


class Splits(dict[str, EncodedSplit]):
    """Splits of a task by name, with what is odd about their rows."""

    warnings: Sequence[str] = ()

    def warn(self) -> None:
        """Warn once everything is checked: a refusal is one line."""
        for warning in self.warnings:
            warn_data(warning)


@dataclass(frozen=True)
class BoundTask:
    """A task with the label token ids and the batching of one backbone."""

    task: Task
    backbone: Backbone
    label_words: LabelWords  # with their token ids in this vocabulary
    answer: Answer  # the same ids, on the device
    batching: Batching
    answer_tokens: int | None  # longest generated answer
    label_scoring: str
    notes: tuple[str, ...] = ()  # differences from how its in-task prompt was tuned

    @property
    def scoring(self) -> Scoring:
        """The settings of its scores, for prompt cards."""
        task, backbone, found = self.task, self.backbone, self.label_words
        return Scoring(
            template=task.template(backbone.layout),
            label_words=dict(zip(task.labels, found.words, strict=True)),
            label_ids=dict(zip(task.labels, found.token_ids, strict=True)),
            max_tokens=self.batching.max_tokens,
            label_scoring=self.label_scoring,
            answer_tokens=self.answer_tokens,
            fingerprint=backbone.fingerprint or None,
            dtype=weights_dtype(backbone),
        )

    def split(self, name: str) -> EncodedSplit:
        """Read and tokenise a split."""
        return self.encode(read_rows(self.task, name))

    def encode(self, rows: Sequence[Row]) -> EncodedSplit:
        """Tokenise rows."""
        return encode_cached(
            rows,
            self.task,
            self.backbone.tokenizer,
            self.batching.max_tokens,
            self.backbone.layout,
            self.answer_tokens,
        )

    def splits(self, with_test: bool = True) -> Splits:
        """Read train, validation, and test if the task has one."""
        names = ["train", "validation"]
        if with_test and has_split(self.task, "test"):
            names.append("test")
        rows = {name: read_rows(self.task, name) for name in names}
        splits = Splits({name: self.encode(of) for name, of in rows.items()})
        splits.warnings = list(data_warnings(rows, self.task))
        return splits

    def score(
        self,
        prompts: Sequence[Float[Array, "P D"] | None],
        split: EncodedSplit,
        mesh: Mesh | None = None,
        neuron_mask: NeuronMask | None = None,
        may_diverge: bool = False,
        names: Sequence[str] | None = None,
    ) -> list[Score]:
        """Score prompts over a whole split, without dropout."""
        task, backbone = self.task, self.backbone
        if neuron_mask is not None:
            check_neuron_mask(neuron_mask, backbone, task)
        module = backbone.module.clone(dropout_rate=0.0)
        if task.is_generative:
            rows = (split, backbone.tokenizer, task.metric, self.batching, mesh)
            scores = [score_generated(module, backbone.params, prompt, *rows) for prompt in prompts]
        else:
            rows = (split, self.answer, self.batching, mesh, neuron_mask)
            found = bank_logits(module, backbone.params, prompts, *rows)
            truth = (split.labels, task.labels, task.metric)
            scores = [score_logits(logits, *truth) for logits in found]
        if not may_diverge:
            check_finite(scores, prompts, names, task, backbone)
        return scores

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


def check_finite(
    scores: Sequence[Score],
    prompts: Sequence[Float[Array, "P D"] | None],
    names: Sequence[str] | None,
    task: Task,
    backbone: Backbone,
) -> None:
    """Raise InputError for the first prompt whose label scores are not finite."""
    for number, (score, prompt) in enumerate(zip(scores, prompts, strict=True)):
        if not math.isfinite(score.loss):
            of = "the prompt" if names is None else f"prompt {names[number]}"
            largest = 0.0 if prompt is None else float(jnp.abs(prompt).max())
            raise InputError(
                f"{of} on task {task.name}: expected finite label scores, got NaN or infinity from"
                f" {backbone.name} in {weights_dtype(backbone)} (largest value of the prompt"
                f" {largest:.3g}); use --dtype float32, or tune again with a lower learning rate"
            )


def bind(
    task: Task,
    backbone: Backbone,
    options: Any,
    prompt: Prompt | None = None,
    tuned: PromptCard | None = None,
) -> BoundTask:
    """Bind a task to a backbone; raise InputError if the backbone cannot answer it."""
    # Length and first position of the prompts: of the prompt, else of the options. What the options
    # leave open is as in the card of the task's in-task prompt, if there is one.
    scoring = None if tuned is None else tuned.scoring
    if scoring is not None:
        task = task_as_tuned(task, backbone.layout, backbone.model_type, scoring, options)
    label_scoring, answer_tokens, max_tokens = inherited(options, scoring)
    length = options.length if prompt is None else len(prompt.values)
    first_position = 0 if prompt is None else prompt.card.first_position or 0
    answer = _answer_length(task, backbone, label_scoring, answer_tokens)
    max_tokens = resolve_max_tokens(max_tokens, backbone, task, length, first_position, answer)
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
    rows = options.eval_batch_size
    bound = BoundTask(
        task,
        backbone,
        words,
        _answer(words, label_scoring, first_position),
        # A decoder computes its prompt once per batch, not per row.
        Batching(rows, max_tokens, backbone.pad_id, None if is_decoder else CPU_ROWS),
        answer_tokens or task.answer_tokens,
        label_scoring,
    )
    return bound if scoring is None else dataclasses.replace(bound, notes=_id_notes(bound, scoring))


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


# --- Settings that a prompt was tuned with, the defaults on its own task


def inherited(options: Any, scoring: Scoring | None) -> tuple[str, int | None, int | None]:
    """Return label scoring, answer tokens and text tokens of the options, else of a card."""
    label_scoring = getattr(options, "label_scoring", None)
    answer_tokens, max_tokens = getattr(options, "answer_tokens", None), options.max_tokens
    if scoring is not None:
        label_scoring = label_scoring or scoring.label_scoring
        answer_tokens = answer_tokens or scoring.answer_tokens
        max_tokens = max_tokens or scoring.max_tokens
    return label_scoring or "phrase", answer_tokens, max_tokens


def task_as_tuned(task: Task, layout: str, model_type: str, scoring: Scoring, options: Any) -> Task:
    """Return the task with the template and the label words of a card."""
    if not _keeps_texts(options, scoring, task):
        return task
    templates = {**task.templates, layout: scoring.template}
    words = {**task.label_words, model_type: scoring.label_words} if task.labels else {}
    return dataclasses.replace(task, templates=templates, label_words=words)


def in_task_card(card: PromptCard, task: Task) -> PromptCard | None:
    """Return the card if its prompt was tuned for this task."""
    return card if short_task(card.task) == task.short_name else None


def in_task_of(task: Task, cards: Mapping[str, PromptCard]) -> PromptCard | None:
    """Return the card of the task's in-task prompt among several prompts."""
    found = match_in_task_prompts([task.short_name], cards)[0]
    return cards[found[task.short_name]] if found else None


def with_inherited(
    task: Task, options: TuneOptions, backbone: Backbone, tuned: PromptCard | None
) -> tuple[Task, TuneOptions]:
    """Return a task and options of tuning, what they leave open as a prompt was tuned."""
    if tuned is None or tuned.scoring is None:
        return task, options
    scoring, answer, tokens = inherited(options, tuned.scoring)
    options = dataclasses.replace(
        options, label_scoring=scoring, answer_tokens=answer, max_tokens=tokens
    )
    layout, model_type = backbone.layout, backbone.model_type
    return task_as_tuned(task, layout, model_type, tuned.scoring, options), options


class Weights(NamedTuple):
    """What is known of a backbone without loading it."""

    name: str
    fingerprint: str | None
    dtype: str


def scoring_notes(
    cards: Mapping[str, PromptCard],
    task: Task,
    options: Any,
    backbone: Weights,
    row: PromptCard | None,
) -> list[str]:
    """Return where prompts are scored otherwise than they were tuned, without loading a model."""
    # ``row`` is the card from which `bind` takes the settings of all these prompts.
    notes: dict[str, list[str]] = {}
    for name, card in cards.items():
        for note in _notes_on(card, task, options, backbone, row and row.scoring):
            notes.setdefault(note, []).append(name)
    return [f"{shorten(names)}: {note}" for note, names in notes.items()]


def _notes_on(
    card: PromptCard, task: Task, options: Any, backbone: Weights, of_row: Scoring | None
) -> Iterator[str]:
    tuned = card.scoring
    if tuned is None:
        return
    pairs: dict[str, tuple[Any, Any]] = {"dtype": (tuned.dtype, backbone.dtype)}
    if backbone.name == card.backbone and tuned.fingerprint and backbone.fingerprint:
        pairs["weights"] = (tuned.fingerprint, backbone.fingerprint)
    if in_task_card(card, task) is not None:
        scoring, answer, tokens = inherited(options, of_row)
        pairs["label_scoring"] = (tuned.label_scoring, scoring)
        pairs["answer_tokens"] = (tuned.answer_tokens, answer or task.answer_tokens)
        pairs["max_tokens"] = (tuned.max_tokens, tokens or "the default")
        changed = _changed_texts(tuned, task, card.layout)
        if of_row is None or not _keeps_texts(options, of_row, task):
            pairs |= changed
        elif (of_row.template, of_row.label_words) == (tuned.template, tuned.label_words):
            for name, (was, now) in changed.items():
                yield f"task {task.name} now has {name} {now}; scored with {was}, as tuned"
        else:
            templates, words = zip(
                *((s.template, s.label_words) for s in (tuned, of_row)), strict=True
            )
            pairs["template"] = tuple(map(_show_template, templates))
            pairs["label words"] = tuple(map(_show_words, words))
    pairs = {name: (was, now) for name, (was, now) in pairs.items() if was != now}
    if pairs:
        was = ", ".join(f"{name} {value}" for name, (value, _) in pairs.items())
        now = ", ".join(f"{name} {value}" for name, (_, value) in pairs.items())
        yield f"tuned with {was}; scored with {now}"


def _changed_texts(tuned: Scoring, task: Task, layout: str) -> dict[str, tuple[str, str]]:
    """Return template and label words, tuned and now, where the task has others now."""
    found = {}
    template = task.template(layout)
    if template != tuned.template:
        found["template"] = (_show_template(tuned.template), _show_template(template))
    words = [task.words(of) for of in task.label_words]
    if task.labels and tuned.label_words not in words:
        found["label words"] = (_show_words(tuned.label_words), _show_words(words[0]))
    return found


def _keeps_texts(options: Any, tuned: Scoring, task: Task) -> bool:
    is_same = set(tuned.label_words) == set(task.labels)  # else the words are of other classes
    return is_same and getattr(options, "settings", "tuned") == "tuned"


def _show_template(segments: Sequence[str]) -> str:
    return " | ".join(map(repr, segments))


def _show_words(words: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{label} = {' or '.join(of)}" for label, of in words.items())


def _id_notes(bound: BoundTask, tuned: Scoring) -> tuple[str, ...]:
    """Return a note if this tokenizer gives the same label words other token ids."""
    now = bound.scoring
    if now.label_words != tuned.label_words or now.label_ids == tuned.label_ids:
        return ()
    return (
        f"task {bound.task.name}: tuned with label token ids {tuned.label_ids}, but the tokenizer"
        f" of {bound.backbone.name} gives {now.label_ids}",
    )


def weights_dtype(backbone: Backbone) -> str:
    """Return the dtype of the weights."""
    return str(jax.tree.leaves(backbone.params)[0].dtype)


def weights_of(backbone: Backbone | str | Path, dtype: str = "float32") -> Weights:
    """Return name, fingerprint and dtype of a backbone, without loading it."""
    if isinstance(backbone, Backbone):
        return Weights(backbone.name, backbone.fingerprint, weights_dtype(backbone))
    return Weights(str(backbone), weights_fingerprint(backbone), dtype)


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
    answer = _answer_length(task, backbone, chosen.label_scoring, chosen.answer_tokens)
    lengths = (chosen.length, 0, answer)
    max_tokens = resolve_max_tokens(options.max_tokens, backbone, task, *lengths)
    return dataclasses.replace(chosen, max_tokens=max_tokens)


def resolve_max_tokens(
    max_tokens: int | None,
    backbone: Backbone,
    task: Task,
    prompt_rows: int,
    first_position: int = 0,
    answer_tokens: int = 0,
) -> int:
    """Return the longest text in tokens: by default what fits, with what is read of an answer."""
    lengths = (first_position, answer_tokens)
    if max_tokens is None:
        choice = {**PAPER_CHOICES, **_choices(task), **backbone.defaults}["max_tokens"]
        max_tokens = max(1, min(choice, longest_text(backbone, prompt_rows, *lengths)))
    check_lengths(backbone, prompt_rows, max_tokens, *lengths)
    return max_tokens


def _answer_length(
    task: Task, backbone: Backbone, label_scoring: str | None, answer_tokens: int | None
) -> int:
    """Return how many tokens of an answer are read behind the text."""
    if task.is_generative:
        return answer_tokens or task.answer_tokens or 0
    if backbone.layout != "decoder" or label_scoring == "first_token":
        return 0
    words = label_words(task, backbone.tokenizer, backbone.model_type, backbone.layout)
    # The last token of a label word is scored, but not read.
    return max(len(token_ids) - 1 for of in words.token_ids for token_ids in of)


def _choices(task: Task) -> dict[str, Any]:
    return {} if task.max_tokens is None else {"max_tokens": task.max_tokens}
