"""Whether prompts move better to tasks of their own type, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jpt.analysis.finding import AGREES, CONTRADICTS, UNCLEAR, Finding
from jpt.analysis.layout import Move, by_target
from jpt.analysis.wording import percent

# Differences of less than a point of relative performance are called none.
_POINT = 0.01


def type_finding(moved: Sequence[Move], random: Mapping[str, float]) -> Finding | None:
    """Says whether prompts move better within a type of task than between types."""
    same = [move.relative for move in moved if move.same_type]
    other = [move.relative for move in moved if move.same_type is False]
    if not same and not other:
        return None
    if not same or not other:
        kept = percent(float(np.mean(same or other)))
        which = "no two tasks share a type" if not same else "all tasks have one type"
        return Finding(
            "types",
            f"Used on another task without training, a prompt reaches {kept} of that task's own"
            f" prompt on average; {which}, so types cannot be compared.",
            UNCLEAR,
        )
    means = float(np.mean(same)), float(np.mean(other))
    wins, n_targets = _targets_won(moved)
    base = float(np.mean(list(random.values()))) if random else float("nan")
    text = (
        "Used on another task without training, a prompt reaches"
        f" {percent(means[0])} of that task's own prompt where both tasks have one type and"
        f" {percent(means[1])} where not"
        + (f" (an untrained prompt: {percent(base)})" if random else "")
    )
    end, verdict = _judge_types(means, base, wins, n_targets)
    return Finding("types", f"{text}: {end}.", verdict)


def _judge_types(
    means: tuple[float, float], base: float, wins: int, n_targets: int
) -> tuple[str, str]:
    same, other = means
    if same - other < -_POINT:
        return "other types even do better, which speaks against the paper", CONTRADICTS
    if same - other <= _POINT:
        return "the type makes no difference, which speaks against the paper", CONTRADICTS
    if same <= base + _POINT:
        return (
            "the same type is no better than no training at all, which speaks against the paper",
            CONTRADICTS,
        )
    share = f"on {wins} of the {n_targets} tasks that have both kinds of sources"
    if 2 * wins <= n_targets:
        return f"the same type does better on average, but only {share}", UNCLEAR
    return f"the same type does better ({share}), as in the paper", AGREES


def source_finding(moved: Sequence[Move]) -> Finding | None:
    # Says of how many targets the best source has the target's type, and what chance would give.
    hits, chance, n_targets = 0, 0.0, 0
    for pairs in by_target(moved).values():
        kinds = [move.same_type for move in pairs]
        if True not in kinds or False not in kinds:
            continue
        n_targets += 1
        # max takes the first of equals: equal scores count only where all of them have the type.
        best = max(move.relative for move in pairs)
        hits += all(move.same_type for move in pairs if move.relative == best)
        chance += kinds.count(True) / len(kinds)
    if not n_targets:
        return None
    tasks = "1 task" if n_targets == 1 else f"{n_targets} tasks"
    text = (
        f"Of the {tasks} with sources of their own type and of others, {hits} have their best"
        f" source in their own type; a blind choice would give {chance:.1f}."
    )
    if abs(hits - chance) < 1 and n_targets > 1:
        return Finding("best_source", text, UNCLEAR)
    return Finding("best_source", text, AGREES if hits > chance else CONTRADICTS)


def _targets_won(moved: Sequence[Move]) -> tuple[int, int]:
    """On how many targets the mean of the same type is higher, of those that have both."""
    won = total = 0
    for pairs in by_target(moved).values():
        same = [move.relative for move in pairs if move.same_type]
        other = [move.relative for move in pairs if move.same_type is False]
        if same and other:
            total += 1
            won += float(np.mean(same)) > float(np.mean(other))
    return won, total
