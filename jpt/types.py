"""Notation, array aliases and the records that several rooms share.

Axes: B rows of a batch, T text tokens, P prompt tokens, S = P + T positions (one more in encoders,
whose first position is the mask), D width, H heads, L layers, F neurons of a feed-forward layer,
V vocabulary, C labels, W label words, A tokens of an answer, K prompts in a bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32

Parameters = dict[str, Any]
"""Nested dictionary of arrays: the frozen weights of a backbone."""


class Batch(NamedTuple):
    """Rows of text ready for a model, padded on the right to one length.

    Attributes:
        tokens: Token ids of the text, special tokens included.
        lengths: Number of text tokens in each row.
        labels: Class of each row, an index into the task's labels; 0 in generative tasks.
        weights: 1 for a real row, 0 for a row that only fills the batch.
        answers: Token ids of the answers to generate, padded on the right; None with labels.
        answer_lengths: Number of answer tokens in each row.
        packed_index: In a packed batch, the positions of the real tokens in the flattened rows of
            each of G groups; unused entries are one past the end. None computes padding too.
    """

    tokens: Int32[np.ndarray, "B T"]
    lengths: Int32[np.ndarray, "B"]
    labels: Int32[np.ndarray, "B"]
    weights: Float32[np.ndarray, "B"]
    answers: Int32[np.ndarray, "B A"] | None = None
    answer_lengths: Int32[np.ndarray, "B"] | None = None
    packed_index: Int32[np.ndarray, "G N"] | None = None


@dataclass(frozen=True)
class Scoring:
    """What a score depends on besides the prompt and the rows.

    Attributes:
        template: Segments of the text, with ``{field}``.
        label_words: Label words of each label; empty in generative tasks.
        label_ids: Their token ids, in the same order.
        max_tokens: Longest text in tokens, special tokens included.
        label_scoring: ``"phrase"`` or ``"first_token"``.
        answer_tokens: Longest generated answer in tokens; None with labels.
        fingerprint: Short hash of the backbone's weight files; None if it has none.
        dtype: Dtype of weights and matrix products.
        split: Split of the score in the card.
    """

    template: tuple[str, ...]
    label_words: dict[str, tuple[str, ...]]
    label_ids: dict[str, tuple[tuple[int, ...], ...]]
    max_tokens: int
    label_scoring: str
    answer_tokens: int | None = None
    fingerprint: str | None = None
    dtype: str = "float32"
    split: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class PromptCard:
    """Origin of a prompt, stored in its file.

    Attributes:
        backbone: Name of the model it was tuned on.
        task: Name of the task it was tuned for, with any ``builtin/`` prefix.
        task_type: Type of that task, for instance ``"sentiment"``.
        layout: Where it stands in the input: ``"encoder"``, ``"encoder_decoder"`` or ``"decoder"``.
        init: Initialisation, for instance ``"random"``.
        seed: Random seed of its run.
        steps: Step at which these values were saved.
        score: Validation score, between 0 and 1.
        metric: Name of that score.
        source: Origin of a prompt that was not tuned here.
        jpt_version: Version that wrote it.
        first_position: Position of the first text token if it is not the model's own (imported
            BERT prompts: 1).
        scoring: Settings under which it was tuned and scored; the defaults of every command that
            scores it on its own task.
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
    scoring: Scoring | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set, ready for JSON."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        if self.scoring is not None:
            found["scoring"] = self.scoring.to_json()
        return found


@dataclass(frozen=True)
class Prompt:
    """Soft prompt: trained vectors in front of the input of a frozen language model.

    Attributes:
        values: One row per virtual token.
        card: Origin of the prompt.
        unused_row: Row 0 of an imported encoder prompt, which its model never read.
    """

    values: Float32[np.ndarray, "P D"]
    card: PromptCard
    unused_row: Float32[np.ndarray, "1 D"] | None = field(default=None)


@dataclass(frozen=True)
class TransferMatrix:
    """Zero-shot scores of every prompt on every task.

    Attributes:
        targets: Names of the tasks, without ``builtin/``; the rows.
        prompts: Names of the prompts; the columns.
        values: Scores; NaN for pairs that were not scored.
        metrics: Metric of each target.
        chance: Chance level of each target's metric, NaN if unknown; None if none is known.
        errors: Standard errors of the scores, likewise.
    """

    targets: tuple[str, ...]
    prompts: tuple[str, ...]
    values: Float64[np.ndarray, "N K"]
    metrics: tuple[str, ...]
    chance: Float64[np.ndarray, "N"] | None = None
    errors: Float64[np.ndarray, "N K"] | None = None


@dataclass(frozen=True)
class Activations:
    """Activations of the feed-forward neurons of every layer for each prompt.

    Attributes:
        names: Names of the prompts.
        values: Activations after the non-linearity, at the answer position; for a probe on text,
            their means over its rows.
        rates: For a probe on text, the share of its rows in which a neuron is above 0.
        cka: For a probe on text, the similarity (CKA) of its rows under each pair of
            prompts, by layer.
        probe: Input of the probe: ``{"kind": "start"}`` for prompt and start token alone,
            ``{"kind": "text", "task": ..., "rows": ..., ...}`` for text of a task.
    """

    names: tuple[str, ...]
    values: Float32[np.ndarray, "K L F"]
    rates: Float32[np.ndarray, "K L F"] | None = None
    cka: Float64[np.ndarray, "L K K"] | None = None
    probe: dict[str, Any] = field(default_factory=lambda: {"kind": "start"})


@dataclass(frozen=True)
class Score:
    """Score of a prompt on one split.

    Attributes:
        metric: Name of the task's main metric.
        value: Its value, between 0 and 1 (Matthews: -1 and 1).
        loss: Mean cross-entropy over the labels; per token in generative tasks.
        rows: Number of scored rows.
        majority: Share of the most frequent class; None in generative tasks.
        counts: Number of predictions of each label.
        predictions: Predicted class, or generated text, of each row in the split's order.
        measures: Values of all metrics that apply to the task.
        log_probs: Log-probability of each label, by row.
        generated: Generated and reference answers, by row.
        notes: Differences from how the prompt was tuned.
        chance: Score of the best constant prediction; 0 for Matthews correlation and in generative
            tasks.
        standard_error: Standard error of the value, over the sampling of rows.
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
    generated: tuple[Generation, ...] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    chance: float | None = None
    standard_error: float | None = None

    def summary(self) -> dict[str, Any]:
        """Return the score without the predictions, ready for JSON."""
        by_class = {} if self.generated else {"majority": self.majority, "counts": self.counts}
        return {
            self.metric: self.value,
            "loss": self.loss,
            "rows": self.rows,
            **by_class,
            "chance": self.chance,
            "standard_error": self.standard_error,
            "measures": self.measures,
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    @property
    def warning(self) -> str | None:
        """The fact that all rows get the same prediction, unless it is right."""
        if self.generated is not None:
            answers, choices = sorted(set(self.predictions)), self.rows
        else:
            answers = [label for label, count in self.counts.items() if count]
            choices = len(self.counts)
        is_right = self.measures.get("accuracy") == 1  # all rows have that label
        if len(answers) != 1 or choices < 2 or self.rows < 2 or is_right:
            return None
        return f"all {self.rows} rows get the prediction '{answers[0]}'"


class Generation(NamedTuple):
    """Generated answer of one row and its references, as text and as tokens for BLEU.

    The tokens are without special tokens and cut to the task's answer length.
    """

    prediction: str
    references: tuple[str, ...]
    prediction_tokens: tuple[int, ...]
    reference_tokens: tuple[tuple[int, ...], ...]


Data = str | Path | Mapping[str, Iterable[Mapping[str, Any]]]
"""Rows of a task: a folder of files, or the rows themselves by split."""
