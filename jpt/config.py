"""Options of tuning, scoring, transfer, projection, probing, masking and recommendation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from jpt.errors import InputError

DTYPES = ("float32", "bfloat16")
DROPOUT = ("off", "paper")
REMAT = ("dots", "full", "none")
OBJECTIVES = ("labels", "vocabulary")
LABEL_SCORING = ("phrase", "first_piece")
COUNTS = (
    "steps",
    "batch_size",
    "tokens_per_batch",
    "answer_tokens",
    "length",
    "max_tokens",
    "eval_every",
    "checkpoint_every",
    "eval_batch_size",
)
AMOUNTS = {"learning_rate": "1e-3", "clip_norm": "1", "checkpoint_minutes": "10"}
FEWEST_BETWEEN = 25
"""Steps between two scorings of validation, at least, where nothing else is asked for."""


@dataclass(frozen=True)
class TuneOptions:
    """How a prompt is tuned. What is ``None`` is the backbone's own choice (see ``resolve``).

    Attributes:
        steps: optimizer steps.
        batch_size: B, rows a step. Paper: 16.
        tokens_per_batch: instead of so many rows, as many rows of one length as have so many tokens
            with their padding: short rows come in large batches.
        learning_rate: constant rate of AdamW. Paper: 1e-3, on roberta-large 1e-4.
        clip_norm: a gradient of a larger norm is shortened to it. Paper: never.
        length: P, prompt rows. Paper: 100, of which the encoders read 99.
        max_tokens: longest text in tokens, special tokens included. Paper: 128 without them, 384
            where the answer is written.
        answer_tokens: longest written answer in tokens; the task's choice.
        group_by_length: put rows of like lengths into one batch, which saves padding; the paper's
            code does not. Left out, the backbone's choice: built-in ones do.
        seed: of the initial prompt, the order of the rows and dropout.
        init: ``random``, ``vocab``, ``labels``, ``text:WORDS`` or ``prompt:FILE``.
        eval_every: steps between two scorings of the validation split.
        checkpoint_every: steps between two saves of the whole state.
        checkpoint_minutes: a save as well when the last one is so many minutes old.
        eval_batch_size: most rows scored at once; changes speed, never a number.
        dtype: ``float32`` or ``bfloat16`` for weights and matrix products.
        dropout: ``off``, or ``paper`` for the model's own rates inside its layers.
        objective: ``labels``: cross-entropy over the label words (encoders' default, as in the
            paper); ``vocabulary``: over all words at the answer (the others' default).
        label_scoring: how T5 and decoders score a label word of several pieces: ``phrase``, by all
            of them; ``first_piece``, as the paper's code does.
        remat: what layers keep for the way back: ``dots`` (products with weights), ``full``
            (nothing but their input, for models that would not fit otherwise) or ``none`` (all).
        mesh: devices by axis, for instance ``data:4,model:2``.

    Example:
        >>> TuneOptions(steps=10).resolve({"length": 20}).length
        20
    """

    steps: int | None = None
    batch_size: int | None = None
    tokens_per_batch: int | None = None
    learning_rate: float | None = None
    clip_norm: float | None = None
    length: int | None = None
    max_tokens: int | None = None
    answer_tokens: int | None = None
    group_by_length: bool | None = None
    seed: int = 0
    init: str = "random"
    eval_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_minutes: float | None = None
    eval_batch_size: int = 64
    dtype: str = "float32"
    dropout: str = "off"
    objective: str | None = None
    label_scoring: str = "phrase"
    remat: str = "dots"
    mesh: str | None = None

    def __post_init__(self) -> None:
        """Checks every value that is set."""
        check_counts(**{name: getattr(self, name) for name in COUNTS})
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; give a whole number from 0 to {2**32 - 1}")
        for name, example in AMOUNTS.items():
            check_amount(name, getattr(self, name), example)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("dropout", self.dropout, DROPOUT)
        check_choice("label_scoring", self.label_scoring, LABEL_SCORING)
        check_choice("remat", self.remat, REMAT)
        if self.objective is not None:
            check_choice("objective", self.objective, OBJECTIVES)

    def resolve(self, defaults: Mapping[str, Any]) -> TuneOptions:
        """Fills what is not set with the backbone's own choices, then with the paper's.

        Args:
            defaults: the backbone's choices by option name.

        Returns:
            Options without ``None`` but for the mesh, what is off, and what only some tasks have.
        """
        choices = {**PAPER_CHOICES, **defaults}
        filled = {
            name: choices[name]
            for name in PAPER_CHOICES
            if getattr(self, name) is None and name in choices
        }
        options = dataclasses.replace(self, **filled)
        every = min(options.steps, max(FEWEST_BETWEEN, math.ceil(options.steps / 10)))
        return dataclasses.replace(
            options,
            eval_every=options.eval_every or every,
            checkpoint_every=options.checkpoint_every or options.eval_every or every,
        )


# Paper 1.0 configs: batch 16, rate 1e-3 on base-size encoders, 100 rows, texts of 128 pieces. It
# trained for up to 1,280 epochs and picked one by hand; a number of steps has to be chosen here.
PAPER_CHOICES: dict[str, Any] = {
    "steps": 2000,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "length": 100,
    "max_tokens": 128,
    "group_by_length": False,
    "objective": "labels",
}


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises when an option has none of its possible values."""
    if value == "float16" and name == "dtype":
        raise InputError(
            "dtype is float16, in which prompt gradients underflow; use bfloat16 or float32 "
            "(float16 files are read and cast)"
        )
    if value not in choices:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def check_counts(**counts: int | None) -> None:
    """Raises where an option that counts something is no whole number above 0."""
    for name, value in counts.items():
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if value is not None and not is_count:
            raise InputError(f"{name} is {value}; give a whole number of 1 or more")


def check_amount(name: str, value: float | None, example: str) -> None:
    """Raises where an option that measures something is no positive number."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if value is not None and not (is_number and math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value}; give a positive number, for instance {example}")
