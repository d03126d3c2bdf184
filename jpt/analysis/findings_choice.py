"""What it is worth to choose by an indicator, and what masks show, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jpt.analysis.choice_facts import ChoiceFacts
from jpt.analysis.correlation_intervals import differences, mean_interval
from jpt.analysis.finding import AGREES, CONTRADICTS, UNCLEAR, Finding
from jpt.analysis.indicator_names import EMBEDDING, OVERLAP, indicator_label
from jpt.analysis.study import Study
from jpt.analysis.wording import counted, decimal, percent

_POINT = 0.01


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


def _chosen_text(choices: ChoiceFacts, name: str) -> str:
    of = choices.means[name]
    hits = f"{of.hits * of.targets:.3g}"
    return (
        f"The source that {indicator_label(name)} puts first is the best one for {hits} of"
        f" {counted(of.targets, 'task')} and costs {_points(of.regret)} against the best on"
        f" average, one taken by chance {_points(of.chance_regret)}"
    )


def _gain_text(choices: ChoiceFacts, name: str) -> str:
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


def _judge_choice(choices: ChoiceFacts, rival: str) -> tuple[str, str]:
    """ON against the best of the paper's other indicators, target by target."""
    gaps = differences(_regrets(choices, rival), _regrets(choices, OVERLAP))
    mean, interval = float(np.mean(gaps or [np.nan])), mean_interval(gaps)
    if interval is not None and interval[0] > 0:
        if choices.means[OVERLAP].gain_interval[0] > 0:
            return "ON chooses better, as in the paper", AGREES
        return "ON chooses better, though no surer than chance", UNCLEAR
    if interval is not None and interval[1] < 0:
        return "ON chooses worse, which speaks against the paper", CONTRADICTS
    if abs(mean) < _POINT / 20:
        return "the two choose alike", UNCLEAR
    which = "ON chooses better" if mean > 0 else "ON chooses worse"
    return f"{which} here, but within the scatter over tasks", UNCLEAR


def _regrets(choices: ChoiceFacts, name: str) -> Mapping[str, float | None]:
    return {target: of and of.regret for target, of in choices.chosen[name].items()}


def mask_finding(study: Study) -> Finding | None:
    """Says whether tasks lose more with their own prompt's neurons than with random ones."""
    masks = study.masks
    if masks is None:
        return None
    pairs = np.array(
        [[t.relative.get(kind, np.nan) for kind in ("own", "random")] for t in masks.tasks.values()]
    ).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(1)]
    if not len(pairs):
        return None
    own, random = pairs.mean(0).tolist()
    gaps, count = (pairs[:, 1] - pairs[:, 0]).tolist(), counted(len(pairs), "task")
    text = (
        f"With the {percent(masks.ratio)} of neurons silent that are most active behind a task's"
        f" own prompt, {percent(own)} of its score is left on average over {count}, with as many"
        f" random ones {percent(random)}"
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
