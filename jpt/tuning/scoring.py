"""Scoring a prompt over every row of a split, whatever the batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from scipy.special import log_softmax

from jpt.data.batches import evaluation_batches
from jpt.data.encode import EncodedSplit
from jpt.mesh import own_rows, place_batch, replicated
from jpt.processes import process_count
from jpt.tasks.metrics import compute_measures
from jpt.tasks.text_metrics import Written
from jpt.tuning.losses import Answer, label_scores
from jpt.tuning.neuron_mask import NeuronMask
from jpt.tuning.pieces import Batching, Piece, plan_pieces
from jpt.types import Batch, Parameters


@dataclass(frozen=True)
class Score:
    """How well a prompt does on one split.

    Attributes:
        metric: name of the measure that decides.
        value: the measure, between 0 and 1 (Matthews: -1 and 1).
        loss: mean cross-entropy over the labels; of written answers, of a token.
        rows: how many rows were scored.
        majority: share of the most frequent class, what a constant answer would reach; None where
            the answer is written.
        counts: how often each label was answered.
        predictions: the answered class of each row, in the split's order, or the written text.
        measures: every measure that fits the task.
        log_probs: logarithm of each label's share, by row.
        written: what was written and what should have been, by row.
    """

    metric: str
    value: float
    loss: float
    rows: int
    majority: float | None
    counts: dict[str, int]
    predictions: Int[np.ndarray, "N"] | tuple[str, ...]
    measures: dict[str, float] = field(default_factory=dict)
    log_probs: Float[np.ndarray, "N C"] | None = field(default=None, repr=False)
    written: tuple[Written, ...] | None = field(default=None, repr=False)

    def summary(self) -> dict[str, Any]:
        """Gives the score without the predictions, ready for JSON."""
        by_class = {} if self.written else {"majority": self.majority, "counts": self.counts}
        return {
            self.metric: self.value,
            "loss": self.loss,
            "rows": self.rows,
            **by_class,
            "measures": self.measures,
        }

    @property
    def warning(self) -> str | None:
        """Says so when every row was answered alike, the commonest way of not learning."""
        if self.written is not None:
            answered = sorted(set(self.predictions))
            alike = len(answered) == 1 and self.rows > 1
        else:
            answered = [label for label, count in self.counts.items() if count]
            alike = len(answered) == 1 and len(self.counts) > 1
        if not alike:
            return None
        return f"all {self.rows} rows were answered '{answered[0]}': nothing is learnt yet"


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
    n_words = 0 if answer.pieces is None else answer.pieces.size
    pieces = plan_pieces(module.config, prompts, split, batching, n_words, mesh)
    whole = mesh if process_count() > 1 else None
    pending: tuple[np.ndarray, list[Array]] | None = None
    for rows, batch in placed_batches(split, batching, mesh):
        given = (batch, answer, neuron_mask, whole)
        scores = [_score_step(module, params, piece.values, *given) for piece in pieces]
        # One batch behind, so that the device computes while the host copies.
        _collect(logits, pieces, pending)
        pending = (rows, scores)
    _collect(logits, pieces, pending)
    return logits


def _collect(
    logits: Float[np.ndarray, "K N C"],
    pieces: Sequence[Piece],
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


def placed_batches(
    split: EncodedSplit, batching: Batching, mesh: Mesh | None
) -> Iterator[tuple[Int[np.ndarray, "N"], Batch]]:
    """Goes through all rows of a split once; a process reads the rows of its own part."""
    size = batching.rows_at_once(mesh)
    own = None if mesh is None else own_rows(mesh, size)
    shape = (size, batching.max_tokens, batching.pad)
    for rows, batch in evaluation_batches(split, *shape, own):
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
