"""Notation, array aliases and the small records that travel between the rooms; no logic.

The same letters stand everywhere for the same axes:

B rows of a batch, T text tokens, P prompt rows, S = P + T positions (one more in encoders, whose
first position is the mask), D width, H heads, L layers, F neurons of one feed-forward layer,
V vocabulary, C labels, W words that stand for them, A tokens of an answer, K prompts in a bank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32

Parameters = dict[str, Any]
"""A nested dictionary of arrays: the frozen weights of a backbone."""


class Batch(NamedTuple):
    """Rows of text ready for a model, padded on the right to one length.

    Attributes:
        tokens: ids of the text's pieces, special pieces included.
        lengths: how many of a row's tokens are text.
        labels: the row's class, an index into the task's labels; 0 where the answer is written.
        weights: 1 for a real row, 0 for a row that only fills the batch.
        answers: ids of the answers to be written, padded on the right; None where there are labels.
        answer_lengths: how many of a row's answer tokens are answer.
        places: of a packed batch, the positions of the real tokens, counted through the rows of
            each of G groups; one past the last where nothing stands. None computes padding too.
    """

    tokens: Int32[np.ndarray, "B T"]
    lengths: Int32[np.ndarray, "B"]
    labels: Int32[np.ndarray, "B"]
    weights: Float32[np.ndarray, "B"]
    answers: Int32[np.ndarray, "B A"] | None = None
    answer_lengths: Int32[np.ndarray, "B"] | None = None
    packed_index: Int32[np.ndarray, "G N"] | None = None


@dataclass(frozen=True)
class PromptCard:
    """Where a prompt comes from: written into its file, read by every later step.

    Attributes:
        backbone: name of the model it was tuned on.
        task: name of the task it was tuned for, with ``builtin/`` where it has that.
        task_type: the type of that task, for instance ``"sentiment"``.
        layout: where its rows stand; ``"encoder"``, ``"encoder_decoder"`` or ``"decoder"``.
        init: how it started, for instance ``"random"``.
        seed: the seed of its run.
        steps: after how many steps these values were taken.
        score: its score on validation, between 0 and 1.
        metric: the name of that score.
        source: where it came from when it was not tuned here.
        jpt_version: the version that wrote it.
        first_position: the position of the text's first token where it is not the model's own
            (imported BERT prompts: 1).
    """

    backbone: str
    task: str
    task_type: str | None = None
    layout: str = "encoder"
    init: str = "random"
    seed: int | None = None
    steps: int | None = None
    score: float | None = None
    metric: str | None = None
    source: str | None = None
    jpt_version: str | None = None
    first_position: int | None = None


@dataclass(frozen=True)
class Prompt:
    """A soft prompt: trained vectors in front of the input of a frozen language model.

    Attributes:
        values: one row per virtual token.
        card: where it comes from.
        unused_row: the row 0 of an imported encoder prompt, which its model never read.
    """

    values: Float32[np.ndarray, "P D"]
    card: PromptCard
    unused_row: Float32[np.ndarray, "1 D"] | None = field(default=None)


@dataclass(frozen=True)
class TransferMatrix:
    """What every prompt scored on every task, zero-shot.

    Attributes:
        targets: names of the tasks, without ``builtin/``; the rows.
        prompts: names of the prompts; the columns.
        values: the scores; NaN where a pair was not measured.
        metrics: the measure of each target.
    """

    targets: tuple[str, ...]
    prompts: tuple[str, ...]
    values: Float64[np.ndarray, "N K"]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Activations:
    """What the neurons of every feed-forward layer answer to each prompt.

    Attributes:
        names: names of the prompts.
        values: activations after the non-linearity, at the answer position; of a probe on text
            their means over its rows.
        rates: of a probe on text, the share of its rows in which a neuron is above 0.
        cka: of a probe on text, how alike the rows look behind each two prompts, in each layer.
        probe: what was read: ``{"kind": "start"}`` for the prompt and the start token alone,
            ``{"kind": "text", "task": ..., "rows": ..., ...}`` for text of a task.
    """

    names: tuple[str, ...]
    values: Float32[np.ndarray, "K L F"]
    rates: Float32[np.ndarray, "K L F"] | None = None
    cka: Float64[np.ndarray, "L K K"] | None = None
    probe: dict[str, Any] = field(default_factory=lambda: {"kind": "start"})


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
    written: tuple[Generation, ...] | None = field(default=None, repr=False)

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


class Generation(NamedTuple):
    """What a model wrote for one row and what it should have written."""

    # The pieces are ids of the model's vocabulary without special ones, cut to the answer's length;
    # only BLEU reads them, and only BLEU does not read the texts.

    prediction: str
    references: tuple[str, ...]
    prediction_tokens: tuple[int, ...]
    reference_tokens: tuple[tuple[int, ...], ...]


Data = str | Path | Mapping[str, Iterable[Mapping[str, Any]]]
"""Where the rows of a task are: a folder, or the rows themselves by split."""
