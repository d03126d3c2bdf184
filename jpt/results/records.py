"""The records of result files: what a study writes and its report reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from jpt.types import PromptCard


class SourceChoice(NamedTuple):
    """What the source that a ranking puts first is worth on one target.

    Attributes:
        hit: 1 where it is the best source, 0 where not; a share where several are first.
        rank: its place among the measured scores, 1 the best; equal scores share a mean place.
        regret: the best score less its score.
        sources: how many there were to choose from.
    """

    hit: float
    rank: float
    regret: float
    sources: int


@dataclass(frozen=True)
class RankingRecord:
    """How often a ranking was right.

    Attributes:
        targets: on how many targets it says anything.
        hits: share of these on which its first source was the best one.
        mean_rank: mean place of its first source among the measured scores.
        regret: mean of the best score less the score of its first source.
        chance_hits: the same for a source chosen by chance, on the same targets.
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


class SourceRange(NamedTuple):
    """What there was to choose from on one target.

    Attributes:
        best: the best source; several where they score the same.
        best_score: its score.
        mean_score: the mean score of all sources, which a choice by chance has on average.
        sources: how many there were.
    """

    best: tuple[str, ...]
    best_score: float
    mean_score: float
    sources: int


@dataclass(frozen=True)
class LeaveOneOut:
    """How often each ranking was right on a known matrix.

    Attributes:
        rankings: the record of each ranking by its name; one that says nothing anywhere is left
            out.
        per_target: the choice of each ranking on each target; None where it says nothing.
        targets: that were looked at.
        notes: what was left out, and why.
        chosen: the source that each ranking puts first on each target, several where they are
            alike to it, none where it says nothing; without ``zero_shot``, which is simulated.
        ranges: what there was to choose from on each target.
    """

    rankings: dict[str, RankingRecord]
    per_target: dict[str, dict[str, SourceChoice | None]]
    targets: tuple[str, ...]
    notes: tuple[str, ...] = ()
    chosen: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    ranges: dict[str, SourceRange] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "targets": list(self.targets),
            "rankings": {name: asdict(found) for name, found in self.rankings.items()},
            "per_target": {
                name: {target: None if c is None else c._asdict() for target, c in of.items()}
                for name, of in self.per_target.items()
            },
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Lead:
    """How far one indicator's mean rank correlation is above another's, over the same targets."""

    mean: float | None  # the mean difference; None where no target has both
    interval: tuple[float, float] | None  # of that mean; None for fewer than two targets
    n_targets: int  # how many have both


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of one indicator with zero-shot transfer.

    Attributes:
        mean_over_targets: the mean of ``per_target`` where that is defined; None where nowhere.
        pooled_relative: over all pairs of target and source, with relative performance.
        pooled_raw: over all pairs, with the scores as they are.
        n_targets: how many targets have a defined correlation.
        per_target: over the sources of each target; None where it is not defined.
        interval: of the mean over targets (`jpt.results.statistics`); None for fewer
            than two targets.
    """

    mean_over_targets: float | None
    pooled_relative: float | None
    pooled_raw: float | None
    n_targets: int
    per_target: dict[str, float | None]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class OverlapLead:
    """How far ON leads the paper's indicators of vectors, target by target.

    Attributes:
        best: the one of these with the highest mean over targets; None where none is defined.
        over: the lead over each.
    """

    best: str | None
    over: dict[str, Lead]


@dataclass(frozen=True)
class ChosenSource:
    """What an indicator puts first on one target."""

    sources: tuple[str, ...]  # the source; several where they are alike to it
    score: float  # its score, a mean where there are several
    regret: float  # the best score less its score


@dataclass(frozen=True)
class SelectionMeans:
    """Means over targets of what choosing by one indicator is worth."""

    targets: int  # on how many it says anything
    hits: float  # share of these on which its first source is the best
    regret: float  # mean of the best score less the score of its first source
    regret_interval: tuple[float, float]  # of that mean over targets; NaN where there is none
    chance_hits: float  # share of these on which a source chosen by chance would be the best
    chance_regret: float  # mean regret of a choice by chance
    gain: float  # how much less its choice costs than one by chance
    gain_interval: tuple[float, float]  # of that mean


@dataclass(frozen=True)
class SelectionRecord:
    """The choices of a study."""

    ranges: Mapping[str, SourceRange]  # what there was to choose from, by target
    means: Mapping[str, SelectionMeans]  # by indicator
    # by indicator and target; None where it says nothing
    chosen: Mapping[str, Mapping[str, ChosenSource | None]]
    notes: tuple[str, ...] = ()  # what was left out, and why


@dataclass(frozen=True)
class MaskedTaskRecord:
    """One task, scored by its own prompt."""

    type: str | None  # of the task, where one is known
    metric: str  # of its scores
    majority: float  # share of its commonest class; NaN where not told
    unmasked: float  # the score with all neurons
    scores: Mapping[str, float]  # by kind of mask, the mean over its draws and sources
    # by kind of mask, the same over the score with all neurons; NaN where undefined
    relative: Mapping[str, float]


@dataclass(frozen=True)
class MaskRecord:
    """A masking study."""

    ratio: float  # share of the neurons that is silent; NaN where not told
    silent: int  # how many that are
    neurons: int  # among how many
    layers: tuple[int, int]  # first and last layer
    split: str | None  # which rows were scored
    tasks: Mapping[str, MaskedTaskRecord]  # by name
    # what is left of the scores, by type of task and kind of mask
    by_type: Mapping[str, Mapping[str, float]]
    # what the neurons of prompts of the task's type leave; NaN if not measured
    other_same_type: float
    other_different_type: float  # what those of other types leave
    notes: tuple[str, ...] = ()  # what was left out, and why

    @property
    def kinds(self) -> list[str]:
        """The kinds of masks, in the order of the file."""
        return list(dict.fromkeys(kind for task in self.tasks.values() for kind in task.scores))


@dataclass(frozen=True)
class LossCurve:
    """How a run went."""

    train_steps: Float64[np.ndarray, "M"]  # steps whose loss was logged
    train_loss: Float64[np.ndarray, "M"]  # the loss of those steps, each of one batch
    steps: Float64[np.ndarray, "N"]  # steps at which validation was scored
    loss: Float64[np.ndarray, "N"]  # loss on validation
    score: Float64[np.ndarray, "N"]  # score on validation


@dataclass(frozen=True)
class PromptRecord:
    """A prompt of the study."""

    name: str  # its name in every table
    card: PromptCard | None  # where it comes from; None for a run that has no prompt yet
    finished: bool  # whether it is usable: a finished run, or a prompt file
    settings: Mapping[str, Any]  # the config of its run; empty for a prompt file
    metric: str | None  # name of its score
    score: float  # its score on validation; NaN where not known
    majority: float  # share of the commonest class of validation; NaN where not known
    steps: int | None  # of the whole run
    best_step: int | None  # after how many steps the prompt was taken
    elapsed_s: float  # how long its run took; NaN where not known
    curve: LossCurve | None  # how its run went; None without a log


@dataclass(frozen=True)
class TargetRecord:
    """A target task as ``transfer.json`` has it."""

    task: str  # its full name
    type: str | None  # its type, where one is known
    majority: float  # share of its commonest class; NaN where it has no classes
    rows: int | None  # how many rows were scored
    split: str | None  # which rows were scored
    in_task_prompt: str | None  # name of the prompt that was tuned for it


@dataclass(frozen=True)
class TransferRecord:
    """How a matrix was made, as ``transfer.json`` has it."""

    backbone: str | None  # name of the model
    split: str | None  # which rows were scored
    targets: Mapping[str, TargetRecord]  # the tasks by name
    prompt_types: Mapping[str, str | None]  # the type of each prompt's task
    random: str | None  # name of the column of the untrained prompt, where there is one
    # how that prompt was made, for instance ``{"seed": "0", "init": "random"}``
    random_start: Mapping[str, str]
    untouched: str | None  # name of the column of the model without a prompt, where there is one
    notes: tuple[str, ...]  # what the command had to say
    elapsed_s: float  # how long it took; NaN where not told
    versions: Mapping[str, str]  # of the programs
    device: str | None  # what it ran on
    command: str | None  # the line that was typed
    machine: str | None = None  # the kind of machine around it, where told


@dataclass(frozen=True)
class CorrelationRecord:
    """Spearman's rank correlation of one indicator with zero-shot performance."""

    # of the correlations of each target over its sources; NaN if undefined
    mean_over_targets: float
    pooled_relative: float  # over all pairs, with relative performance
    pooled_raw: float  # over all pairs, with scores as they are
    n_targets: int  # how many targets have a defined correlation
    per_target: Mapping[str, float]  # the correlation of each; NaN where a side is constant


@dataclass(frozen=True)
class CorrelationRecords:
    """The correlations of every indicator, as ``correlation.json`` has them."""

    # by indicator, the target's own prompt left out of the sources
    excluding_in_task: Mapping[str, CorrelationRecord]
    including_in_task: Mapping[
        str, CorrelationRecord
    ]  # by indicator, the target's own prompt among the sources
    notes: tuple[str, ...] = ()  # what is undefined or left out, and why


@dataclass(frozen=True)
class TaskTypeMeans:
    """Means over pairs of prompts for tasks of one type and of two types."""

    same: float  # mean over pairs of one type; NaN where there is none
    different: float  # mean over pairs of two types
    n_same: int | None = None  # how many pairs, where told
    n_different: int | None = None  # how many pairs, where told
    seeds: float = math.nan  # mean over pairs of two seeds of a prompt; NaN where there is none


@dataclass(frozen=True)
class TaskTypeRecord:
    """Means by type of task, as ``types.json`` has them."""

    similarity: Mapping[str, TaskTypeMeans]  # of each indicator
    transfer: TaskTypeMeans | None  # of relative performance, where there was a matrix
    random: float  # mean relative performance of the untrained prompt; NaN where not measured
    best_other: Mapping[str, str]  # the best source of each target, its own prompt left out
    best_same_fraction: float  # share of targets whose best other source has their type
    # mean relative performance by type of target, then of source
    by_type: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = field(default=())  # what the command had to say


@dataclass(frozen=True)
class Similarities:
    """How alike the prompts are, by every indicator."""

    names: tuple[str, ...]  # of the prompts
    # one matrix an indicator; NaN where the table has no line for a pair
    values: Mapping[str, Float64[np.ndarray, "K K"]]


@dataclass(frozen=True)
class Redundancy:
    """Shares of the neurons of each layer, over several prompts.

    Attributes:
        prompts: how many prompts there are.
        activated: share that a prompt activates, on average.
        always: share that every prompt activates.
        never: share that no prompt activates.
        always_by_chance: what ``always`` would be if each prompt activated as many neurons of the
            layer as it does, but drawn by lot.
        never_by_chance: likewise.
    """

    prompts: int
    activated: Float64[np.ndarray, "L"]
    always: Float64[np.ndarray, "L"]
    never: Float64[np.ndarray, "L"]
    always_at_random: Float64[np.ndarray, "L"]
    never_at_random: Float64[np.ndarray, "L"]

    def summary(self) -> dict[str, Any]:
        """Gives the shares over all layers and by layer, ready for JSON."""
        names = ("activated", "always", "never", "always_at_random", "never_at_random")
        shares = {name: getattr(self, name) for name in names}
        return {
            "prompts": self.prompts,
            **{name: float(values.mean()) for name, values in shares.items()},
            "by_layer": {name: values.tolist() for name, values in shares.items()},
        }

    def describe(self) -> str:
        """Says the shares over all layers, and by layer, in lines of at most 80 columns.

        Returns:
            The text.
        """
        always, never = 100 * self.always.mean(), 100 * self.never.mean()
        by_lot = 100 * self.always_at_random.mean(), 100 * self.never_at_random.mean()
        lines = [
            f"always on (all {self.prompts} prompts): {always:.1f} % of the neurons (by chance"
            f" {by_lot[0]:.1f} %)",
            f"never on: {never:.1f} % (by chance {by_lot[1]:.1f} %)",
            "layer  activated  always on  never on",
        ]
        by_layer = zip(self.activated, self.always, self.never, strict=True)
        for layer, (activated, always, never) in enumerate(by_layer):
            shares = f"{100 * activated:7.1f} %  {100 * always:7.1f} %  {100 * never:6.1f} %"
            lines.append(f"{layer:>5}  {shares}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Ranking:
    """One way to put the sources in order."""

    # what it says of each source, more is better; NaN where it says nothing
    values: Mapping[str, float]
    ties: Mapping[str, float]  # what decides between equal values

    def ordered(self) -> list[str]:
        """The sources, best first; those of which nothing is said last; equal ones by name."""
        return sorted(self.values, key=lambda name: (*self._key(name), name))

    def ranks(self) -> dict[str, int | None]:
        """The place of each source, 1 the best; equal ones share the first of their places."""
        keys = {name: self._key(name) for name in self.values}
        return {
            name: None if math.isnan(self.values[name]) else 1 + sum(k < key for k in keys.values())
            for name, key in keys.items()
        }

    def _key(self, name: str) -> tuple[bool, float, float]:
        value, tie = self.values[name], self.ties.get(name, 0.0)
        return (True, 0.0, 0.0) if math.isnan(value) else (False, -value, -tie)


@dataclass(frozen=True)
class ProjectorScore:
    """How well a projector does, in the form that the training loop reads."""

    metric: str  # ``mean_score``, or ``error`` (mean squared)
    value: float  # larger is better: the mean score, or the error below 0
    by_task: dict[str, float]  # score or error of each task
    # error of tasks that were not trained on
    unseen: dict[str, float] = dataclasses.field(default_factory=dict)
    warning: str | None = None  # a task that was answered with one label throughout

    def summary(self) -> dict[str, Any]:
        """Gives the score ready for JSON."""
        more = {"unseen": self.unseen} if self.unseen else {}
        return {self.metric: abs(self.value), "by_task": self.by_task, **more}


@dataclass(frozen=True)
class Comparison:
    """A warm run against the vanilla run of its seed."""

    convergence: float  # convergence speed-up
    # comparable-result speed-up; None where the vanilla run's best is not reached
    comparable: float | None
    converged_at_start: bool  # whether the warm run converged at step 0
    reached_at_start: bool  # whether it had the vanilla run's best at step 0
