"""Whether the overlap of neurons tells which moves work, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jpt.analysis.correlation_intervals import differences as subtract
from jpt.analysis.correlation_intervals import mean_interval
from jpt.analysis.finding import AGREES, CONTRADICTS, UNCLEAR, Finding
from jpt.analysis.indicator_names import EMBEDDING, OVERLAP, indicator_label
from jpt.analysis.layout import Move, by_target
from jpt.analysis.study import Study
from jpt.analysis.study_facts import Correlation

# Below so many targets a mean of correlations hangs on single tasks.
_FEW_TARGETS = 20


def overlap_finding(study: Study) -> Finding | None:
    """Says whether prompts of one type of task activate more neurons in common."""
    means = study.types.similarity.get(OVERLAP) if study.types else None
    if means is None or not np.isfinite([means.same, means.different]).all():
        return None
    text = (
        f"Prompts for tasks of one type share an overlap of activated neurons (ON) of"
        f" {means.same:.2f} on average, those of different types {means.different:.2f}"
    )
    if means.same > means.different:
        return Finding("overlap", f"{text}, as in the paper.", AGREES)
    return Finding("overlap", f"{text}: this speaks against the paper.", CONTRADICTS)


def correlation_finding(study: Study) -> Finding | None:
    """Says whether the overlap of neurons ranks sources better than the embedding indicators."""
    # Own prompts are left out: they are alike to themselves and best on their task by definition.
    table = study.correlations.own_out if study.correlations else {}
    if OVERLAP not in table:
        return None
    overlap = table[OVERLAP]
    rho = overlap.mean_over_targets
    if not np.isfinite(rho):
        return Finding(
            "correlation",
            "The rank correlation of ON with zero-shot performance is not defined: each task"
            " has fewer than three other sources, or ON or the scores are equal for all of them.",
            UNCLEAR,
        )
    text = (
        "With own prompts left out, neuron overlap (ON) and zero-shot performance have a mean rank"
        f" correlation of {rho:+.2f}{_bounds(_interval(overlap))}"
    )
    known = {n: table[n] for n in EMBEDDING if n in table and _defined(table[n])}
    if not known:
        return Finding("correlation", f"{text}; there is no other indicator to compare.", UNCLEAR)
    best = max(known, key=lambda name: known[name].mean_over_targets)
    rival = f"{indicator_label(best)} {known[best].mean_over_targets:+.2f}"
    end, verdict = _judge_overlap(overlap, known[best])
    return Finding(
        "correlation", f"{text}, the best embedding indicator ({rival}): {end}.", verdict
    )


def _judge_overlap(overlap: Correlation, rival: Correlation) -> tuple[str, str]:
    """What the intervals over tasks allow to say of ON and the best embedding indicator."""
    own, gap = _interval(overlap), mean_interval(differences(overlap, rival))
    lead = overlap.mean_over_targets - rival.mean_over_targets
    if overlap.mean_over_targets <= 0:
        if own is not None and own[1] < 0:
            return "ON does not tell which source to take, which speaks against the paper", (
                CONTRADICTS
            )
        return "no sign that ON tells which source to take, but few tasks to see it on", UNCLEAR
    told = f"ON less that indicator {lead:+.2f}{_bounds(gap)}"
    if gap is not None and gap[0] > 0:
        if own is not None and own[0] > 0:
            return f"ON tells better which source to take ({told}), as in the paper", AGREES
        return f"ON leads ({told}), but whether it tells anything is not sure", UNCLEAR
    if gap is not None and gap[1] < 0:
        return (
            f"ON tells worse which source to take ({told}), which speaks against the paper",
            CONTRADICTS,
        )
    if lead > 0:
        return f"ON leads as in the paper, but within the scatter over tasks ({told})", UNCLEAR
    return (
        f"ON does not lead, against the paper, but within the scatter over tasks ({told})",
        UNCLEAR,
    )


def _interval(found: Correlation) -> tuple[float, float] | None:
    return mean_interval([value for value in found.per_target.values() if np.isfinite(value)])


def _bounds(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def caution_finding(study: Study, moved: Sequence[Move]) -> Finding | None:
    """Says how far so few tasks can be trusted."""
    overlap = study.correlations.own_out.get(OVERLAP) if study.correlations else None
    if overlap is None or not 0 < overlap.n_targets < _FEW_TARGETS:
        return None
    sources = max((len(pairs) for pairs in by_target(moved).values()), default=0)
    error = standard_error([v for v in overlap.per_target.values() if np.isfinite(v)])
    tasks = "1 task" if overlap.n_targets == 1 else f"{overlap.n_targets} tasks"
    ranked = f", each ranking {sources} sources" if sources else ""
    size = f"; the standard error of ON's mean is {error:.2f}" if np.isfinite(error) else ""
    if size:
        size += ", and [brackets] hold 95% intervals over tasks (bootstrap), which few tasks blur"
    return Finding("caution", f"With n = {tasks}{ranked}, these correlations are rough{size}.")


def differences(one: Correlation, other: Correlation) -> list[float]:
    """Subtracts the correlations of two indicators target by target."""
    return subtract(one.per_target, other.per_target)


def standard_error(values: Sequence[float]) -> float:
    """Computes the standard error of a mean."""
    if len(values) < 2:
        return float("inf")
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _defined(correlation: Correlation) -> bool:
    return bool(np.isfinite(correlation.mean_over_targets))
