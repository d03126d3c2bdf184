"""What a prompt is tuned to do: score the right label word above the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from jpt.types import Batch, Parameters


@struct.dataclass
class Answer:
    """How the answer is read from a model; arrays, so that tasks share a compiled program.

    Attributes:
        label_ids: vocabulary ids of the label words, in the order of the classes.
        first_position: position of the text's first token (imported BERT prompts: 1).
    """

    label_ids: Int[Array, "C"]
    first_position: int = struct.field(pytree_node=False, default=0)


def label_logits(
    module: nn.Module,
    params: Parameters,
    prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
    batch: Batch,
    answer: Answer,
    dropout_key: Array | None = None,
    all_words: bool = False,
) -> Float[Array, "B C"]:
    """Scores the label words of every row of a batch.

    Args:
        module: the frozen model.
        params: its weights.
        prompt: one prompt for all rows, one a row, or none.
        batch: the rows.
        answer: which words are scored.
        dropout_key: of this step's dropout, where the module has any.
        all_words: score the whole vocabulary instead.

    Returns:
        The logits in float32.

    Example:
        >>> import numpy as np
        >>> from jpt.testing import tiny_batch, tiny_encoder
        >>> module, params = tiny_encoder()
        >>> label_logits(module, params, None, tiny_batch(), Answer(jnp.array([3, 4]))).shape
        (2, 2)
    """
    # Only encoders number their text apart from the prompt.
    start = {"first_position": answer.first_position} if answer.first_position else {}
    return module.apply(
        {"params": params},
        batch.tokens,
        batch.lengths,
        prompt,
        label_ids=None if all_words else answer.label_ids,
        **start,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    ).logits


def vocabulary_loss(
    logits: Float[Array, "B V"],
    label_ids: Int[Array, "C"],
    labels: Int[Array, "B"],
    weights: Float[Array, "B"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Gives cross-entropy of the right label word over all words, and the share of right answers.

    Paper 1.0: what T5 is trained on. An answer is right when the right label word has the highest
    score of the label words.

    Args:
        logits: scores of the whole vocabulary.
        label_ids: ids of the label words.
        labels: the right class of each row.
        weights: 0 for rows that only fill the batch.

    Returns:
        Mean loss and accuracy over the weighted rows.

    Example:
        >>> loss, _ = vocabulary_loss(
        ...     jnp.zeros((1, 4)), jnp.array([3, 1]), jnp.array([0]), jnp.ones(1)
        ... )
        >>> round(float(loss), 4)
        1.3863
    """
    words = label_ids[labels]  # [C] -> [B]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, words)
    _, accuracy = label_loss(logits[:, label_ids], labels, weights)
    return (losses * weights).sum() / weights.sum(), accuracy


def label_loss(
    logits: Float[Array, "B C"], labels: Int[Array, "B"], weights: Float[Array, "B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Gives cross-entropy over the label words and the share of right answers.

    Paper 1.0: softmax over the label words' logits only, not over the vocabulary.

    Args:
        logits: scores of the label words.
        labels: the right class of each row.
        weights: 0 for rows that only fill the batch.

    Returns:
        Mean loss and accuracy over the weighted rows.

    Example:
        >>> loss, accuracy = label_loss(jnp.zeros((1, 2)), jnp.array([0]), jnp.ones(1))
        >>> round(float(loss), 4), float(accuracy)
        (0.6931, 1.0)
    """
    total = weights.sum()
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return (losses * weights).sum() / total, (right * weights).sum() / total


def step_key(seed: int, step: Int[Array, ""]) -> Array:
    """Gives the key of one step's dropout: a function of seed and step, so nothing is stored.

    Args:
        seed: of the run.
        step: number of the step.

    Returns:
        The key.

    Example:
        >>> bool((step_key(0, jnp.int32(1)) == step_key(0, jnp.int32(1))))
        True
    """
    return jax.random.fold_in(jax.random.key(seed), step)
