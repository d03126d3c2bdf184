"""Pretraining objectives: masked tokens, the teacher's states, questions at the front."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from batches import QUESTIONS, FrontBatch, PlainBatch
from student import Tensors, encode, vocabulary_logits

EXTRA_WEIGHT = 0.3


def start_heads(width: int, seed: int) -> Tensors:
    """Make the heads at `[CLS]`, which do not ship."""
    random = np.random.default_rng([seed, 7])
    return {
        f"extra.{name}": jnp.asarray(random.normal(0, 0.3 * width**-0.5, (width, 2)), jnp.float32)
        for name in ("order", "relation")
    }


def plain_loss(
    tensors: Tensors, batch: PlainBatch, states: jax.Array, *, heads: int, teacher_weight: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return masked-LM loss and squared error of a linear map to the teacher's states."""
    hidden = encode(tensors, batch.tokens, batch.lengths, heads=heads)
    picked = jnp.take_along_axis(hidden, batch.places[..., None], axis=1)
    losses = _cross_entropy(vocabulary_logits(tensors, picked), batch.targets)
    masked = (losses * batch.weights).sum() / batch.weights.sum()
    real = (jnp.arange(hidden.shape[1])[None] < batch.lengths[:, None]).astype(jnp.float32)
    guess = hidden @ tensors["extra.teacher.weight"].T + tensors["extra.teacher.bias"]
    error = jnp.square(guess - states.astype(jnp.float32)).mean(-1)
    taught = (error * real).sum() / real.sum()
    return masked + teacher_weight * taught, {"masked": masked, "teacher": taught}


def front_loss(
    tensors: Tensors, batch: FrontBatch, *, heads: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss of the answers at the front mask and of two linear heads at `[CLS]`."""
    hidden = encode(tensors, batch.tokens, batch.lengths, batch.front, heads=heads)
    logits = vocabulary_logits(tensors, hidden[:, 0])
    answered = _cross_entropy(logits, batch.answers)
    first = hidden[:, batch.front.shape[1]]  # [CLS]
    order = first @ tensors["extra.order"]
    relation = first @ tensors["extra.relation"]
    extra = _asked(order, batch.order) + _asked(relation, batch.relation)
    right = (logits.argmax(-1) == batch.answers).astype(jnp.float32)
    kinds = {name: _mean(right, batch.kinds == kind) for kind, name in enumerate(QUESTIONS)}
    kinds |= {
        "cls_order": _mean((order.argmax(-1) == batch.order) * 1.0, batch.order >= 0),
        "cls_pair": _mean((relation.argmax(-1) == batch.relation) * 1.0, batch.relation >= 0),
    }
    total = answered.mean() + EXTRA_WEIGHT * extra
    return total, {"answer": answered.mean(), **kinds}


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def _asked(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return _mean(_cross_entropy(logits, jnp.maximum(targets, 0)), targets >= 0)


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    weights = where.astype(jnp.float32)
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1.0)
