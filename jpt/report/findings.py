"""Findings of a study: one sentence each, with numbers, confidence intervals and a verdict."""

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
    random_scores,
    transfer_pairs,
)
from jpt.results.prompt_table import MEASURES, in_task_levels
from jpt.results.records import CorrelationRecord, SelectionRecord
from jpt.results.statistics import CLEAR_ERRORS, differences, mean_interval

AGREES, CONTRADICTS, UNCLEAR = "agrees", "contradicts", "unclear"


@dataclass(frozen=True)
class Finding:
    """One result of a study and how it compares with the paper."""

    # ``"training"``, ``"types"``, ``"best_source"``, ``"overlap"``, ``"correlation"``,
    # ``"choice"``, ``"masks"`` or ``"caution"``
    topic: str
    text: str
    # ``"agrees"``, ``"contradicts"``, ``"unclear"``, or None where the paper makes no claim
    verdict: str | None = None


# --- Number formatting

UNKNOWN = "–"


def decimal(value: float, digits: int, sign: bool = False) -> str:
    """Format a number with a fixed number of decimals."""
    if not math.isfinite(value):
        return UNKNOWN
    rounded = round(float(value), digits) + 0.0  # adding 0 turns -0.0 into 0.0
    return f"{rounded:{'+' if sign else ''}.{digits}f}"


def percent(value: float, digits: int = 0) -> str:
    """Format a fraction as a percentage."""
    return f"{decimal(100 * value, digits)}%" if math.isfinite(value) else UNKNOWN


def significant(value: float) -> str:
    """Format a number with four significant digits."""
    return f"{value:.4g}" if math.isfinite(value) else UNKNOWN


def duration(elapsed_s: float) -> str:
    """Format a duration, for example ``"2 min 5 s"``."""
    if not math.isfinite(elapsed_s):
        return UNKNOWN
    seconds = round(elapsed_s)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def counted(number: int, noun: str) -> str:
    """Format a count with its noun, for example ``"2 tasks"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _points(share: float) -> str:
    number = decimal(100 * share, 1)
    return f"{number} point{'' if number == '1.0' else 's'}"


def _points_ci(interval: tuple[float, float]) -> str:
    low, high = (decimal(100 * end, 1, sign=True) for end in interval)
    return f"[{low}, {high}] points"


# --- All findings


def find(study: Study, ordering: Ordering) -> list[Finding]:
    """Return the findings of a study, in the order of the page."""
    # Where chance levels are known, a target at chance has no best source.
    measure = "above_chance" if study.has_chance else "relative"
    found = [
        training_finding(study, ordering),
        transfer_finding(study, ordering),
        source_finding(transfer_pairs(study, ordering, measure)),
        overlap_finding(study),
        correlation_finding(study),
        choice_finding(study),
        mask_finding(study),
        caution_finding(study, transfer_pairs(study, ordering, "relative")),
    ]
    return [finding for finding in found if finding is not None]


def training_finding(study: Study, ordering: Ordering) -> Finding | None:
    """Compare the in-task prompts with chance."""
    if study.transfer is None:
        return None
    columns = in_task_levels(study.transfer, ordering.in_task).T
    levels = dict(zip(study.transfer.targets, columns, strict=True))
    levels = {t: levels[t] for t in ordering.targets if np.isfinite(levels[t][:2]).all()}
    if not levels:
        return None
    failed = [
        target
        for target, (chance, score, error) in levels.items()
        if score - chance <= CLEAR_ERRORS * np.nan_to_num(error)
    ]
    chance, mean, _ = np.mean(list(levels.values()), axis=0)
    means = f"mean score {percent(mean)}, chance level {percent(chance)}"
    if failed:
        text = f"{len(failed)} of {len(levels)} in-task prompts"
        text += f" score{'s' if len(failed) == 1 else ''} no better than chance, within two"
        text += f" standard errors ({_shorten(failed)}; {means}); transfer to"
        text += f" {'that task' if len(failed) == 1 else 'those tasks'} is not informative."
    elif len(levels) == 1:
        text = f"The in-task prompt scores above chance ({means})."
    else:
        every = "Both" if len(levels) == 2 else f"All {len(levels)}"
        text = f"{every} in-task prompts score above chance ({means})."
    return Finding("training", text)


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])}, …"


# --- Transfer and task types

# Differences below one point of relative score count as none.
_TYPE_POINT = 0.01


def transfer_finding(study: Study, ordering: Ordering) -> Finding | None:
    """Compare zero-shot transfer within and across task types, above chance where it is known."""
    pairs, random = (
        {measure: of(study, ordering, measure) for measure in MEASURES}
        for of in (transfer_pairs, random_scores)
    )
    as_paper = type_finding(pairs["relative"], random["relative"])
    if as_paper is None or not study.has_chance:
        return as_paper
    means = [*_type_means(pairs["relative"]), _mean(random["relative"])]
    labels = ("within a type", "across types", "untrained prompt")
    listed = [f"{n} {percent(m)}" for n, m in zip(labels, means, strict=True) if np.isfinite(m)]
    aside = f"with chance, as in the paper: {', '.join(listed)}"
    if not pairs["above_chance"]:
        text = "No in-task prompt is clearly above chance, so transfer cannot be compared with it"
        return Finding("types", f"{text} ({aside}).", UNCLEAR)
    return type_finding(
        pairs["above_chance"], random["above_chance"], "Above chance, zero-shot transfer", aside
    )


def type_finding(
    pairs: Sequence[TransferPair],
    random: Sequence[float],
    subject: str = "Zero-shot transfer",
    aside: str = "",
) -> Finding | None:
    """Compare zero-shot transfer within and across task types."""
    same, other = _type_means(pairs)
    if np.isnan(same) and np.isnan(other):
        return None
    if np.isnan(same) or np.isnan(other):
        mean = percent(other if np.isnan(same) else same)
        which = "no two tasks share a type" if np.isnan(same) else "all tasks have the same type"
        more = f" ({aside})" if aside else ""
        text = f"{subject} reaches {mean} of the in-task prompt on average{more}; {which}, so"
        return Finding("types", f"{text} task types cannot be compared.", UNCLEAR)
    gaps = _type_gaps(pairs)
    base, interval = _mean(random), mean_interval(gaps)
    details = [f"untrained prompt: {percent(base)}"] if random else []
    if interval is not None:
        details.append(f"95% CI of the difference over tasks: {_points_ci(interval)}")
    details += [aside] if aside else []
    text = (
        f"{subject} reaches {percent(same)} of the in-task prompt within a task type"
        f" and {percent(other)} across types" + (f" ({'; '.join(details)})" if details else "")
    )
    end, verdict = _judge_types((same, other), base, sum(gap > 0 for gap in gaps), len(gaps))
    return Finding("types", f"{text}: {end}.", verdict)


def _type_means(pairs: Sequence[TransferPair]) -> tuple[float, float]:
    """Mean relative score within and across task types; NaN without such pairs."""
    same = [pair.score for pair in pairs if pair.same_type]
    return _mean(same), _mean([pair.score for pair in pairs if pair.same_type is False])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _type_gaps(pairs: Sequence[TransferPair]) -> list[float]:
    """Mean score within the type less that across types, for each target that has both."""
    gaps = []
    for group in by_target(pairs).values():
        same, other = _type_means(group)
        if np.isfinite([same, other]).all():
            gaps.append(same - other)
    return gaps


def _judge_types(
    means: tuple[float, float], base: float, wins: int, n_targets: int
) -> tuple[str, str]:
    same, other = means
    if same - other < -_TYPE_POINT:
        return "sources of other types are better, contrary to the paper", CONTRADICTS
    if same - other <= _TYPE_POINT:
        return "the task type makes no difference, contrary to the paper", CONTRADICTS
    if same <= base + _TYPE_POINT:
        return (
            "sources of the same type are no better than an untrained prompt, contrary to the"
            " paper",
            CONTRADICTS,
        )
    share = f"on {wins} of {counted(n_targets, 'task')}"
    if 2 * wins <= n_targets:
        return f"sources of the same type are better on average, but only {share}", UNCLEAR
    return f"sources of the same type are better {share}, as in the paper", AGREES


def source_finding(pairs: Sequence[TransferPair]) -> Finding | None:
    """Count the targets whose best source has their type, and compare with chance level."""
    hits, chance, n_targets = 0, 0.0, 0
    for group in by_target(pairs).values():
        kinds = [pair.same_type for pair in group]
        if True not in kinds or False not in kinds:
            continue
        n_targets += 1
        # A tie counts only if all best sources have the target's type.
        best = max(pair.score for pair in group)
        hits += all(pair.same_type for pair in group if pair.score == best)
        chance += kinds.count(True) / len(kinds)
    if not n_targets:
        return None
    text = (
        f"The best source has the target's task type for {hits} of {counted(n_targets, 'task')}"
        f" (chance level: {chance:.1f})."
    )
    if abs(hits - chance) < 1 and n_targets > 1:
        return Finding("best_source", text, UNCLEAR)
    return Finding("best_source", text, AGREES if hits > chance else CONTRADICTS)


# --- Neuron overlap and its correlation with transfer

# Below this many targets a mean correlation depends on single tasks.
_FEW_TARGETS = 20


def overlap_finding(study: Study) -> Finding | None:
    """Compare neuron overlap within and across task types."""
    means = study.types.similarity.get(OVERLAP) if study.types else None
    if means is None or not np.isfinite([means.same, means.different]).all():
        return None
    text = (
        f"Mean overlap of activated neurons (ON) is {means.same:.2f} within a task type and"
        f" {means.different:.2f} across types"
    )
    if means.same > means.different:
        return Finding("overlap", f"{text}, as in the paper.", AGREES)
    return Finding("overlap", f"{text}, contrary to the paper.", CONTRADICTS)


def correlation_finding(study: Study) -> Finding | None:
    """Compare ON with the best embedding indicator as a predictor of transfer."""
    # In-task prompts are excluded: most similar to themselves and best on their task by definition.
    table = study.correlations.excluding_in_task if study.correlations else {}
    if OVERLAP not in table:
        return None
    overlap = table[OVERLAP]
    rho = overlap.mean_over_targets
    if not np.isfinite(rho):
        return Finding(
            "correlation",
            "The rank correlation of neuron overlap (ON) with zero-shot transfer is undefined:"
            " every task has fewer than three other sources, or constant ON or scores.",
            UNCLEAR,
        )
    interval = _interval(overlap)
    text = (
        "The mean rank correlation of neuron overlap (ON) with zero-shot transfer is"
        f" {rho:+.2f}" + (f" (95% CI {_rho_ci(interval)})" if interval else "")
    )
    known = {
        name: table[name]
        for name in EMBEDDING
        if name in table and np.isfinite(table[name].mean_over_targets)
    }
    if not known:
        return Finding(
            "correlation", f"{text}; there is no embedding indicator to compare.", UNCLEAR
        )
    best = max(known, key=lambda name: known[name].mean_over_targets)
    rival = f"{known[best].mean_over_targets:+.2f} for the best embedding indicator"
    end, verdict = _judge_overlap(overlap, known[best])
    text += f", compared with {rival} ({indicator_label(best)}): {end}."
    return Finding("correlation", text + _tied_text(study, best), verdict)


def _tied_text(study: Study, rival: str) -> str:
    """Report both correlations with the scores at chance as ties."""
    tied = study.correlations.excluding_in_task_tied if study.correlations else {}
    if OVERLAP not in tied or rival not in tied:
        return ""
    one, other = (decimal(tied[n].mean_over_targets, 2, sign=True) for n in (OVERLAP, rival))
    interval = _interval(tied[OVERLAP])
    return (
        f" With scores within one standard error of chance as ties, it is {one}"
        + (f" (95% CI {_rho_ci(interval)})" if interval else "")
        + f", compared with {other}."
    )


def _judge_overlap(overlap: CorrelationRecord, rival: CorrelationRecord) -> tuple[str, str]:
    """Judge ON against the best embedding indicator by the intervals over tasks."""
    interval, gap = _interval(overlap), mean_interval(_rho_gaps(overlap, rival))
    lead = overlap.mean_over_targets - rival.mean_over_targets
    if overlap.mean_over_targets <= 0:
        if interval is not None and interval[1] < 0:
            return "ON does not predict transfer, contrary to the paper", CONTRADICTS
        return "no evidence that ON predicts transfer, but too few tasks to rule it out", UNCLEAR
    text = f"difference {lead:+.2f}" + (f", 95% CI {_rho_ci(gap)}" if gap else "")
    if gap is not None and gap[0] > 0:
        if interval is not None and interval[0] > 0:
            return f"ON predicts transfer better ({text}), as in the paper", AGREES
        return f"ON is higher ({text}), but not significantly above 0 itself", UNCLEAR
    if gap is not None and gap[1] < 0:
        return f"ON predicts transfer worse ({text}), contrary to the paper", CONTRADICTS
    if lead > 0:
        return f"ON is higher, as in the paper, but not significantly ({text})", UNCLEAR
    return (
        "ON does not predict transfer better than the prompt embeddings here, contrary to the"
        f" paper, but not significantly ({text})",
        UNCLEAR,
    )


def caution_finding(study: Study, pairs: Sequence[TransferPair]) -> Finding | None:
    """Warn if the correlations rest on few tasks."""
    overlap = study.correlations.excluding_in_task.get(OVERLAP) if study.correlations else None
    if overlap is None or not 0 < overlap.n_targets < _FEW_TARGETS:
        return None
    sources = max((len(group) for group in by_target(pairs).values()), default=0)
    error = standard_error(_known_rhos(overlap))
    text = f"With n = {counted(overlap.n_targets, 'task')}"
    text += f" of {counted(sources, 'source')} each" if sources else ""
    text += ", the correlations are imprecise"
    if np.isfinite(error):
        text += f": the standard error of ON's mean is {error:.2f}, and the 95% CIs (bootstrap over"
        text += " tasks) are approximate"
    return Finding("caution", f"{text}.")


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean, infinite for fewer than two values."""
    if len(values) < 2:
        return float("inf")
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _rho_gaps(one: CorrelationRecord, other: CorrelationRecord) -> list[float]:
    return differences(one.per_target, other.per_target)


def _known_rhos(record: CorrelationRecord) -> list[float]:
    return [value for value in record.per_target.values() if np.isfinite(value)]


def _interval(record: CorrelationRecord) -> tuple[float, float] | None:
    return mean_interval(_known_rhos(record))


def _rho_ci(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"


# --- Source selection and masking

_REGRET_POINT = 0.01


def choice_finding(study: Study) -> Finding | None:
    """Report the regret of selecting sources by ON and by the best embedding indicator."""
    choices = study.choices
    known = [n for n in (OVERLAP, *EMBEDDING) if choices and n in choices.means]
    if choices is None or not known:
        return None
    name = OVERLAP if OVERLAP in known else min(known, key=lambda n: choices.means[n].regret)
    rivals = [each for each in known if each != OVERLAP]
    text = f"{_regret_text(choices, name)}: {_gain_text(choices, name)}"
    if name != OVERLAP:
        return Finding("choice", f"{text}. It is the best of the paper's embedding indicators.")
    if not rivals:
        return Finding("choice", f"{text}.", _judge_gain(choices.means[OVERLAP].gain_interval))
    best = min(rivals, key=lambda rival: choices.means[rival].regret)
    regret = f"({indicator_label(best)}) has a regret of {_points(choices.means[best].regret)}"
    end, verdict = _judge_choice(choices, best)
    return Finding("choice", f"{text}. The best embedding indicator {regret}: {end}.", verdict)


def _regret_text(choices: SelectionRecord, name: str) -> str:
    of = choices.means[name]
    return (
        f"Selecting the source by {indicator_label(name)} finds the best one for"
        f" {of.hits * of.targets:.3g} of {counted(of.targets, 'task')}, with a mean regret of"
        f" {_points(of.regret)} (random source: {_points(of.chance_regret)})"
    )


def _gain_text(choices: SelectionRecord, name: str) -> str:
    interval = choices.means[name].gain_interval
    if not np.isfinite(interval).all():
        return "with a single task, the comparison with a random source is inconclusive"
    ci = f"95% CI of the gain: {_points_ci(interval)}"
    if interval[0] > 0:
        return f"better than random ({ci})"
    if interval[1] < 0:
        return f"worse than random ({ci})"
    return f"not significantly better than random ({ci})"


def _judge_gain(interval: tuple[float, float]) -> str:
    return AGREES if interval[0] > 0 else CONTRADICTS if interval[1] < 0 else UNCLEAR


def _judge_choice(choices: SelectionRecord, rival: str) -> tuple[str, str]:
    """Compare ON with the best embedding indicator, target by target."""
    gaps = differences(_regrets(choices, rival), _regrets(choices, OVERLAP))
    mean, interval = float(np.mean(gaps or [np.nan])), mean_interval(gaps)
    if interval is not None and interval[0] > 0:
        if choices.means[OVERLAP].gain_interval[0] > 0:
            return "ON selects better, as in the paper", AGREES
        return "ON selects better, but not significantly better than random", UNCLEAR
    if interval is not None and interval[1] < 0:
        return "ON selects worse, contrary to the paper", CONTRADICTS
    if abs(mean) < _REGRET_POINT / 20:
        return "the two are equally good", UNCLEAR
    return f"ON selects {'better' if mean > 0 else 'worse'} here, but not significantly", UNCLEAR


def _regrets(choices: SelectionRecord, name: str) -> Mapping[str, float | None]:
    chosen = choices.chosen[name]
    return {target: None if of is None else of.regret for target, of in chosen.items()}


def mask_finding(study: Study) -> Finding | None:
    """Compare masking the in-task prompt's neurons with masking random ones."""
    masks = study.masks
    if masks is None:
        return None
    tables = {
        measure: np.array(
            [
                [task.performance[measure].get(kind, np.nan) for kind in ("in_task", "random")]
                for task in masks.tasks.values()
            ]
        ).reshape(-1, 2)
        for measure in MEASURES
    }
    known = {measure: np.isfinite(table).all(1) for measure, table in tables.items()}
    measure = next((measure for measure in MEASURES if known[measure].any()), None)
    if measure is None:
        return None
    # Both shares are over the same tasks.
    pairs, whole = (tables[name][known[measure]] for name in (measure, "relative"))
    what, aside = "the score", ["", ""]
    if measure == "above_chance":
        what = "the score above chance"
        aside = [f" ({percent(mean)} of the whole score)" for mean in whole.mean(0)]
    in_task, random = pairs.mean(0)
    text = (
        f"Masking the {percent(masks.ratio)} of neurons that the in-task prompt activates most"
        f" leaves {percent(in_task)} of {what} on average over {counted(len(pairs), 'task')}"
        f"{aside[0]}; masking as many random neurons leaves {percent(random)}{aside[1]}"
    )
    end, verdict = _judge_masks((pairs[:, 1] - pairs[:, 0]).tolist())
    return Finding("masks", f"{text}: {end}.", verdict)


def _judge_masks(gaps: list[float]) -> tuple[str, str]:
    interval = mean_interval(gaps)
    if interval is None:
        return "with a single task, the comparison is inconclusive", UNCLEAR
    ci = f"95% CI of the difference: {_points_ci(interval)}"
    if interval[0] > 0:
        return (
            f"the in-task prompt's neurons matter more than random ones ({ci}), as in the paper",
            AGREES,
        )
    if interval[1] < 0:
        return (
            f"the in-task prompt's neurons matter less than random ones ({ci}), contrary to the"
            " paper",
            CONTRADICTS,
        )
    return f"the difference is not significant ({ci})", UNCLEAR
