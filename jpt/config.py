"""Options of tuning, scoring, transfer, projection, probing, masking and recommendation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from jpt.errors import InputError, renamed_to, unknown_name

if TYPE_CHECKING:
    from jpt.types import Data

BackboneLike = Any  # a `jpt.Backbone`, its name, hub id or folder
TaskLike = Any  # a `jpt.Task`, its name or folder

DTYPES = ("float32", "bfloat16")
REMAT = ("dots", "full", "none")
LABEL_SCORING = ("phrase", "first_token")
SETTINGS = ("tuned", "task")
SPLITS = ("train", "validation", "test")

# --- Checks shared by the option classes


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise InputError if an option has a value other than its choices."""
    if value == "float16" and name == "dtype":
        raise InputError(
            "dtype is float16, in which prompt gradients underflow; use bfloat16 or float32 "
            "(float16 files are read and cast)"
        )
    if value not in choices:
        hint = renamed_to(value, choices)
        raise InputError(f"{name} is {value!r}{hint}; expected one of {', '.join(choices)}")


def check_counts(**counts: int | None) -> None:
    """Raise InputError if a count is set and is not a whole number of 1 or more."""
    for name, value in counts.items():
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if value is not None and not is_count:
            raise InputError(f"{name} is {value}; give a whole number of 1 or more")


def check_amount(name: str, value: float | None, example: str) -> None:
    """Raise InputError if an amount is set and is not a positive number."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if value is not None and not (is_number and math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value}; give a positive number, for instance {example}")


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; give a whole number from 0 to {2**32 - 1}")


def check_scoring(label_scoring: str | None, settings: str = "tuned") -> None:
    """Raise InputError unless both are known choices."""
    if label_scoring is not None:
        check_choice("label_scoring", label_scoring, LABEL_SCORING)
    check_choice("settings", settings, SETTINGS)


@dataclass(frozen=True)
class ScoringOptions:
    """Options of one scoring; None for the default."""

    max_tokens: int | None
    eval_batch_size: int
    label_scoring: str | None = None
    answer_tokens: int | None = None
    settings: str = "tuned"

    def __post_init__(self) -> None:
        check_counts(
            max_tokens=self.max_tokens,
            answer_tokens=self.answer_tokens,
            eval_batch_size=self.eval_batch_size,
        )
        check_scoring(self.label_scoring, self.settings)


def steps_between(steps: int) -> int:
    """Return the default number of steps between two validations: a tenth, at least 25."""
    return min(steps, max(25, math.ceil(steps / 10)))


# --- Tuning

DROPOUT = ("off", "paper")
OBJECTIVES = ("labels", "vocabulary")
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

# The paper's configs: batch 16, learning rate 1e-3 on base-size encoders, 100 prompt tokens, texts
# of 128 tokens. It trained for up to 1,280 epochs and picked one by hand; here steps are fixed.
PAPER_CHOICES: dict[str, Any] = {
    "steps": 2000,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "length": 100,
    "max_tokens": 128,
    "group_by_length": False,
    "objective": "labels",
    "label_scoring": "phrase",
}


@dataclass(frozen=True)
class TuneOptions:
    """Options of prompt tuning. ``None`` stands for the backbone's default (see `resolve`).

    Attributes:
        steps: Number of optimizer steps.
        batch_size: B, rows per step. Paper: 16.
        tokens_per_batch: Token budget per batch, padding included; overrides ``batch_size``. Rows
            of similar length form a batch, so batches of short rows are large.
        learning_rate: Constant learning rate of AdamW. Paper: 1e-3, on roberta-large 1e-4.
        clip_norm: Largest gradient norm; larger gradients are scaled down. Paper: no clipping.
        length: P, number of prompt tokens. Paper: 100, of which encoders read 99.
        max_tokens: Longest text in tokens, special tokens included. Paper: 128 without special
            tokens, 384 for generative tasks.
        answer_tokens: Longest generated answer in tokens; default: the task's.
        group_by_length: Whether rows of similar length share a batch, which saves padding. The
            paper's code does not; the built-in backbones do by default.
        seed: Random seed of prompt initialisation, data order and dropout.
        init: Prompt initialisation: ``random``, ``vocab``, ``labels``, ``text:WORDS`` or
            ``prompt:FILE``.
        eval_every: Steps between two validations.
        checkpoint_every: Steps between two checkpoints.
        checkpoint_minutes: Minutes after which a further checkpoint is saved.
        eval_batch_size: Rows per scoring batch; affects speed only.
        dtype: ``float32`` or ``bfloat16``, for weights and matrix products.
        dropout: ``off``, or ``paper`` for the model's own rates inside its layers.
        objective: ``labels``, cross-entropy over the label words (default of encoders, as in the
            paper), or ``vocabulary``, over the whole vocabulary (default of the others).
        label_scoring: How T5 and decoders score a label word of several tokens: ``phrase``
            (default) uses all of them, ``first_token`` the first one, as the paper's code does.
        remat: Activations saved for the backward pass: ``dots`` (products with weights), ``full``
            (layer inputs only, least memory) or ``none`` (all activations, most memory).
        mesh: Devices by axis, for instance ``data:4,model:2``.

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
    label_scoring: str | None = None
    remat: str = "dots"
    mesh: str | None = None

    def __post_init__(self) -> None:
        check_counts(**{name: getattr(self, name) for name in COUNTS})
        _check_seed(self.seed)
        for name, example in AMOUNTS.items():
            check_amount(name, getattr(self, name), example)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("dropout", self.dropout, DROPOUT)
        check_scoring(self.label_scoring)
        check_choice("remat", self.remat, REMAT)
        if self.objective is not None:
            check_choice("objective", self.objective, OBJECTIVES)

    def resolve(self, defaults: Mapping[str, Any]) -> TuneOptions:
        """Return the options with unset values taken from the backbone, then from the paper.

        Args:
            defaults: The backbone's defaults by option name.

        Returns:
            The options. What stays ``None`` is the mesh, switched off, or the task's to choose.
        """
        choices = {**PAPER_CHOICES, **defaults}
        filled = {
            name: choices[name]
            for name in PAPER_CHOICES
            if getattr(self, name) is None and name in choices
        }
        options = dataclasses.replace(self, **filled)
        every = steps_between(options.steps)
        return dataclasses.replace(
            options,
            eval_every=options.eval_every or every,
            checkpoint_every=options.checkpoint_every or options.eval_every or every,
        )


# --- Transfer


@dataclass(frozen=True)
class TransferOptions:
    """Options of a zero-shot transfer matrix.

    Attributes:
        split: Split to score; targets without it are scored on validation, with a note.
        random: Whether to score an untrained prompt too (paper's code: uniform from 0 to 1).
        untouched: Whether to score the model without a prompt too, as column ``none``.
        seed: Random seed of the untrained prompt.
        max_tokens: Longest text in tokens; default: as the target's in-task prompt was tuned, else
            the backbone's.
        label_scoring: ``phrase`` or ``first_token``, as in `TuneOptions`; default: as the
            in-task prompt was tuned.
        settings: Template and label words of each target: ``tuned``, those of its in-task prompt,
            or ``task``, those of the task today.
        eval_batch_size: Rows per scoring batch; affects speed only.
        dtype: ``float32`` or ``bfloat16``, for weights and matrix products.
        mesh: Devices by axis, for instance ``data:4``.

    Example:
        >>> TransferOptions().split
        'test'
    """

    split: str = "test"
    random: bool = True
    untouched: bool = True
    seed: int = 0
    max_tokens: int | None = None
    label_scoring: str | None = None
    settings: str = "tuned"
    eval_batch_size: int = 64
    dtype: str = "float32"
    mesh: str | None = None

    def __post_init__(self) -> None:
        check_counts(max_tokens=self.max_tokens, eval_batch_size=self.eval_batch_size)
        check_choice("split", self.split, SPLITS)
        check_choice("dtype", self.dtype, DTYPES)
        check_scoring(self.label_scoring, self.settings)


# --- Projectors

PROJECTOR_OBJECTIVES = ("task", "distance")
PROJECTOR_ACTIVATIONS = ("leaky_relu", "tanh")
PROJECTOR_BASELINES = ("untrained", "least_squares", "relative")
"""Projection methods that need no training."""
ANCHORS = 512

# Paper's code: Adam 1e-4 for the distance, AdamW 5e-3 for tasks, batches of 16. It trained for up
# to 100,000 steps and 1,024 epochs; here steps are fixed.
PROJECTOR_LEARNING_RATES = {"distance": 1e-4, "task": 5e-3}
PROJECTOR_STEPS = {"distance": 2000, "task": 1000}
_PROJECTOR_COUNTS = (
    *("bottleneck", "length", "steps", "batch_size", "max_tokens", "answer_tokens"),
    *("eval_every", "checkpoint_every", "eval_batch_size"),
)


@dataclass(frozen=True)
class ProjectorOptions:
    """Options of a projector and its training. ``None`` stands for a default (see `resolve`).

    Attributes:
        bottleneck: Neurons between the two linear maps. Paper: 768.
        activation: ``leaky_relu`` or, as in the paper towards roberta-large, ``tanh``.
        layer_norm: Whether each prompt token is normalised; default: yes, except per token.
        rescale: Whether normalised prompt tokens are scaled to the mean norm of the target's word
            embeddings (see `jpt.transfer.projector.Projector`).
        per_token: Whether each prompt token has a linear map of its own; source and target prompts
            then have one length.
        length: P of the target; default: that of its in-task prompts, else the source's.
        steps: Number of optimizer steps; default: 1000 for tasks, 2000 for the distance.
        batch_size: Rows per step; with the distance objective, tasks per step. Paper: 16.
        learning_rate: Constant learning rate; default: 1e-4 for the distance; for tasks the
            target backbone's, else 5e-3 (paper).
        max_tokens: Longest text in tokens; default: the target backbone's.
        answer_tokens: Longest generated answer in tokens; default: the task's.
        label_scoring: ``phrase`` or ``first_token``, as in `TuneOptions`.
        seed: Random seed of the initial weights and of the order of tasks and rows.
        eval_every: Steps between two validations of the projected prompts.
        checkpoint_every: Steps between two checkpoints.
        eval_batch_size: Rows per scoring batch; affects speed only.
        dtype: ``float32`` or ``bfloat16``, for the target's weights; the projector is float32.
        remat: Activations of the target saved for the backward pass, as in `TuneOptions`.
        mesh: Devices by axis, for instance ``data:4``.

    Example:
        >>> ProjectorOptions(steps=100).resolve("task").eval_every
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
        check_counts(**{name: getattr(self, name) for name in _PROJECTOR_COUNTS})
        check_choice("activation", self.activation, PROJECTOR_ACTIVATIONS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("remat", self.remat, REMAT)
        check_choice("label_scoring", self.label_scoring, LABEL_SCORING)
        _check_seed(self.seed)
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise InputError(f"learning_rate is {rate}; give a positive number, for instance 5e-3")
        if self.per_token and self.layer_norm:
            raise InputError("a per-token projector has no layer_norm; omit one of the two")
        if self.rescale and (self.per_token or self.layer_norm is False):
            raise InputError(
                "rescale needs normalised prompt tokens, but this projector normalises none; "
                "omit rescale, or use layer_norm without per_token"
            )

    def resolve(self, objective: str) -> ProjectorOptions:
        """Return the options with the defaults of an objective; length and rate stay unset.

        Args:
            objective: ``task`` or ``distance``.

        Returns:
            The options.
        """
        steps = self.steps or PROJECTOR_STEPS[objective]
        every = self.eval_every or steps_between(steps)
        normalises = self.layer_norm if self.layer_norm is not None else not self.per_token
        return dataclasses.replace(
            self,
            steps=steps,
            layer_norm=normalises,
            eval_every=every,
            checkpoint_every=self.checkpoint_every or every,
        )

    def with_learning_rate(self, objective: str, defaults: Mapping[str, Any]) -> ProjectorOptions:
        """Return the options with a learning rate.

        Args:
            objective: ``task`` or ``distance``.
            defaults: The target backbone's; ``projector_learning_rate`` is used for tasks.

        Returns:
            The options.

        Example:
            >>> ProjectorOptions().with_learning_rate("task", {}).learning_rate
            0.005
        """
        chosen = defaults.get("projector_learning_rate") if objective == "task" else None
        rate = self.learning_rate or chosen or PROJECTOR_LEARNING_RATES[objective]
        return dataclasses.replace(self, learning_rate=rate)

    def tune_options(self) -> TuneOptions:
        """Return the options of the target's batches and forward pass."""
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
    """Options of the evaluation of projected prompts.

    Attributes:
        methods: Some of ``untrained``, ``least_squares`` and ``relative``; default: those that
            support the prompt lengths.
        anchors: Number of anchor tokens of ``relative``.
        length: P of the target; default: that of the projector or of the in-task prompts.
        random: Whether to score a random prompt too, as tuning starts from.
        warm_start: Column whose projected prompts are tuned further, compared with a random start
            of as many steps.
        warm_steps: Number of steps of these two runs.
        split: Split to score; targets without it are scored on validation.
        seed: Random seed of the random prompt, the untrained projector and tuning.
        max_tokens: Longest text in tokens; default: the target's.
        eval_batch_size: Rows per scoring batch; affects speed only.
        dtype: ``float32`` or ``bfloat16``, for weights and matrix products.
        mesh: Devices by axis, for instance ``data:4``.

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
        counts = ("anchors", "length", "warm_steps", "max_tokens", "eval_batch_size")
        check_counts(**{name: getattr(self, name) for name in counts})
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("split", self.split, SPLITS)
        for name in self.methods or ():
            if name not in PROJECTOR_BASELINES:
                raise unknown_name("method", name, PROJECTOR_BASELINES)


# --- Neuron probes

AT_ANSWER, OVER_TEXT = "answer", "text"
PROBE_START, PROBE_TEXT = "start", "text"
Positions = str | tuple[int, ...]


def parse_positions(positions: str | int | Sequence[int]) -> Positions:
    """Parse token positions: ``answer``, ``text``, or numbers such as ``0,-1``."""
    if positions in (AT_ANSWER, OVER_TEXT):
        return positions
    parts = positions.split(",") if isinstance(positions, str) else positions
    try:
        numbers = (parts,) if isinstance(parts, int) else tuple(parts)
        if not numbers or any(isinstance(n, float | bool) for n in numbers):
            raise ValueError
        return tuple(dict.fromkeys(int(number) for number in numbers))
    except (TypeError, ValueError):
        raise InputError(
            f"positions is {positions!r}; expected answer, text, or token numbers,"
            " for instance 0,-1"
        ) from None


@dataclass(frozen=True)
class ProbeOptions:
    """Options of `jpt.activated_neurons`.

    Attributes:
        probe: ``start``, the paper's: prompt and start token alone; or ``text``.
        task: Task whose text is read: a task, its name, or its folder. Labels are not used.
        split: Split of the task.
        rows: Number of rows, sampled at random; default: 64, or all if there are fewer.
        data: Folder of the task's rows, or the rows by split.
        positions: Positions at which neurons are read: ``answer``, ``text`` (mean over all tokens
            of the text), or token numbers, from 0 or, negative, from the end: ``(0, -1)``.
        max_tokens: Longest text in tokens; default: that of a tuning run.
        seed: Random seed of the sampled rows.
        stack: ``decoder`` (default) or ``encoder`` of a T5.
        chunk_mb: Approximate memory for prompts and rows that are read at once; affects speed only.

    Example:
        >>> ProbeOptions(probe="text", task="sst2", positions="0,-1").token_positions
        (0, -1)
    """

    probe: str = PROBE_START
    task: TaskLike = None
    split: str = "validation"
    rows: int | None = None
    data: Data | None = None
    positions: str | int | Sequence[int] = AT_ANSWER
    max_tokens: int | None = None
    seed: int = 0
    stack: str | None = None
    chunk_mb: float = 256

    def __post_init__(self) -> None:
        check_choice("probe", self.probe, (PROBE_START, PROBE_TEXT))
        check_counts(rows=self.rows, max_tokens=self.max_tokens)
        if not self.chunk_mb > 0:
            raise InputError(f"chunk_mb is {self.chunk_mb}; give a number of megabytes above 0")
        if self.probe == PROBE_TEXT and self.task is None:
            raise InputError("probe is text, but task is not set; give one, for instance sst2")
        of_text = ("task", "rows", "data", "max_tokens")
        named = [name for name in of_text if getattr(self, name) is not None]
        named += ["positions"] if self.token_positions != AT_ANSWER else []
        if self.probe == PROBE_START and named:
            verb = "applies" if len(named) == 1 else "apply"
            raise InputError(
                f"{' and '.join(named)} {verb} to text, but probe is start, which reads none;"
                " set probe to text"
            )

    @property
    def token_positions(self) -> Positions:
        """The parsed positions."""
        return parse_positions(self.positions)


# --- Neuron masks

MASK_KINDS = ("in_task", "random", "other", "common", "specific")
MASK_IN_TASK, MASK_RANDOM, MASK_OTHER, MASK_COMMON, MASK_SPECIFIC = MASK_KINDS


def check_ratio(ratio: float, neurons: int) -> int:
    """Return the number of neurons that a ratio stands for."""
    if not (isinstance(ratio, (int, float)) and math.isfinite(ratio) and 0 < ratio < 1):
        raise InputError(f"ratio is {ratio}; give a number above 0 and below 1, for instance 0.2")
    count = round(ratio * neurons)
    if not 0 < count < neurons:
        raise InputError(
            f"ratio is {ratio}, which masks {count} of {neurons} neurons; give a ratio that masks"
            " some, but not all, for instance 0.2"
        )
    return count


@dataclass(frozen=True)
class MaskOptions:
    """Options of neuron selection and of scoring with masked neurons.

    Attributes:
        ratio: Share of masked neurons in the selected layers. Paper: 0.2.
        layers: First and last layer, from 0, inclusive, as ``9-11``; default: all (paper).
        per_layer: Whether the share is taken from each layer instead of from all together.
        kinds: Selections to mask (see `jpt.choose_neurons`); default: all, or for a single prompt
            its own neurons and random ones.
        random_draws: Number of random selections.
        stack: ``decoder`` (default) or ``encoder`` of a T5.
        seed: Random seed of the random selections.
        split: Split to score; tasks without it are scored on validation.
        backbone: Backbone used instead of the one in the prompt cards; its width is checked.
        max_tokens: Longest text in tokens; default: as the target's in-task prompt was tuned, else
            the backbone's.
        label_scoring: ``phrase`` or ``first_token``, as in `TuneOptions`; default: as the
            in-task prompt was tuned.
        settings: Template and label words of each target: ``tuned``, those of its in-task prompt,
            or ``task``, those of the task today.
        eval_batch_size: Rows per scoring batch; affects speed only.
        dtype: ``float32`` or ``bfloat16``, for weights and matrix products.
        mesh: Devices by axis, for instance ``data:4``.
    """

    ratio: float = 0.2
    layers: str | tuple[int, int] | None = None
    per_layer: bool = False
    kinds: Sequence[str] | None = None
    random_draws: int = 3
    stack: str | None = None
    seed: int = 0
    split: str = "test"
    backbone: BackboneLike = None
    max_tokens: int | None = None
    label_scoring: str | None = None
    settings: str = "tuned"
    eval_batch_size: int = 64
    dtype: str = "float32"
    mesh: str | None = None

    def __post_init__(self) -> None:
        check_counts(
            random_draws=self.random_draws,
            max_tokens=self.max_tokens,
            eval_batch_size=self.eval_batch_size,
        )
        check_scoring(self.label_scoring, self.settings)
        if self.split not in SPLITS:
            raise unknown_name("split", self.split, SPLITS)
        check_ratio(self.ratio, 10**9)
        if self.kinds is not None and not list(self.kinds):
            raise InputError(f"kinds is empty; give one or more of {', '.join(MASK_KINDS)}")
        for kind in self.kinds or ():
            check_choice("kinds", kind, MASK_KINDS)


# --- Recommendation


@dataclass(frozen=True)
class RecommendOptions:
    """Options of source-prompt recommendation.

    Attributes:
        backbone: Backbone used instead of the one in the prompt cards; its width is checked.
        labels: Number of labelled train rows: 64 by default, or all if there are fewer; 0 if there
            are no labels.
        probe_steps: Number of tuning steps of the probe.
        learning_rate: Learning rate of the probe; default: the backbone's.
        by: Ranking that chooses; default: ``zero_shot``, without labels ``mutual_information``.
        layers: Layers of ``neuron_overlap``; default: the top three.
        seed: Random seed of the sampled rows, the probe and the untrained prompt; default: the seed
            that all sources share (the probe then starts where they did), else 0.
        max_tokens: Longest text in tokens; default: the backbone's.
        eval_batch_size: Rows per scoring batch; affects speed only.
        dtype: ``float32`` or ``bfloat16``, for weights and matrix products.
        mesh: Devices by axis, for instance ``data:4``.

    Example:
        >>> RecommendOptions(labels=16).probe_steps
        60
    """

    backbone: BackboneLike = None
    labels: int | None = None
    probe_steps: int = 60
    learning_rate: float | None = None
    by: str | None = None
    layers: str | tuple[int, int] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    eval_batch_size: int = 64
    dtype: str = "float32"
    mesh: str | None = None

    def __post_init__(self) -> None:
        names = ("probe_steps", "eval_batch_size", "max_tokens")
        check_counts(**{name: getattr(self, name) for name in names})
        if self.labels != 0:
            check_counts(labels=self.labels)
