"""What the results of a study say, as sentences with numbers and intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jpt.indicators.indicators import EMBEDDING, OVERLAP, indicator_label
from jpt.report.study import (
    Ordering,
    Study,
    TransferPair,
    by_target,
    in_task_score,
    random_values,
    transfer_pairs,
)
from jpt.results.records import CorrelationRecord, SelectionRecord
from jpt.results.statistics import differences, mean_interval
from jpt.results.statistics import differences as subtract

# --- One thing that was found, and whether it is for or against the paper

AGREES, CONTRADICTS, UNCLEAR = "agrees", "contradicts", "unclear"


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    # ``"training"``, ``"types"``, ``"best_source"``, ``"overlap"``, ``"correlation"``,
    # ``"choice"``, ``"masks"`` or ``"caution"``
    topic: str
    text: str  # one sentence
    # whether it ``"agrees"`` with the paper, ``"contradicts"`` it, is ``"unclear"``, or None where
    # the paper says nothing of it
    verdict: str | None = None


# --- Numbers as people read them: few digits, units, a dash for what is not known

UNKNOWN = "–"


def decimal(value: float, digits: int, sign: bool = False) -> str:
    """Writes a number with a fixed count of decimals."""
    if not math.isfinite(value):
        return UNKNOWN
    rounded = round(float(value), digits) + 0.0  # adding 0 turns -0.0 into 0.0
    return f"{rounded:{'+' if sign else ''}.{digits}f}"


def percent(value: float, digits: int = 0) -> str:
    """Writes a fraction in percent."""
    return UNKNOWN if not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def significant(value: float) -> str:
    """Writes a number with four digits that count."""
    return f"{value:.4g}" if math.isfinite(value) else UNKNOWN


def duration(elapsed_s: float) -> str:
    """Writes how long something took."""
    if not math.isfinite(elapsed_s):
        return UNKNOWN
    seconds = round(elapsed_s)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def counted(number: int, noun: str) -> str:
    """Writes a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- What it is worth to choose by an indicator, and what masks show, in plain sentences

_CHOICE_POINT = 0.01


def choice_finding(study: Study) -> Finding | None:
    """Says what it costs to take the source that ON puts first, and which indicator costs least."""
    choices = study.choices
    known = [n for n in (OVERLAP, *EMBEDDING) if choices and n in choices.means]
    if choices is None or not known:
        return None
    cheapest = min(known, key=lambda name: choices.means[name].regret)
    name = OVERLAP if OVERLAP in known else cheapest
    rivals = [each for each in known if each != OVERLAP]
    gain = f"{_chosen_text(choices, name)}; {_gain_text(choices, name)}"
    if name != OVERLAP:
        return Finding("choice", f"{gain}. It is the best of the paper's indicators of vectors.")
    if not rivals:
        return Finding("choice", f"{gain}.", _judge_gain(choices.means[OVERLAP].gain_interval))
    best = min(rivals, key=lambda rival: choices.means[rival].regret)
    cost = f"({indicator_label(best)}) costs {_points(choices.means[best].regret)}"
    end, verdict = _judge_choice(choices, best)
    return Finding("choice", f"{gain}. The best embedding indicator {cost}: {end}.", verdict)


def _chosen_text(choices: SelectionRecord, name: str) -> str:
    of = choices.means[name]
    hits = f"{of.hits * of.targets:.3g}"
    return (
        f"The source that {indicator_label(name)} puts first is the best one for {hits} of"
        f" {counted(of.targets, 'task')} and costs {_points(of.regret)} against the best on"
        f" average, one taken by chance {_points(of.chance_regret)}"
    )


def _gain_text(choices: SelectionRecord, name: str) -> str:
    interval = choices.means[name].gain_interval
    if not np.isfinite(interval).all():
        return "one task alone does not tell whether that beats chance"
    low, high = interval
    bounds = f"95% interval of the gain {_signed(low)} to {_signed(high)}"
    if low > 0:
        return f"it beats chance ({bounds})"
    return f"it is worse than chance ({bounds})" if high < 0 else f"no sure gain ({bounds})"


def _judge_gain(interval: tuple[float, float]) -> str:
    return AGREES if interval[0] > 0 else CONTRADICTS if interval[1] < 0 else UNCLEAR


def _judge_choice(choices: SelectionRecord, rival: str) -> tuple[str, str]:
    """ON against the best of the paper's other indicators, target by target."""
    gaps = differences(_regrets(choices, rival), _regrets(choices, OVERLAP))
    mean, interval = float(np.mean(gaps or [np.nan])), mean_interval(gaps)
    if interval is not None and interval[0] > 0:
        if choices.means[OVERLAP].gain_interval[0] > 0:
            return "ON chooses better, as in the paper", AGREES
        return "ON chooses better, though no surer than chance", UNCLEAR
    if interval is not None and interval[1] < 0:
        return "ON chooses worse, which speaks against the paper", CONTRADICTS
    if abs(mean) < _CHOICE_POINT / 20:
        return "the two choose alike", UNCLEAR
    which = "ON chooses better" if mean > 0 else "ON chooses worse"
    return f"{which} here, but within the scatter over tasks", UNCLEAR


def _regrets(choices: SelectionRecord, name: str) -> Mapping[str, float | None]:
    return {target: of and of.regret for target, of in choices.chosen[name].items()}


def mask_finding(study: Study) -> Finding | None:
    """Says whether tasks lose more with their own prompt's neurons than with random ones."""
    masks = study.masks
    if masks is None:
        return None
    pairs = np.array(
        [
            [t.relative.get(kind, np.nan) for kind in ("in_task", "random")]
            for t in masks.tasks.values()
        ]
    ).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(1)]
    if not len(pairs):
        return None
    in_task, random = pairs.mean(0).tolist()
    gaps, count = (pairs[:, 1] - pairs[:, 0]).tolist(), counted(len(pairs), "task")
    text = (
        f"With the {percent(masks.ratio)} of neurons masked that are most active behind a task's"
        f" own prompt, {percent(in_task)} of its score is left on average over {count}, with as"
        f" many random ones {percent(random)}"
    )
    end, verdict = _judge_masks(gaps)
    return Finding("masks", f"{text}: {end}.", verdict)


def _judge_masks(gaps: list[float]) -> tuple[str, str]:
    interval = mean_interval(gaps)
    if interval is None:
        return "one task alone does not tell whether its prompt's neurons matter more", UNCLEAR
    low, high = interval
    told = f"(95% interval of the difference {_signed(low)} to {_signed(high)})"
    if low > 0:
        return f"a prompt's neurons matter more than others {told}, as in the paper", AGREES
    if high < 0:
        return (
            f"a prompt's neurons matter less than others {told}, which speaks against the paper",
            CONTRADICTS,
        )
    return f"whether a prompt's neurons matter more cannot be told {told}", UNCLEAR


def _points(share: float) -> str:
    number = decimal(100 * share, 1)
    return f"{number} point{'' if number == '1.0' else 's'}"


def _signed(share: float) -> str:
    return decimal(100 * share, 1, sign=True)


# --- Whether the overlap of neurons tells which moves work, in plain sentences

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
    table = study.correlations.excluding_in_task if study.correlations else {}
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


def _judge_overlap(overlap: CorrelationRecord, rival: CorrelationRecord) -> tuple[str, str]:
    """What the intervals over tasks allow to say of ON and the best embedding indicator."""
    in_task, gap = _interval(overlap), mean_interval(overlap_differences(overlap, rival))
    lead = overlap.mean_over_targets - rival.mean_over_targets
    if overlap.mean_over_targets <= 0:
        if in_task is not None and in_task[1] < 0:
            return "ON does not tell which source to take, which speaks against the paper", (
                CONTRADICTS
            )
        return "no sign that ON tells which source to take, but few tasks to see it on", UNCLEAR
    told = f"ON less that indicator {lead:+.2f}{_bounds(gap)}"
    if gap is not None and gap[0] > 0:
        if in_task is not None and in_task[0] > 0:
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


def _interval(found: CorrelationRecord) -> tuple[float, float] | None:
    return mean_interval([value for value in found.per_target.values() if np.isfinite(value)])


def _bounds(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def caution_finding(study: Study, moved: Sequence[TransferPair]) -> Finding | None:
    """Says how far so few tasks can be trusted."""
    overlap = study.correlations.excluding_in_task.get(OVERLAP) if study.correlations else None
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


def overlap_differences(one: CorrelationRecord, other: CorrelationRecord) -> list[float]:
    """Subtracts the correlations of two indicators target by target."""
    return subtract(one.per_target, other.per_target)


def standard_error(values: Sequence[float]) -> float:
    """Computes the standard error of a mean."""
    if len(values) < 2:
        return float("inf")
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _defined(correlation: CorrelationRecord) -> bool:
    return bool(np.isfinite(correlation.mean_over_targets))


# --- Whether prompts move better to tasks of their own type, in plain sentences

# Differences of less than a point of relative performance are called none.
_TYPE_POINT = 0.01


def type_finding(moved: Sequence[TransferPair], random: Mapping[str, float]) -> Finding | None:
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
    if same - other < -_TYPE_POINT:
        return "other types even do better, which speaks against the paper", CONTRADICTS
    if same - other <= _TYPE_POINT:
        return "the type makes no difference, which speaks against the paper", CONTRADICTS
    if same <= base + _TYPE_POINT:
        return (
            "the same type is no better than no training at all, which speaks against the paper",
            CONTRADICTS,
        )
    share = f"on {wins} of the {n_targets} tasks that have both kinds of sources"
    if 2 * wins <= n_targets:
        return f"the same type does better on average, but only {share}", UNCLEAR
    return f"the same type does better ({share}), as in the paper", AGREES


def source_finding(moved: Sequence[TransferPair]) -> Finding | None:
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


def _targets_won(moved: Sequence[TransferPair]) -> tuple[int, int]:
    """On how many targets the mean of the same type is higher, of those that have both."""
    won = total = 0
    for pairs in by_target(moved).values():
        same = [move.relative for move in pairs if move.same_type]
        other = [move.relative for move in pairs if move.same_type is False]
        if same and other:
            total += 1
            won += float(np.mean(same)) > float(np.mean(other))
    return won, total


# --- What a study says, in plain sentences that follow from its numbers, for or against the paper


def find(study: Study, ordering: Ordering) -> list[Finding]:
    """Says what was found."""
    moved = transfer_pairs(study, ordering)
    found = [
        training_finding(study, ordering),
        type_finding(moved, random_values(study, ordering)),
        source_finding(moved),
        overlap_finding(study),
        correlation_finding(study),
        choice_finding(study),
        mask_finding(study),
        caution_finding(study, moved),
    ]
    return [finding for finding in found if finding is not None]


def training_finding(study: Study, ordering: Ordering) -> Finding | None:
    """Says whether the prompts learned their own tasks."""
    told = study.record.targets if study.record else {}
    scores = {target: in_task_score(study, ordering, target) for target in ordering.targets}
    pairs = {t: (s, told[t].majority) for t, s in scores.items() if t in told}
    pairs = {t: pair for t, pair in pairs.items() if np.isfinite(pair).all()}
    if not pairs:
        return None
    failed = [target for target, (score, majority) in pairs.items() if score <= majority]
    mean, majority = (float(np.mean([pair[i] for pair in pairs.values()])) for i in (0, 1))
    means = f"mean score {percent(mean)} against {percent(majority)}"
    if not failed:
        text = f"{_all(len(pairs))} own prompts score above the majority class ({means})."
        return Finding(
            "training", text if len(pairs) > 1 else f"The own prompt has learned: {means}."
        )
    return Finding(
        "training",
        f"{len(failed)} of {len(pairs)} own prompts score no better than the majority class"
        f" ({_list(failed)}), so the moves to {_these(failed)} say little ({means}).",
    )


def _all(count: int) -> str:
    return "Both" if count == 2 else f"All {count}"


def _these(names: Sequence[str]) -> str:
    return "that task" if len(names) == 1 else "those tasks"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])}, …"
