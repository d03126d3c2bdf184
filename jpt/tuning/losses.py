"""Training objectives, and neuron masks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jpt.backbones.layers import AnswerScores
from jpt.backbones.registry import Backbone
from jpt.config import check_choice
from jpt.errors import InputError
from jpt.tasks.task import Task
from jpt.types import Batch, Parameters

# --- Neurons that are made silent while a prompt is scored

STACKS = ("decoder", "encoder")


@struct.dataclass
class NeuronMask:
    """What multiplies the neurons before they enter the second matrix of their layer."""

    values: Float[Array, "L F"]  # 0 where a neuron is silent, 1 elsewhere
    # ``"decoder"`` or ``"encoder"`` of a T5; its decoder by default
    stack: str | None = struct.field(pytree_node=False, default=None)


def mask_options(mask: NeuronMask | None) -> dict[str, Any]:
    """Gives the arguments of a forward pass that stand for a mask."""
    if mask is None:
        return {}
    return {"neuron_mask": mask.values, **({"neuron_stack": mask.stack} if mask.stack else {})}


def neuron_shape(backbone: Backbone, stack: str | None = None) -> tuple[int, int]:
    """Says how many neurons a backbone has."""
    if stack is not None:
        check_choice("stack", stack, STACKS)
        if backbone.layout != "encoder_decoder":
            raise InputError(f"stack is '{stack}', but {backbone.name} has one stack; leave it out")
    config = backbone.config
    return config.encoder_layers if stack == "encoder" else config.layers, config.neurons


def check_neuron_mask(mask: NeuronMask, backbone: Backbone, task: Task) -> None:
    """Refuses a mask that a backbone or a task has no use for."""
    expected = neuron_shape(backbone, mask.stack)
    if tuple(mask.values.shape) != expected:
        shape = " x ".join(map(str, mask.values.shape))
        raise InputError(
            f"the neuron mask is {shape}, but {backbone.name} has {expected[0]} layers of"
            f" {expected[1]} neurons; make it from activations of this backbone (and stack)"
        )
    if task.is_generative:
        raise InputError(
            f"the answers of task {task.name} are written, and neurons are masked only where"
            " labels are scored so far; leave this task out"
        )


# --- What a prompt is tuned to do: score the right label above the others, or write the answer

NO_TOKEN = -1
"""What stands behind the last piece of a word."""

Prompts = Float[Array, "P D"] | Float[Array, "B P D"] | None


@struct.dataclass
class Answer:
    """Which words stand for the labels; arrays, so that tasks share a compiled program."""

    # vocabulary id of each word's first piece; where nothing else is said, one word a label, in the
    # order of the classes. Empty where the answer is written
    label_ids: Int[Array, "W"]
    # all pieces of each word, `NO_TOKEN` behind the last one; None where the first piece tells a
    # word
    label_tokens: Int[Array, "W A"] | None = None
    # the class that each word stands for; None where each class has one word
    owners: Int[Array, "W"] | None = None
    n_labels: int = struct.field(pytree_node=False, default=0)  # C, where there are owners
    # position of the text's first token (imported BERT prompts: 1)
    first_position: int = struct.field(pytree_node=False, default=0)
    # how many of the words are the task's own, where others only fill a bank of tasks up
    n_valid: Int[Array, ""] | None = None


def answer_loss(
    module: nn.Module,
    params: Parameters,
    prompt: Prompts,
    batch: Batch,
    answer: Answer,
    objective: str = "labels",
    dropout_key: Array | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Gives the loss of a batch and the share of right answers."""
    inputs = (module, params, prompt, batch)
    if batch.answers is not None:
        return generation_loss(*inputs, dropout_key)
    if objective == "labels":
        scores = label_scores(*inputs, answer, dropout_key)
        return label_loss(scores, batch.labels, batch.weights)
    if answer.label_tokens is None:
        logits = label_logits(*inputs, answer, dropout_key, all_words=True)
        words = answer.label_ids[_first_words(answer)]
        loss = vocabulary_loss(logits, words, batch.labels, batch.weights)
        scores = _by_label(logits[:, answer.label_ids], answer)
    else:
        log_probs, is_token = _piece_scores(*inputs, answer, dropout_key)
        right = _first_words(answer)[batch.labels]  # [B]
        rows = jnp.arange(right.shape[0])
        weights = is_token[right].astype(jnp.float32) * batch.weights[:, None]
        loss = -(log_probs[rows, right] * weights).sum() / weights.sum()
        scores = _by_label(log_probs.sum(-1), answer)
    return loss, label_loss(scores, batch.labels, batch.weights)[1]


def label_scores(
    module: nn.Module,
    params: Parameters,
    prompt: Prompts,
    batch: Batch,
    answer: Answer,
    dropout_key: Array | None = None,
    neuron_mask: NeuronMask | None = None,
) -> Float[Array, "B C"]:
    """Scores the labels of every row of a batch."""
    # A word of several pieces has the logarithm of the probability of all its pieces, each given
    # those before it; a label of several words that of any of them.
    inputs = (module, params, prompt, batch, answer, dropout_key)
    if answer.label_tokens is None:
        return _by_label(label_logits(*inputs, neuron_mask=neuron_mask), answer)
    return _by_label(_piece_scores(*inputs, neuron_mask)[0].sum(-1), answer)


def _piece_scores(
    module: nn.Module,
    params: Parameters,
    prompt: Prompts,
    batch: Batch,
    answer: Answer,
    dropout_key: Array | None,
    neuron_mask: NeuronMask | None = None,
) -> tuple[Float[Array, "B W A"], Bool[Array, "W A"]]:
    """The logarithm of each piece's probability, 0 where no piece is; and where pieces are."""
    is_token = answer.label_tokens != NO_TOKEN
    label_tokens = jnp.where(is_token, answer.label_tokens, 0)[None]
    found = _apply(module, params, prompt, batch, label_tokens, dropout_key, neuron_mask)
    log_probs = found.log_probs
    return jnp.where(is_token[None], log_probs, 0.0), is_token


def _apply(
    module: nn.Module,
    params: Parameters,
    prompt: Prompts,
    batch: Batch,
    answers: Int[Array, "R W A"],
    dropout_key: Array | None,
    neuron_mask: NeuronMask | None = None,
) -> AnswerScores:
    options = {"rngs": None if dropout_key is None else {"dropout": dropout_key}}
    options |= mask_options(neuron_mask) | {"packed_index": batch.packed_index}
    inputs = (batch.tokens, batch.lengths, prompt, answers)
    return module.apply({"params": params}, *inputs, method="score_answers", **options)


def _by_label(scores: Float[Array, "B W"], answer: Answer) -> Float[Array, "B C"]:
    """Puts the words of one label together."""
    if answer.owners is None:
        if answer.n_valid is None:
            return scores
        return jnp.where(jnp.arange(scores.shape[1])[None] < answer.n_valid, scores, -jnp.inf)
    belongs = answer.owners[None] == jnp.arange(answer.n_labels)[:, None]  # [C, W]
    kept = jnp.where(belongs[None], scores[:, None], -jnp.inf)
    return jax.nn.logsumexp(kept, axis=-1)


def _first_words(answer: Answer) -> Int[Array, "C"]:
    """The number of each label's first word, which is the one that is trained to be written."""
    if answer.owners is None:
        return jnp.arange(answer.label_ids.shape[0])
    belongs = answer.owners[None] == jnp.arange(answer.n_labels)[:, None]
    return jnp.argmax(belongs, axis=1)


def generation_loss(
    module: nn.Module,
    params: Parameters,
    prompt: Prompts,
    batch: Batch,
    dropout_key: Array | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Gives the loss of answers to be written, and the share of tokens that would be written."""
    loss, right, total = generation_totals(module, params, prompt, batch, dropout_key)
    return loss / total, right / total


def generation_totals(
    module: nn.Module,
    params: Parameters,
    prompt: Prompts,
    batch: Batch,
    dropout_key: Array | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Adds up over the answer tokens of the weighted rows of a batch."""
    found = _apply(module, params, prompt, batch, batch.answers[:, None], dropout_key)
    packed_index = jnp.arange(batch.answers.shape[1])[None]
    is_answer = (packed_index < batch.answer_lengths[:, None]).astype(jnp.float32)
    weights = is_answer * batch.weights[:, None]
    right = found.is_best[:, 0].astype(jnp.float32)
    return -(found.log_probs[:, 0] * weights).sum(), (right * weights).sum(), weights.sum()


def label_logits(
    module: nn.Module,
    params: Parameters,
    prompt: Prompts,
    batch: Batch,
    answer: Answer,
    dropout_key: Array | None = None,
    all_words: bool = False,
    neuron_mask: NeuronMask | None = None,
) -> Float[Array, "B W"]:
    """Scores the first pieces of the label words of every row of a batch."""
    # Only encoders number their text apart from the prompt.
    start = {"first_position": answer.first_position} if answer.first_position else {}
    return module.apply(
        {"params": params},
        batch.tokens,
        batch.lengths,
        prompt,
        label_ids=None if all_words else answer.label_ids,
        packed_index=batch.packed_index,
        **start,
        **mask_options(neuron_mask),
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    ).logits


def vocabulary_loss(
    logits: Float[Array, "B V"],
    words: Int[Array, "C"],
    labels: Int[Array, "B"],
    weights: Float[Array, "B"],
) -> Float[Array, ""]:
    """Gives cross-entropy of the right label word over all words."""
    # Paper 1.0: what T5 is trained on.
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, words[labels])
    return (losses * weights).sum() / weights.sum()


def label_loss(
    logits: Float[Array, "B C"], labels: Int[Array, "B"], weights: Float[Array, "B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Gives cross-entropy over the label words and the share of right answers."""
    # Paper 1.0: softmax over the label words' logits only, not over the vocabulary.
    total = weights.sum()
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return (losses * weights).sum() / total, (right * weights).sum() / total


def step_key(seed: int, step: Int[Array, ""]) -> Array:
    """Gives the key of one step's dropout: a function of seed and step, so nothing is stored."""
    return jax.random.fold_in(jax.random.key(seed), step)
