"""Options of tuning, scoring, transfer, projection, probing, masking and recommendation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from jpt.errors import InputError, unknown_name

if TYPE_CHECKING:
    from jpt.types import Data

# Objects of rooms below, which options carry and never look into.
BackboneLike = Any  # a `jpt.Backbone`, its name, hub id or folder
TaskLike = Any  # a `jpt.Task`, its name or folder

DTYPES = ("float32", "bfloat16")
DROPOUT = ("off", "paper")
REMAT = ("dots", "full", "none")
OBJECTIVES = ("labels", "vocabulary")
LABEL_SCORING = ("phrase", "first_token")
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
            of them; ``first_token``, as the paper's code does.
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


SPLITS = ("train", "validation", "test")
"""The splits of every task: tuned on the first, chosen on the second, scored on the third."""


MASK_IN_TASK, MASK_RANDOM, MASK_OTHER, MASK_COMMON, MASK_SPECIFIC = (
    "in_task",
    "random",
    "other",
    "common",
    "specific",
)


MASK_KINDS = (MASK_IN_TASK, MASK_RANDOM, MASK_OTHER, MASK_COMMON, MASK_SPECIFIC)


def check_ratio(ratio: float, neurons: int) -> int:
    """Turns a share of neurons into a number of them."""
    if not (isinstance(ratio, (int, float)) and math.isfinite(ratio) and 0 < ratio < 1):
        raise InputError(f"ratio is {ratio}; give a number above 0 and below 1, for instance 0.2")
    count = round(ratio * neurons)
    if not 0 < count < neurons:
        raise InputError(
            f"ratio is {ratio}, which is {count} of {neurons} neurons; give one that leaves some"
            " and takes some, for instance 0.2"
        )
    return count


Positions = str | tuple[int, ...]


AT_ANSWER, OVER_TEXT = "answer", "text"


PROBE_START, PROBE_TEXT = "start", "text"


CHUNK_MB = 256


_OF_TEXT = ("task", "rows", "data", "max_tokens")


@dataclass(frozen=True)
class ProbeOptions:
    """The options of `jpt.neurons.probe.activated_neurons`.

    Attributes:
        probe: ``"start"``, the paper's: prompt and start token alone; or ``"text"``.
        task: whose text; a task, its name, or its folder. Its labels are not looked at.
        split: of the task.
        rows: how many rows, by chance; 64 by default, or all where there are fewer.
        data: folder of the task's rows, or the rows by split.
        positions: where a text's neurons are read: ``"answer"``, ``"text"`` (mean over all its
            tokens), or tokens by number, from 0 or, negative, from the end: ``(0, -1)``.
        max_tokens: longest text in tokens; by default what a run would take.
        seed: of the choice of rows.
        stack: ``"decoder"`` or ``"encoder"`` of a T5; its decoder by default.
        chunk_mb: memory for the prompts and rows that are read at once, roughly; changes speed,
            never a number.

    Example:
        >>> ProbeOptions(probe="text", task="sst2", positions="0,-1").places
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
    chunk_mb: float = CHUNK_MB

    def __post_init__(self) -> None:
        """Refuses what does not go together, before anything is read."""
        check_choice("probe", self.probe, (PROBE_START, PROBE_TEXT))
        check_counts(rows=self.rows, max_tokens=self.max_tokens)
        if not self.chunk_mb > 0:
            raise InputError(f"chunk_mb is {self.chunk_mb}; give a number of megabytes above 0")
        if self.probe == PROBE_TEXT and self.task is None:
            raise InputError("probe is text, but no task says whose; give one, for instance sst2")
        named = [name for name in _OF_TEXT if getattr(self, name) is not None]
        named += ["positions"] if self.token_positions != AT_ANSWER else []
        if self.probe == PROBE_START and named:
            raise InputError(
                f"{' and '.join(named)} choose{'s' if len(named) == 1 else ''} what text is read,"
                " but the probe is start, which reads none; set probe to text"
            )

    @property
    def token_positions(self) -> Positions:
        """The positions as ``"answer"``, ``"text"`` or numbers."""
        return parse_positions(self.positions)


def parse_positions(positions: str | int | Sequence[int]) -> Positions:
    """Reads where neurons are read."""
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
            f"positions is {positions!r}; expected answer, text, or numbers of tokens of the text,"
            " for instance 0,-1"
        ) from None


@dataclass(frozen=True)
class MaskOptions:
    """How neurons are chosen and prompts are scored.

    Attributes:
        ratio: share of the neurons of the layers that is silent. Paper: 0.2.
        layers: first and last layer, from 0, both included, as ``"9-11"``. Paper: all.
        per_layer: take the share from each layer, instead of from all of them together.
        kinds: what is masked (see `jpt.choose_neurons`); by default all, and of one prompt alone
            its own and random neurons.
        random_draws: how often random neurons are drawn.
        stack: ``"decoder"`` or ``"encoder"`` of a T5; its decoder by default.
        seed: of random neurons.
        split: that is scored; a task without it is scored on validation.
        backbone: instead of the one that the prompts' cards name; the width is checked.
        max_tokens: longest text in tokens; by default the backbone's own choice.
        label_scoring: ``"phrase"`` or ``"first_token"``.
        eval_batch_size: rows at once; changes speed, never a number.
        dtype: of weights and matrix products.
        mesh: devices by axis.
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
    label_scoring: str = "phrase"
    eval_batch_size: int = 64
    dtype: str = "float32"
    mesh: str | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked without a model."""
        check_counts(
            random_draws=self.random_draws,
            max_tokens=self.max_tokens,
            eval_batch_size=self.eval_batch_size,
        )
        check_choice("label_scoring", self.label_scoring, LABEL_SCORING)
        if self.split not in SPLITS:
            raise unknown_name("split", self.split, SPLITS)
        check_ratio(self.ratio, 10**9)
        if self.kinds is not None and not list(self.kinds):
            raise InputError(f"kinds is empty; name some of {', '.join(MASK_KINDS)}")
        for kind in self.kinds or ():
            check_choice("kinds", kind, MASK_KINDS)


PROJECTOR_OBJECTIVES = ("task", "distance")


PROJECTOR_ACTIVATIONS = ("leaky_relu", "tanh")


PROJECTOR_BASELINES = ("untrained", "least_squares", "relative")
"""Ways to a prompt of the target that need no training."""


ANCHORS = 512


# Paper's code: Adam 1e-4 for the distance, AdamW 5e-3 for tasks, batches of 16. It trained for up
# to 100,000 steps and 1,024 epochs; a number of steps has to be chosen here.
PROJECTOR_LEARNING_RATES = {"distance": 1e-4, "task": 5e-3}


PROJECTOR_STEPS = {"distance": 2000, "task": 1000}


_PROJECTOR_COUNTS = ("bottleneck", "length", "steps", "batch_size", "max_tokens", "answer_tokens")


_PROJECTOR_MORE_COUNTS = ("eval_every", "checkpoint_every", "eval_batch_size")


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
        label_scoring: ``phrase`` or ``first_token``, as in `jpt.config.TuneOptions`.
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
        check_counts(
            **{name: getattr(self, name) for name in (*_PROJECTOR_COUNTS, *_PROJECTOR_MORE_COUNTS)}
        )
        check_choice("activation", self.activation, PROJECTOR_ACTIVATIONS)
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

    def resolve(self, objective: str) -> ProjectorOptions:
        """Makes the choices that an objective makes; length and rate are the target's.

        Args:
            objective: ``task`` or ``distance``.

        Returns:
            The options.
        """
        steps = self.steps or PROJECTOR_STEPS[objective]
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
        rate = self.learning_rate or chosen or PROJECTOR_LEARNING_RATES[objective]
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
            if name not in PROJECTOR_BASELINES:
                raise unknown_name("method", name, PROJECTOR_BASELINES)


@dataclass(frozen=True)
class TransferOptions:
    """How a matrix is measured.

    Attributes:
        split: that is scored; a target without it is scored on validation, and that is said.
        random: whether an untrained start is scored too (the paper's code: uniform from 0 to 1).
        untouched: whether the model without a prompt is scored too, as column ``none``.
        seed: of the untrained start.
        max_tokens: longest text in tokens; by default the backbone's own choice.
        label_scoring: ``"phrase"`` or ``"first_token"``: how a label word of several pieces counts.
        eval_batch_size: rows at once; changes speed, never a number.
        dtype: of weights and matrix products.
        mesh: devices by axis.

    Example:
        >>> TransferOptions().split
        'test'
    """

    split: str = "test"
    random: bool = True
    untouched: bool = True
    seed: int = 0
    max_tokens: int | None = None
    label_scoring: str = "phrase"
    eval_batch_size: int = 64
    dtype: str = "float32"
    mesh: str | None = None

    def __post_init__(self) -> None:
        """Checks every value that is set."""
        check_counts(max_tokens=self.max_tokens, eval_batch_size=self.eval_batch_size)
        check_choice("split", self.split, SPLITS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("label_scoring", self.label_scoring, LABEL_SCORING)


PROBE_STEPS = 60


@dataclass(frozen=True)
class RecommendOptions:
    """How sources are ranked.

    Attributes:
        backbone: instead of the one that the prompts' cards name; the width is checked.
        labels: how many train rows have labels: 64 by default, or all where there are fewer; 0
            where none has.
        probe_steps: how long the probe is tuned.
        learning_rate: of the probe; by default the backbone's own choice.
        by: the ranking that chooses: by default ``zero_shot``, without labels
            ``mutual_information``.
        layers: of ``neuron_overlap``; by default the top three.
        seed: of the choice of rows, of the probe and of the untrained start; by default the seed
            that all sources share, so that the probe starts where they did, else 0.
        max_tokens: longest text in tokens; by default the backbone's own choice.
        eval_batch_size: most rows scored at once; changes speed, never a number.
        dtype: of weights and matrix products.
        mesh: devices by axis.

    Example:
        >>> RecommendOptions(labels=16).probe_steps
        60
    """

    backbone: BackboneLike = None
    labels: int | None = None
    probe_steps: int = PROBE_STEPS
    learning_rate: float | None = None
    by: str | None = None
    layers: str | tuple[int, int] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    eval_batch_size: int = 64
    dtype: str = "float32"
    mesh: str | None = None

    def __post_init__(self) -> None:
        """Checks the counts; what else is wrong shows where it is used."""
        names = ("probe_steps", "eval_batch_size", "max_tokens")
        check_counts(**{name: getattr(self, name) for name in names})
        if self.labels != 0:
            check_counts(labels=self.labels)
