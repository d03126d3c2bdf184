"""How a projector is built, trained and measured: every option, its default and its check."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jpt.config import (
    DTYPES,
    LABEL_SCORING,
    REMAT,
    TuneOptions,
    check_choice,
    check_counts,
)
from jpt.errors import InputError, unknown_name

OBJECTIVES = ("task", "distance")
ACTIVATIONS = ("leaky_relu", "tanh")
BASELINES = ("untrained", "least_squares", "relative")
"""Ways to a prompt of the target that need no training."""

ANCHORS = 512

# Paper's code: Adam 1e-4 for the distance, AdamW 5e-3 for tasks, batches of 16. It trained for up
# to 100,000 steps and 1,024 epochs; a number of steps has to be chosen here.
LEARNING_RATES = {"distance": 1e-4, "task": 5e-3}
STEPS = {"distance": 2000, "task": 1000}
_COUNTS = ("bottleneck", "length", "steps", "batch_size", "max_tokens", "answer_tokens")
_MORE_COUNTS = ("eval_every", "checkpoint_every", "eval_batch_size")


@dataclass(frozen=True)
class ProjectorOptions:
    """How a projector is built and trained. What is ``None`` is chosen by `settle`.

    Attributes:
        bottleneck: neurons between the two linear maps. Paper: 768.
        activation: ``leaky_relu`` or, as in the paper towards roberta-large, ``tanh``.
        layer_norm: whether each row is normalised; by default yes, but not in the per-token form.
        rescale: whether normalised rows are brought to the mean norm of the target's word
            embeddings (see `jpt.transfer.projector.Projector`).
        per_token: one linear map for every row; source and target have prompts of one length.
        length: P of the target; by default that of its own prompts, else that of the source's.
        steps: optimizer steps; by default 1000 for tasks, 2000 for the distance.
        batch_size: rows a step; with the distance objective, tasks a step. Paper: 16.
        learning_rate: constant rate; by default the paper's 1e-4 for the distance, and for tasks
            the target's own choice (built-in ones have one), else the paper's 5e-3.
        max_tokens: longest text in tokens; the target backbone's choice.
        answer_tokens: longest written answer in tokens; the task's choice.
        label_scoring: ``phrase`` or ``first_piece``, as in `jpt.config.TuneOptions`.
        seed: of the first weights, and of the order of tasks and rows.
        eval_every: steps between two scorings of the projected prompts.
        checkpoint_every: steps between two saves of the whole state.
        eval_batch_size: most rows scored at once; changes speed, never a number.
        dtype: ``float32`` or ``bfloat16`` for the target's weights; the projector is float32.
        remat: what the target's layers keep for the way back.
        mesh: devices by axis, for instance ``data:4``.

    Example:
        >>> ProjectorOptions(steps=100).settle("task").eval_every
        25
    """

    bottleneck: int = 768
    activation: str = "leaky_relu"
    layer_norm: bool | None = None
    rescale: bool = False
    per_token: bool = False
    length: int | None = None
    steps: int | None = None
    batch_size: int = 16
    learning_rate: float | None = None
    max_tokens: int | None = None
    answer_tokens: int | None = None
    label_scoring: str = "phrase"
    seed: int = 0
    eval_every: int | None = None
    checkpoint_every: int | None = None
    eval_batch_size: int = 64
    dtype: str = "float32"
    remat: str = "dots"
    mesh: str | None = None

    def __post_init__(self) -> None:
        """Checks every value that is set."""
        check_counts(**{name: getattr(self, name) for name in (*_COUNTS, *_MORE_COUNTS)})
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("remat", self.remat, REMAT)
        check_choice("label_scoring", self.label_scoring, LABEL_SCORING)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; give a whole number from 0 to {2**32 - 1}")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise InputError(f"learning_rate is {rate}; give a positive number, for instance 5e-3")
        if self.per_token and self.layer_norm:
            raise InputError("a per-token projector has no layer_norm; leave one of the two out")
        if self.rescale and (self.per_token or self.layer_norm is False):
            raise InputError(
                "rescale sets the norm of normalised rows, and this projector normalises none; "
                "leave rescale out, or keep layer_norm and the form that is not per token"
            )

    def settle(self, objective: str) -> ProjectorOptions:
        """Makes the choices that an objective makes; length and rate are the target's.

        Args:
            objective: ``task`` or ``distance``.

        Returns:
            The options.
        """
        steps = self.steps or STEPS[objective]
        every = self.eval_every or min(steps, max(25, math.ceil(steps / 10)))
        normal = self.layer_norm if self.layer_norm is not None else not self.per_token
        return dataclasses.replace(
            self,
            steps=steps,
            layer_norm=normal,
            eval_every=every,
            checkpoint_every=self.checkpoint_every or every,
        )

    def with_rate(self, objective: str, choices: Mapping[str, Any]) -> ProjectorOptions:
        """Settles the learning rate.

        Args:
            objective: ``task`` or ``distance``.
            choices: of the target; ``projector_learning_rate`` counts, for tasks.

        Returns:
            The options.

        Example:
            >>> ProjectorOptions().with_rate("task", {}).learning_rate
            0.005
        """
        chosen = choices.get("projector_learning_rate") if objective == "task" else None
        rate = self.learning_rate or chosen or LEARNING_RATES[objective]
        return dataclasses.replace(self, learning_rate=rate)

    def feeding(self) -> TuneOptions:
        """Gives what concerns the rows of a task and how the target reads them."""
        return TuneOptions(
            steps=self.steps,
            batch_size=self.batch_size,
            length=self.length,
            max_tokens=self.max_tokens,
            answer_tokens=self.answer_tokens,
            label_scoring=self.label_scoring,
            seed=self.seed,
            eval_batch_size=self.eval_batch_size,
            dtype=self.dtype,
            remat=self.remat,
            mesh=self.mesh,
        )


@dataclass(frozen=True)
class EvaluationOptions:
    """How projected prompts are measured.

    Attributes:
        methods: of ``untrained``, ``least_squares`` and ``relative``; by default those that keep to
            the lengths at hand.
        anchors: words that ``relative`` holds rows against.
        length: P of the target where no projector and no own prompts tell it.
        random: whether a random prompt, as tuning starts from, is scored too.
        warm_start: column whose projected prompts tuning is started from, beside a random start of
            as many steps.
        warm_steps: of those two.
        split: that is scored; a task without it is scored on validation.
        seed: of the random prompt, the untrained projector, and tuning.
        max_tokens: longest text in tokens; by default the target's own choice.
        eval_batch_size: rows at once; changes speed, never a number.
        dtype: of the target's weights and matrix products.
        mesh: devices by axis.

    Example:
        >>> EvaluationOptions().split
        'test'
    """

    methods: tuple[str, ...] | None = None
    anchors: int = ANCHORS
    length: int | None = None
    random: bool = True
    warm_start: str | None = None
    warm_steps: int = 50
    split: str = "test"
    seed: int = 0
    max_tokens: int | None = None
    eval_batch_size: int = 64
    dtype: str = "float32"
    mesh: str | None = None

    def __post_init__(self) -> None:
        """Checks every value that is set."""
        counts = ("anchors", "length", "warm_steps", "max_tokens", "eval_batch_size")
        check_counts(**{name: getattr(self, name) for name in counts})
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("split", self.split, ("train", "validation", "test"))
        for name in self.methods or ():
            if name not in BASELINES:
                raise unknown_name("method", name, BASELINES)
