"""What a study says of choosing by its indicators, as ``choice.json`` has it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jpt.analysis.choice import Choice, LeaveOneOut, leave_one_out
from jpt.analysis.correlation_intervals import DRAWS, LEVEL, METHOD, SEED, mean_interval
from jpt.analysis.indicators import Indicators
from jpt.errors import InputError
from jpt.types import TransferMatrix

CHOICE = "choice.json"


def judge_indicators(
    indicators: Indicators,
    transfer: TransferMatrix | str | Path,
    tasks: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Says which source each indicator would have chosen for each target, and what that costs.

    Args:
        indicators: of the prompts of the matrix.
        transfer: a zero-shot matrix, or its file.
        tasks: only these targets, and only prompts for them; by default all.

    Returns:
        The record of `choice_record`; without targets, and with the reason among its notes, where
        no choice can be judged.

    Raises:
        InputError: the matrix names prompts that the indicators do not.

    Example:
        >>> import numpy as np
        >>> rank = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.1], [0.2, 0.1, 1.0]])
        >>> found = Indicators(("a", "b", "c"), {"cosine_concat": rank})
        >>> scores = np.array([[0.9, 0.5, 0.75], [0.7, 0.8, 0.6], [0.5, 0.4, 0.9]])
        >>> matrix = TransferMatrix(("a", "b", "c"), ("a", "b", "c"), scores, ("accuracy",) * 3)
        >>> record = judge_indicators(found, matrix)
        >>> record["chosen"]["cosine_concat"]["a"]
        {'sources': ['b'], 'score': 0.5, 'regret': 0.25, 'hit': 0.0, 'rank': 2.0}
        >>> record["targets"]["a"]["best"], record["targets"]["a"]["mean_score"]
        (['c'], 0.625)
    """
    try:
        return choice_record(leave_one_out(indicators, transfer, tasks=tasks))
    except InputError as error:
        if "no choice can be judged" not in str(error):
            raise
        return {"targets": {}, "rankings": {}, "chosen": {}, "notes": [str(error)]}


def choice_record(found: LeaveOneOut) -> dict[str, Any]:
    """Lays choices out as JSON."""
    targets = {
        target: {**of._asdict(), "best": list(of.best)} for target, of in found.ranges.items()
    }
    return {
        "targets": targets,
        "rankings": {name: _ranking(found, name) for name in found.chosen},
        "chosen": {
            name: {target: _chosen(found, name, target) for target in found.targets}
            for name in found.chosen
        },
        "intervals": {"method": METHOD, "level": LEVEL, "draws": DRAWS, "seed": SEED},
        "notes": list(found.notes),
    }


def _ranking(found: LeaveOneOut, name: str) -> dict[str, Any]:
    """Means over targets, and how much less a choice costs than one by chance."""
    of, choices = found.rankings[name], found.per_target[name]
    gains = [
        _score(found, target, choice) - found.ranges[target].mean_score
        for target, choice in choices.items()
        if choice is not None
    ]
    regrets = [choice.regret for choice in choices.values() if choice is not None]
    return {
        "targets": of.targets,
        "hits": of.hits,
        "mean_rank": of.mean_rank,
        "regret": of.regret,
        "regret_interval": _listed(mean_interval(regrets)),
        "chance_hits": of.chance_hits,
        "chance_rank": of.chance_rank,
        "chance_regret": of.chance_regret,
        "gain": of.chance_regret - of.regret,
        "gain_interval": _listed(mean_interval(gains)),
    }


def _chosen(found: LeaveOneOut, name: str, target: str) -> dict[str, Any] | None:
    choice = found.per_target[name][target]
    if choice is None:
        return None
    return {
        "sources": list(found.chosen[name][target]),
        "score": _score(found, target, choice),
        "regret": choice.regret,
        "hit": choice.hit,
        "rank": choice.rank,
    }


def _score(found: LeaveOneOut, target: str, choice: Choice) -> float:
    return found.ranges[target].best_score - choice.regret


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
