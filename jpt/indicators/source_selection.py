"""Evaluate source selection by indicators: leave one out on a measured transfer matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from jpt.errors import InputError
from jpt.indicators.indicators import WINDOW_PREFIX, WITH_ROW0, Indicators
from jpt.indicators.pairs import (
    TransferPairs,
    all_cards,
    over_seeds,
    select_pairs,
    serves,
    shorten,
    type_of,
)
from jpt.results.prompt_table import read_scores
from jpt.results.records import LeaveOneOut, RankingRecord, SourceChoice, SourceRange
from jpt.results.statistics import LEVEL, METHOD, RESAMPLES, SEED, mean_interval
from jpt.tasks.catalog import task_type
from jpt.types import TransferMatrix

# --- Leave one out
# Each target of the matrix is treated as a new task, its in-task prompt as the probe tuned for it;
# a ranking selects among the other sources. Ties share the first rank equally. The paper evaluates
# indicators by Spearman's correlation over all sources, but a user takes the top-ranked one.

ZERO_SHOT = "zero_shot"
SAME_TYPE = "same_type"
NO_CHOICE = "expected a target with an in-task prompt and two other measured sources"


def judge_choice(
    guesses: Float64[np.ndarray, "K"], scores: Float64[np.ndarray, "K"]
) -> SourceChoice | None:
    """Return hit, rank and regret of the top-ranked source."""
    measured = ~np.isnan(scores)
    guesses, scores = guesses[measured], scores[measured]
    if len(scores) < 2 or np.isnan(guesses).all():
        return None
    first = guesses == np.nanmax(guesses)
    best = scores.max()
    better = (scores[None] > scores[first, None]).sum(1)
    equal = (scores[None] == scores[first, None]).sum(1)
    return SourceChoice(
        float((scores[first] == best).mean()),
        float((better + (equal + 1) / 2).mean()),
        float(best - scores[first].mean()),
        len(scores),
    )


def judge_few_rows(
    scores: Float64[np.ndarray, "K"], rows: int, samples: int = 500, seed: int = 0
) -> SourceChoice | None:
    """Simulate source selection by the accuracy on a few rows."""
    # Correct rows are sampled independently for each source; real sources often fail on the same
    # rows, which makes them easier to distinguish.
    measured = scores[~np.isnan(scores)]
    if len(measured) < 2:
        return None
    counts = np.random.default_rng(seed).binomial(rows, measured, (samples, len(measured)))
    found = np.array([judge_choice(line.astype(np.float64), measured) for line in counts])
    return SourceChoice(*found[:, :3].mean(0).tolist(), len(measured))


def judge_ranking(
    guesses: Float64[np.ndarray, "N K"], scores: Float64[np.ndarray, "N K"]
) -> RankingRecord | None:
    """Return mean hit rate, rank and regret of a ranking and of random selection."""
    return _summary([judge_choice(*lines) for lines in zip(guesses, scores, strict=True)], scores)


def _summary(
    choices: Sequence[SourceChoice | None], scores: Float64[np.ndarray, "N K"]
) -> RankingRecord | None:
    """Return means over the targets with a choice, and those of random selection on them."""
    pairs = [
        (found[:3], judge_choice(np.zeros(len(line)), line)[:3])
        for found, line in zip(choices, scores, strict=True)
        if found is not None
    ]
    if not pairs:
        return None
    chosen, chance = np.array(pairs).mean(0).tolist()
    return RankingRecord(len(pairs), *chosen, *chance)


def leave_one_out(
    indicators: Indicators,
    transfer: TransferMatrix | str | Path,
    *,
    tasks: Iterable[str] | None = None,
    rows: int | None = None,
) -> LeaveOneOut:
    """Evaluate how well each indicator selects the best source prompt for a new task.

    Additional rankings: ``same_type`` puts sources of the target's task type first, all with equal
    rank; ``zero_shot``, if ``rows`` is given, simulates selection by the accuracy on so many rows.

    Args:
        indicators: Indicators of the matrix's prompts; their cards name the tasks.
        transfer: Transfer matrix, or its file.
        tasks: Restrict targets and prompts to these tasks; defaults to all.
        rows: Number of labelled rows available for scoring sources.

    Returns:
        The :class:`jpt.results.records.LeaveOneOut` records.

    Raises:
        InputError: If the matrix has prompts without indicators, or no target has an in-task
            prompt and two other measured sources.

    Example:
        >>> rank = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.1], [0.2, 0.1, 1.0]])
        >>> found = Indicators(("a", "b", "c"), {"cosine_concat": rank})
        >>> scores = np.array([[0.9, 0.5, 0.75], [0.7, 0.8, 0.6], [0.5, 0.4, 0.9]])
        >>> matrix = TransferMatrix(("a", "b", "c"), ("a", "b", "c"), scores, ("accuracy",) * 3)
        >>> found = leave_one_out(found, matrix)
        >>> found.per_target["cosine_concat"]["a"].regret, found.rankings["cosine_concat"].targets
        (0.25, 3)
    """
    matrix = transfer if isinstance(transfer, TransferMatrix) else read_scores(transfer)
    indicators = over_seeds(indicators, matrix.prompts)
    pairs = select_pairs(indicators, matrix, None if tasks is None else list(tasks))
    scores = _choices(indicators, pairs)
    kept = _judged_rows(pairs, scores)
    targets, scores = tuple(pairs.targets[row] for row in kept), scores[kept]
    guesses = {name: table[kept] for name, table in _guesses(indicators, pairs).items()}
    judged = {
        name: [judge_choice(*lines) for lines in zip(table, scores, strict=True)]
        for name, table in guesses.items()
    }
    if rows is not None:
        metrics = [matrix.metrics[matrix.targets.index(target)] for target in targets]
        judged[ZERO_SHOT] = [
            judge_few_rows(line, rows) if _are_shares(metric, line) else None
            for metric, line in zip(metrics, scores, strict=True)
        ]
    found = {name: _summary(choices, scores) for name, choices in judged.items()}
    rankings = {name: record for name, record in found.items() if record is not None}
    per_target = {name: dict(zip(targets, judged[name], strict=True)) for name in rankings}
    known = [name for name in rankings if name in guesses]
    chosen = {n: _first_sources(targets, pairs.sources, guesses[n], scores) for n in known}
    ranges = {t: _range(pairs.sources, line) for t, line in zip(targets, scores, strict=True)}
    return LeaveOneOut(rankings, per_target, targets, _notes(pairs, targets), chosen, ranges)


def _first_sources(
    targets: Sequence[str],
    sources: Sequence[str],
    guesses: Float64[np.ndarray, "N K"],
    scores: Float64[np.ndarray, "N K"],
) -> dict[str, tuple[str, ...]]:
    """Return the measured sources ranked first, by target."""
    guesses = np.where(np.isnan(scores), -np.inf, np.nan_to_num(guesses, nan=-np.inf))
    first = (guesses == guesses.max(1, keepdims=True)) & (guesses > -np.inf)
    return {
        target: tuple(sources[column] for column in np.flatnonzero(line))
        for target, line in zip(targets, first, strict=True)
    }


def _range(sources: Sequence[str], scores: Float64[np.ndarray, "K"]) -> SourceRange:
    best = float(np.nanmax(scores))
    names = tuple(sources[column] for column in np.flatnonzero(scores == best))
    return SourceRange(names, best, float(np.nanmean(scores)), int((~np.isnan(scores)).sum()))


def _judged_rows(pairs: TransferPairs, scores: Float64[np.ndarray, "N K"]) -> list[int]:
    """Return the targets with an in-task prompt and at least two other sources."""
    enough = (~np.isnan(scores)).sum(1) >= 2
    kept = [
        row for row, target in enumerate(pairs.targets) if target in pairs.in_task and enough[row]
    ]
    if not kept:
        raise InputError(
            f"transfer matrix: {NO_CHOICE}, got none of {len(pairs.targets)}"
            f" ({shorten(pairs.targets)}); give a matrix of three or more prompts and their tasks"
        )
    return kept


def _are_shares(metric: str, scores: Float64[np.ndarray, "K"]) -> bool:
    """Return whether scores are shares of rows, as the simulation needs."""
    return metric == "accuracy" and bool(np.nanmin(scores) >= 0 and np.nanmax(scores) <= 1)


def shown_rankings(names: Iterable[str]) -> list[str]:
    """Return the rankings to show: no windows and no variants with row 0."""
    return [n for n in names if not n.startswith(WINDOW_PREFIX) and not n.endswith(WITH_ROW0)]


def _choices(indicators: Indicators, pairs: TransferPairs) -> Float64[np.ndarray, "N K"]:
    """Return the scores, NaN for prompts of the target task, which cannot be selected."""
    cards = all_cards(indicators)
    of_task = [
        [
            serves(name, cards[name], [target]) or pairs.in_task.get(target) == name
            for name in pairs.sources
        ]
        for target in pairs.targets
    ]
    return np.where(np.array(of_task), np.nan, pairs.values)


def _guesses(indicators: Indicators, pairs: TransferPairs) -> dict[str, Float64[np.ndarray, "N K"]]:
    index = {name: number for number, name in enumerate(indicators.names)}
    columns = [index[source] for source in pairs.sources]
    found = {}
    for name, table in indicators.columns.items():
        found[name] = np.full(pairs.values.shape, np.nan)
        for row, target in enumerate(pairs.targets):
            if target in pairs.in_task:
                found[name][row] = table[index[pairs.in_task[target]], columns]
    cards = all_cards(indicators)
    kinds = {
        t: type_of(cards[pairs.in_task[t]]) if t in pairs.in_task else task_type(t)
        for t in pairs.targets
    }
    found[SAME_TYPE] = np.array(
        [
            [np.nan if kinds[t] is None else kinds[t] == type_of(cards[s]) for s in pairs.sources]
            for t in pairs.targets
        ],
        np.float64,
    )
    return found


def _notes(pairs: TransferPairs, targets: tuple[str, ...]) -> tuple[str, ...]:
    left = [target for target in pairs.targets if target not in targets]
    if not left:
        return pairs.notes
    note = f"{shorten(left)}: no in-task prompt or fewer than two other sources, left out"
    return (*pairs.notes, note)


# --- Record of source selection, ``choice.json``

CHOICE = "choice.json"


def judge_indicators(
    indicators: Indicators,
    transfer: TransferMatrix | str | Path,
    tasks: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Return the source that each indicator selects for each target, and its regret.

    Args:
        indicators: Indicators of the matrix's prompts.
        transfer: Transfer matrix, or its file.
        tasks: Restrict targets and prompts to these tasks; defaults to all.

    Returns:
        The content of ``choice.json``; without targets, and with the reason as a note, if no
        target has a choice.

    Raises:
        InputError: If the matrix has prompts without indicators.

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
        if NO_CHOICE not in str(error):
            raise
        return {"targets": {}, "rankings": {}, "chosen": {}, "notes": [str(error)]}


def choice_record(found: LeaveOneOut) -> dict[str, Any]:
    """Return the choices as JSON."""
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
        "intervals": {"method": METHOD, "level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "notes": list(found.notes),
    }


def _ranking(found: LeaveOneOut, name: str) -> dict[str, Any]:
    """Return means over targets, and the gain over random selection."""
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


def _score(found: LeaveOneOut, target: str, choice: SourceChoice) -> float:
    return found.ranges[target].best_score - choice.regret


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


# --- Selection without labels


def mutual_information(log_probs: Float[np.ndarray, "N C"]) -> float:
    """Return the mutual information of text and prediction, divided by its maximum log C."""
    # Sorensen et al. (ACL 2022): the entropy of the mean prediction minus the mean entropy. High if
    # predictions are confident and balanced; 0 if they do not depend on the text. It does not
    # measure whether predictions are correct.
    probs = np.exp(log_probs.astype(np.float64))
    information = _entropy(probs.mean(0)) - _entropy(probs).mean()
    return float(np.clip(information / np.log(probs.shape[1]), 0, 1))


def _entropy(probs: Float[np.ndarray, "*N C"]) -> Float[np.ndarray, "*N"]:
    return -(probs * np.log(np.maximum(probs, 1e-300))).sum(-1)
