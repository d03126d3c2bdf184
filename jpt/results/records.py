"""Record classes of the result files: what a study writes and its report reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from jpt.types import PromptCard

# --- Run folders: config.json, metrics.jsonl, result.json


@dataclass(frozen=True)
class LossCurve:
    """Training and validation curves of a run."""

    train_steps: Float64[np.ndarray, "M"]  # steps with a logged training loss
    train_loss: Float64[np.ndarray, "M"]  # of one batch each
    steps: Float64[np.ndarray, "N"]  # steps with a validation score
    loss: Float64[np.ndarray, "N"]  # on validation
    score: Float64[np.ndarray, "N"]  # on validation


@dataclass(frozen=True)
class PromptRecord:
    """A prompt of a study."""

    name: str
    card: PromptCard | None  # None for a run without a prompt so far
    finished: bool  # a finished run, or a prompt file
    settings: Mapping[str, Any]  # config of its run; empty for a prompt file
    metric: str | None
    score: float  # on validation; NaN if unknown
    chance: float  # chance level of the metric on validation; NaN if unknown
    steps: int | None  # of the whole run
    best_step: int | None
    elapsed_s: float  # of its run; NaN if unknown
    curve: LossCurve | None  # None without a log


# --- transfer.json


@dataclass(frozen=True)
class TargetRecord:
    """A target task."""

    task: str  # full name
    type: str | None  # task type, if known
    majority: float  # share of the most frequent class; NaN for a generative task
    rows: int | None  # number of scored rows
    split: str | None
    in_task_prompt: str | None


@dataclass(frozen=True)
class TransferRecord:
    """Provenance of a transfer matrix."""

    backbone: str | None
    split: str | None
    targets: Mapping[str, TargetRecord]  # by name
    prompt_types: Mapping[str, str | None]  # task type of each prompt
    random: str | None  # column of the untrained prompt
    random_start: Mapping[str, str]  # its initialiser, such as {"seed": "0", "init": "random"}
    untouched: str | None  # column of the model without a prompt
    notes: tuple[str, ...]
    elapsed_s: float  # NaN if unknown
    versions: Mapping[str, str]  # of jpt, Python and packages
    device: str | None
    command: str | None
    machine: str | None = None


# --- types.json


@dataclass(frozen=True)
class TaskTypeMeans:
    """Means over pairs of prompts with the same task type and with different types."""

    same: float  # NaN without such pairs
    different: float
    n_same: int | None = None  # number of pairs, if known
    n_different: int | None = None
    seeds: float = math.nan  # mean over pairs of two seeds of a prompt; NaN without such pairs


@dataclass(frozen=True)
class TaskTypeRecord:
    """Means by task type."""

    similarity: Mapping[str, TaskTypeMeans]  # by indicator
    # by measure (`jpt.results.prompt_table.MEASURES`), then by type of target and source
    by_type: Mapping[str, Mapping[str, Mapping[str, float]]]
    notes: tuple[str, ...] = field(default=())


# --- indicators.csv and neurons.npz


@dataclass(frozen=True)
class Similarities:
    """Similarity of the prompts by every indicator."""

    names: tuple[str, ...]
    values: Mapping[str, Float64[np.ndarray, "K K"]]  # by indicator; NaN for pairs not in the table


@dataclass(frozen=True)
class Redundancy:
    """Shares of the neurons of each layer over several prompts.

    Attributes:
        prompts: number of prompts.
        activated: mean share that a prompt activates.
        always: share that every prompt activates.
        never: share that no prompt activates.
        always_at_random: expected ``always`` if each prompt activated as many neurons of the layer
            at random.
        never_at_random: expected ``never``, likewise.
    """

    prompts: int
    activated: Float64[np.ndarray, "L"]
    always: Float64[np.ndarray, "L"]
    never: Float64[np.ndarray, "L"]
    always_at_random: Float64[np.ndarray, "L"]
    never_at_random: Float64[np.ndarray, "L"]

    def summary(self) -> dict[str, Any]:
        """Return the shares over all layers and by layer, ready for JSON."""
        names = ("activated", "always", "never", "always_at_random", "never_at_random")
        shares = {name: getattr(self, name) for name in names}
        return {
            "prompts": self.prompts,
            **{name: float(values.mean()) for name, values in shares.items()},
            "by_layer": {name: values.tolist() for name, values in shares.items()},
        }

    def describe(self) -> str:
        """Return the shares over all layers and by layer as a table of 80 columns."""
        always, never = 100 * self.always.mean(), 100 * self.never.mean()
        at_random = 100 * self.always_at_random.mean(), 100 * self.never_at_random.mean()
        lines = [
            f"always on (all {self.prompts} prompts): {always:.1f} % of the neurons (at random:"
            f" {at_random[0]:.1f} %)",
            f"never on: {never:.1f} % (at random: {at_random[1]:.1f} %)",
            "layer  activated  always on  never on",
        ]
        by_layer = zip(self.activated, self.always, self.never, strict=True)
        for layer, (activated, always, never) in enumerate(by_layer):
            shares = f"{100 * activated:7.1f} %  {100 * always:7.1f} %  {100 * never:6.1f} %"
            lines.append(f"{layer:>5}  {shares}")
        return "\n".join(lines)


# --- correlation.json


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of an indicator with zero-shot transfer, as computed.

    Attributes:
        mean_over_targets: mean of the defined ``per_target`` values; None if there are none.
        pooled_relative: over all pairs of target and source, with relative performance.
        pooled_raw: over all pairs, with scores.
        n_targets: number of targets with a defined correlation.
        per_target: over the sources of each target; None where undefined.
        interval: confidence interval of the mean (`jpt.results.statistics`); None for fewer than
            two targets.
        pooled_above_chance: over all pairs, with relative performance above chance; None if
            undefined or chance is unknown.
    """

    mean_over_targets: float | None
    pooled_relative: float | None
    pooled_raw: float | None
    n_targets: int
    per_target: dict[str, float | None]
    interval: tuple[float, float] | None = None
    pooled_above_chance: float | None = None


@dataclass(frozen=True)
class Lead:
    """Mean difference of two indicators' rank correlations over the same targets."""

    mean: float | None  # None if no target has both
    interval: tuple[float, float] | None  # of the mean; None for fewer than two targets
    n_targets: int  # number of targets with both


@dataclass(frozen=True)
class OverlapLead:
    """Lead of neuron overlap (ON) over the paper's embedding indicators."""

    best: str | None  # the one with the highest mean over targets; None if none is defined
    over: dict[str, Lead]  # by indicator


@dataclass(frozen=True)
class CorrelationRecord:
    """Spearman's rank correlation of an indicator with zero-shot transfer, as read back."""

    mean_over_targets: float  # NaN if undefined
    pooled_relative: float  # over all pairs, with relative performance
    pooled_raw: float  # over all pairs, with scores
    n_targets: int  # number of targets with a defined correlation
    per_target: Mapping[str, float]  # over the sources of each target; NaN where undefined
    pooled_above_chance: float = math.nan  # over all pairs, with performance above chance


# Tables of ``correlation.json``; those with ties need chance levels.
CORRELATION_PARTS = ("including_in_task", "excluding_in_task")
CORRELATION_PARTS += ("including_in_task_tied", "excluding_in_task_tied")


@dataclass(frozen=True)
class CorrelationRecords:
    """Rank correlations by indicator."""

    excluding_in_task: Mapping[str, CorrelationRecord]  # in-task prompts are no sources
    including_in_task: Mapping[str, CorrelationRecord]
    notes: tuple[str, ...] = ()
    # With scores within one standard error of chance as ties; empty if chance is unknown
    excluding_in_task_tied: Mapping[str, CorrelationRecord] = field(default_factory=dict)
    including_in_task_tied: Mapping[str, CorrelationRecord] = field(default_factory=dict)


# --- choice.json


class SourceRange(NamedTuple):
    """Scores of the sources of a target."""

    best: tuple[str, ...]  # best source; several if tied
    best_score: float
    mean_score: float  # expected score of a source chosen at random
    sources: int  # number of sources


@dataclass(frozen=True)
class ChosenSource:
    """Source that an indicator ranks first on a target."""

    sources: tuple[str, ...]  # several if tied
    score: float  # mean if tied
    regret: float  # best score minus this score


@dataclass(frozen=True)
class SelectionMeans:
    """Value of source selection by one indicator, over targets."""

    targets: int  # number of targets that it ranks sources for
    hits: float  # share of targets on which its first source is the best one
    regret: float  # mean of best score minus score of its first source
    regret_interval: tuple[float, float]  # NaN if undefined
    chance_hits: float  # share of targets on which a random source is the best one
    chance_regret: float  # mean regret of a random source
    gain: float  # `chance_regret` minus `regret`
    gain_interval: tuple[float, float]


@dataclass(frozen=True)
class SelectionRecord:
    """Source selection on every target."""

    ranges: Mapping[str, SourceRange]  # by target
    means: Mapping[str, SelectionMeans]  # by indicator
    # by indicator and target; None if the indicator is undefined there
    chosen: Mapping[str, Mapping[str, ChosenSource | None]]
    notes: tuple[str, ...] = ()


class SourceChoice(NamedTuple):
    """Value of the source that a ranking puts first on one target.

    Attributes:
        hit: 1 if it is the best source, else 0; a share if several are first.
        rank: its rank among the scores, 1 the best; the mean rank if tied.
        regret: best score minus its score.
        sources: number of sources.
    """

    hit: float
    rank: float
    regret: float
    sources: int


@dataclass(frozen=True)
class RankingRecord:
    """Means of a ranking's `SourceChoice` over targets.

    Attributes:
        targets: number of targets that it ranks sources for.
        hits: share of them on which its first source is the best one.
        mean_rank: mean rank of its first source.
        regret: mean of best score minus score of its first source.
        chance_hits: ``hits`` of a random source on the same targets.
        chance_rank: likewise.
        chance_regret: likewise.
    """

    targets: int
    hits: float
    mean_rank: float
    regret: float
    chance_hits: float
    chance_rank: float
    chance_regret: float


@dataclass(frozen=True)
class LeaveOneOut:
    """Source selection on a known matrix, each target in turn left out.

    Attributes:
        rankings: `RankingRecord` by ranking; rankings undefined on every target are left out.
        per_target: `SourceChoice` by ranking and target; None where undefined.
        targets: names of the targets.
        notes: what was left out, and why.
        chosen: first source by ranking and target; several if tied, none where undefined. Without
            ``zero_shot``, which is simulated.
        ranges: `SourceRange` by target.
    """

    rankings: dict[str, RankingRecord]
    per_target: dict[str, dict[str, SourceChoice | None]]
    targets: tuple[str, ...]
    notes: tuple[str, ...] = ()
    chosen: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    ranges: dict[str, SourceRange] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """Result, ready for JSON."""
        return {
            "targets": list(self.targets),
            "rankings": {name: asdict(found) for name, found in self.rankings.items()},
            "per_target": {
                name: {target: None if c is None else c._asdict() for target, c in of.items()}
                for name, of in self.per_target.items()
            },
            "notes": list(self.notes),
        }


# --- recommend.json


@dataclass(frozen=True)
class Ranking:
    """Sources ranked by one criterion."""

    values: Mapping[str, float]  # by source, larger is better; NaN if undefined
    ties: Mapping[str, float]  # tie breaker, larger is better

    def ordered(self) -> list[str]:
        """Return the sources, best first: undefined ones last, ties by name."""
        return sorted(self.values, key=lambda name: (*self._key(name), name))

    def ranks(self) -> dict[str, int | None]:
        """Return the rank of each source, 1 the best; tied sources share the first rank."""
        keys = {name: self._key(name) for name in self.values}
        return {
            name: None if math.isnan(self.values[name]) else 1 + sum(k < key for k in keys.values())
            for name, key in keys.items()
        }

    def _key(self, name: str) -> tuple[bool, float, float]:
        value, tie = self.values[name], self.ties.get(name, 0.0)
        return (True, 0.0, 0.0) if math.isnan(value) else (False, -value, -tie)


# --- mask.json


@dataclass(frozen=True)
class MaskedTaskRecord:
    """Scores of a task's in-task prompt under neuron masks."""

    type: str | None  # task type, if known
    metric: str
    chance: float  # chance level of the metric; NaN if unknown
    unmasked: float  # score with all neurons
    scores: Mapping[str, float]  # by kind of mask, mean over samples and sources
    # by measure (`jpt.results.prompt_table.MEASURES`), the same over `unmasked`; NaN if undefined
    performance: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class MaskRecord:
    """A masking study."""

    ratio: float  # share of masked neurons; NaN if unknown
    masked: int  # number of masked neurons
    neurons: int  # number of all neurons
    layers: tuple[int, int]  # first and last layer
    split: str | None
    tasks: Mapping[str, MaskedTaskRecord]  # by name
    # by measure (`jpt.results.prompt_table.MEASURES`), then by task type and kind of mask
    by_type: Mapping[str, Mapping[str, Mapping[str, float]]]
    # by measure, with neurons of other prompts: of the task's type, and of other types; may be NaN
    other_types: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...] = ()

    @property
    def kinds(self) -> list[str]:
        """Kinds of masks, in the order of the file."""
        return list(dict.fromkeys(kind for task in self.tasks.values() for kind in task.scores))


# --- projector runs: metrics.jsonl, result.json


@dataclass(frozen=True)
class ProjectorScore:
    """Validation score of a projector, as the training loop reads it."""

    metric: str  # `mean_score`, or `error` (mean squared)
    value: float  # larger is better: mean score, or minus the error
    by_task: dict[str, float]  # score or error
    unseen: dict[str, float] = dataclasses.field(default_factory=dict)  # error of held-out tasks
    warning: str | None = None  # a task with the same prediction for all rows

    def summary(self) -> dict[str, Any]:
        """Return the score, ready for JSON."""
        more = {"unseen": self.unseen} if self.unseen else {}
        return {self.metric: abs(self.value), "by_task": self.by_task, **more}


# --- warm_start.json


@dataclass(frozen=True)
class Comparison:
    """Speed-ups of a warm-started run over the vanilla run of its seed."""

    convergence: float  # convergence speed-up
    comparable: float | None  # comparable-result speed-up; None if the result is not reached
    converged_at_start: bool  # at step 0
    reached_at_start: bool  # the vanilla run's best, at step 0
