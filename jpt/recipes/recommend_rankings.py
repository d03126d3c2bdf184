"""What each ranking says of each source, who is first, and who cannot be told from the first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jpt.analysis.choice import SAME_TYPE, ZERO_SHOT
from jpt.analysis.indicators import Indicators
from jpt.analysis.overlap import OVERLAP
from jpt.analysis.similarity import EMBEDDING_INDICATORS
from jpt.analysis.sureness import sureness
from jpt.analysis.transfer_pairs import type_of
from jpt.tasks.task import Task
from jpt.tuning.scoring import Score
from jpt.types import Prompt

SURENESS = "sureness"

_TWO_SIDED_95 = 1.96


@dataclass(frozen=True)
class Ranking:
    """One way to put the sources in order."""

    # what it says of each source, more is better; NaN where it says nothing
    values: Mapping[str, float]
    ties: Mapping[str, float]  # what decides between equal values

    def ordered(self) -> list[str]:
        """The sources, best first; those of which nothing is said last; equal ones by name."""
        return sorted(self.values, key=lambda name: (*self._key(name), name))

    def places(self) -> dict[str, int | None]:
        """The place of each source, 1 the best; equal ones share the first of their places."""
        keys = {name: self._key(name) for name in self.values}
        return {
            name: None if math.isnan(self.values[name]) else 1 + sum(k < key for k in keys.values())
            for name, key in keys.items()
        }

    def _key(self, name: str) -> tuple[bool, float, float]:
        value, tie = self.values[name], self.ties.get(name, 0.0)
        return (True, 0.0, 0.0) if math.isnan(value) else (False, -value, -tie)


def score_rankings(scores: Mapping[str, Score], labelled: bool) -> dict[str, Ranking]:
    """Ranks sources by what they do on the task's rows."""
    if not labelled:
        values = {name: sureness(score.log_probs) for name, score in scores.items()}
        return {SURENESS: Ranking(values, {})}
    values = {name: score.value for name, score in scores.items()}
    return {ZERO_SHOT: Ranking(values, {name: -score.loss for name, score in scores.items()})}


def indicator_rankings(
    indicators: Indicators, probe: str, sources: Mapping[str, Prompt]
) -> dict[str, Ranking]:
    """Ranks sources by how alike they are to a probe."""
    names = [name for name in (OVERLAP, *EMBEDDING_INDICATORS) if name in indicators.columns]
    return {
        name: Ranking({source: indicators.value(name, probe, source) for source in sources}, {})
        for name in names
    }


def type_ranking(task: Task, sources: Mapping[str, Prompt]) -> dict[str, Ranking]:
    """Puts sources for tasks of the task's type first."""
    values = {}
    for name, prompt in sources.items():
        kind = type_of(prompt.card)
        values[name] = math.nan if kind is None else float(kind == task.type)
    return {SAME_TYPE: Ranking(values, {})} if 1.0 in values.values() else {}


def not_told_apart(best: str, scores: Mapping[str, Score], truth: np.ndarray) -> list[str]:
    """Finds the sources that may be as good as the best one, for all that a few rows say."""
    right = {name: (score.predictions == truth).astype(float) for name, score in scores.items()}
    found = []
    for name in scores:
        gains = right[best] - right[name]
        error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
        if name != best and gains.mean() <= _TWO_SIDED_95 * error:
            found.append(name)
    return found
