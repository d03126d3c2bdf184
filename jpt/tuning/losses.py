"""Training objectives, and neuron masks."""

from __future__ import annotations

from dataclasses import dataclass
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
from jpt.prompts.parametrisations import PLAIN, Parametrisation
from jpt.tasks.task import Task
from jpt.types import Batch, Parameters

# --- Neuron masks

STACKS = ("decoder", "encoder")


@struct.dataclass
class NeuronMask:
    """Factors of the neurons, applied before the second matrix of their layer."""

    values: Float[Array, "L F"]  # 0 for a masked neuron, 1 otherwise
    stack: str | None = struct.field(pytree_node=False, default=None)  # of a T5; default: decoder


def mask_options(mask: NeuronMask | None) -> dict[str, Any]:
    """Return the mask as keyword arguments of a forward pass."""
    if mask is None:
        return {}
    return {"neuron_mask": mask.values, **({"neuron_stack": mask.stack} if mask.stack else {})}


def neuron_shape(backbone: Backbone, stack: str | None = None) -> tuple[int, int]:
    """Return the number of layers and of neurons per layer."""
    if stack is not None:
        check_choice("stack", stack, STACKS)
        if backbone.layout != "encoder_decoder":
            raise InputError(f"stack is '{stack}', but {backbone.name} has one stack; omit it")
    config = backbone.config
    return config.encoder_layers if stack == "encoder" else config.layers, config.neurons


def check_neuron_mask(mask: NeuronMask, backbone: Backbone, task: Task) -> None:
    """Raise InputError if a mask does not fit the backbone, or the task is generative."""
    expected = neuron_shape(backbone, mask.stack)
    if tuple(mask.values.shape) != expected:
        shape = " x ".join(map(str, mask.values.shape))
        raise InputError(
            f"neuron mask: expected {expected[0]} layers x {expected[1]} neurons"
            f" ({backbone.name}), got {shape}; make it from activations of this backbone and stack"
        )
    if task.is_generative:
        raise InputError(
            f"task {task.name}: masking supports classification tasks only, got a generative one;"
            " omit this task"
        )


# --- Training objectives

NO_TOKEN = -1  # padding after the last token of a label word

Prompts = Float[Array, "P D"] | Float[Array, "B P D"] | None


@struct.dataclass
class Answer:
    """Token ids of the label words, as arrays: tasks share a compiled program."""

    label_ids: Int[Array, "W"]  # first token of each label word; empty for a generative task
    # all tokens of each label word, padded with NO_TOKEN; None if the first token is scored alone
    label_tokens: Int[Array, "W A"] | None = None
    owners: Int[Array, "W"] | None = (
        None  # class of each label word; None if words and classes match
    )
    n_labels: int = struct.field(pytree_node=False, default=0)  # C; set with `owners` only
    # position of the text's first token (imported BERT prompts: 1)
    first_position: int = struct.field(pytree_node=False, default=0)
    n_valid: Int[Array, ""] | None = None  # label words that are no padding, in a multi-run group


@dataclass(frozen=True)
class AnswerLoss:
    """Loss of a prompt in front of a frozen model: ``frozen`` is (weights, `Answer`)."""

    module: nn.Module
    objective: str = "labels"
    parametrisation: Parametrisation = PLAIN

    def __call__(
        self, frozen: tuple[Parameters, Answer], params: Any, batch: Batch, key: Array | None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return loss and accuracy of a batch."""
        weights, answer = frozen
        prompt = self.parametrisation.rows(params)
        key = key if getattr(self.module, "dropout_rate", 0.0) else None
        return answer_loss(self.module, weights, prompt, batch, answer, self.objective, key)


def answer_loss(
    module: nn.Module,
    params: Parameters,
    prompt: Prompts,
    batch: Batch,
    answer: Answer,
    objective: str = "labels",
    dropout_key: Array | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the loss of a batch and its accuracy."""
    inputs = (module, params, prompt, batch)
    if batch.answers is not None:
        return generation_loss(*inputs, dropout_key)
    if objective == "labels":
        scores = label_scores(*inputs, answer, dropout_key)
        return label_loss(scores, batch.labels, batch.weights)
    if answer.label_tokens is None:
        logits = label_logits(*inputs, answer, dropout_key, all_words=True)
        label_ids = answer.label_ids[_first_words(answer)]
        loss = vocabulary_loss(logits, label_ids, batch.labels, batch.weights)
        scores = _by_label(logits[:, answer.label_ids], answer)
    else:
        log_probs, is_token = _token_scores(*inputs, answer, dropout_key)
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
    """Score the labels of every row of a batch."""
    # A label word of several tokens has the log-probability of all its tokens, each given those
    # before it; a label of several words that of any of them.
    inputs = (module, params, prompt, batch, answer, dropout_key)
    if answer.label_tokens is None:
        return _by_label(label_logits(*inputs, neuron_mask=neuron_mask), answer)
    return _by_label(_token_scores(*inputs, neuron_mask)[0].sum(-1), answer)


def _token_scores(
    module: nn.Module,
    params: Parameters,
    prompt: Prompts,
    batch: Batch,
    answer: Answer,
    dropout_key: Array | None,
    neuron_mask: NeuronMask | None = None,
) -> tuple[Float[Array, "B W A"], Bool[Array, "W A"]]:
    """Return the log-probability of each token of the label words (0 for padding), and a mask."""
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
    """Combine the scores of the words of each label."""
    if answer.owners is None:
        if answer.n_valid is None:
            return scores
        return jnp.where(jnp.arange(scores.shape[1])[None] < answer.n_valid, scores, -jnp.inf)
    belongs = answer.owners[None] == jnp.arange(answer.n_labels)[:, None]  # [C, W]
    kept = jnp.where(belongs[None], scores[:, None], -jnp.inf)
    return jax.nn.logsumexp(kept, axis=-1)


def _first_words(answer: Answer) -> Int[Array, "C"]:
    """Return the index of each label's first word, the target of the objective `vocabulary`."""
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
    """Return the mean loss over answer tokens, and the share that greedy decoding gets right."""
    loss, right, total = generation_totals(module, params, prompt, batch, dropout_key)
    return loss / total, right / total


def generation_totals(
    module: nn.Module,
    params: Parameters,
    prompt: Prompts,
    batch: Batch,
    dropout_key: Array | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return summed loss, correct tokens and tokens over the weighted answers of a batch."""
    found = _apply(module, params, prompt, batch, batch.answers[:, None], dropout_key)
    position = jnp.arange(batch.answers.shape[1])[None]
    is_answer = (position < batch.answer_lengths[:, None]).astype(jnp.float32)
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
    """Return the logits of the first tokens of the label words."""
    # Only encoders count text positions without the prompt.
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
    label_ids: Int[Array, "C"],
    labels: Int[Array, "B"],
    weights: Float[Array, "B"],
) -> Float[Array, ""]:
    """Return the cross-entropy of the right label word over the vocabulary (paper: T5)."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label_ids[labels])
    return (losses * weights).sum() / weights.sum()


def label_loss(
    logits: Float[Array, "B C"], labels: Int[Array, "B"], weights: Float[Array, "B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the cross-entropy over the label words only (paper: encoders), and the accuracy."""
    total = weights.sum()
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return (losses * weights).sum() / total, (right * weights).sum() / total


def step_key(seed: int, step: Int[Array, ""]) -> Array:
    """Return the dropout key of a step, a function of seed and step: nothing is stored."""
    return jax.random.fold_in(jax.random.key(seed), step)
