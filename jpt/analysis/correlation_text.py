"""Intervals and choices as lines of text, below the table of ``jpt indicators``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jpt.analysis.choice import shown_rankings
from jpt.analysis.correlation import CorrelationResult, OverlapLead
from jpt.analysis.correlation_intervals import LEVEL

FEW_TARGETS = 20
"""Below so many targets a mean over them hangs on single tasks."""


def interval_lines(correlation: CorrelationResult, names: Sequence[str]) -> list[str]:
    """Says how sure the means over targets are.

    Args:
        correlation: with its intervals.
        names: the indicators to show.

    Returns:
        The lines; none where no indicator has an interval.

    Example:
        >>> from jpt.analysis.correlation import RankCorrelation
        >>> found = RankCorrelation(0.5, None, None, 2, {"a": 0.25, "b": 0.75}, (0.25, 0.75))
        >>> table = {"cosine_concat": found}
        >>> for line in interval_lines(CorrelationResult(table, table), ["cosine_concat"]):
        ...     print(line)
        95 % intervals of the means (bootstrap over 2 targets: few, so these are rough)
                               own in          own out
          cosine_concat  +0.25..+0.75     +0.25..+0.75
    """
    counts = [of.n_targets for of in correlation.own_out.values() if of.interval]
    if not counts:
        return []
    few = ": few, so these are rough" if max(counts) < FEW_TARGETS else ""
    head = f"{_level()} intervals of the means (bootstrap over {max(counts)} targets{few})"
    width = max(len(name) for name in names)
    lines = [f"  {'':{width}}{'own in':>14}{'own out':>17}"]
    for name in names:
        cells = [_range(part[name].interval) for part in (correlation.own_in, correlation.own_out)]
        lines.append(f"  {name:{width}}{cells[0]:>14}{cells[1]:>17}")
    return [head, *lines, *_lead_lines(correlation.leads.get("own_out"))]


def choice_lines(record: Mapping[str, Any]) -> list[str]:
    """Says what it costs to choose by each indicator.

    Args:
        record: of `jpt.analysis.choice_table.choice_record`.

    Returns:
        The lines; none where no choice could be judged.

    Example:
        >>> ranking = {"targets": 2, "hits": 0.5, "mean_rank": 1.5, "regret": 0.01,
        ...     "regret_interval": [0, 0.02], "chance_hits": 0.25, "chance_rank": 2.5,
        ...     "chance_regret": 0.04, "gain": 0.03, "gain_interval": [0.01, 0.05]}
        >>> for line in choice_lines({"rankings": {"cosine_concat": ranking}}):
        ...     print(line)
        Taking the first source for each of 2 targets: how often it is the best, and mean cost
        against the best, both in points (100 x score); by chance 25 % and 4.0
                         best  cost           95 %  saved against chance           95 %
          cosine_concat  50 %   1.0       0.0..2.0                  +3.0     +1.0..+5.0
    """
    names = shown_rankings(record["rankings"])
    if not names:
        return []
    whole = max((record["rankings"][name] for name in names), key=lambda of: of["targets"])
    width = max(len(name) for name in names)
    head = (
        f"Taking the first source for each of {whole['targets']} targets: how often it is the best,"
        " and mean cost"
    )
    below = (
        f"against the best, both in points (100 x score); by chance"
        f" {100 * whole['chance_hits']:.0f} % and {100 * whole['chance_regret']:.1f}"
    )
    lines = [f"  {'':{width}}  best  cost{_level():>15}  saved against chance{_level():>15}"]
    for name in names:
        of = record["rankings"][name]
        cost = _range(of["regret_interval"], 100, sign="")
        gain = _range(of["gain_interval"], 100)
        lines.append(
            f"  {name:{width}}{100 * of['hits']:4.0f} %{100 * of['regret']:6.1f}{cost:>15}"
            f"{100 * of['gain']:>+22.1f}{gain:>15}"
        )
    return [head, below, *lines]


def _lead_lines(found: OverlapLead | None) -> list[str]:
    """How far ON leads the best of the paper's other indicators."""
    if found is None or found.best is None:
        return []
    against = found.over[found.best]
    if against.mean is None or against.interval is None:
        return []
    low, high = against.interval
    verdict = "it leads" if low > 0 else "it is behind" if high < 0 else "which leads is not told"
    return [
        f"  neuron_overlap less {found.best}, the best of the paper's others, own out:"
        f" {against.mean:+.2f}, {_range(against.interval)}: {verdict}"
    ]


def _level() -> str:
    return f"{100 * LEVEL:.0f} %"


def _range(interval: Sequence[float] | None, scale: float = 1, sign: str = "+") -> str:
    if interval is None:
        return "-"
    digits = 2 if scale == 1 else 1
    return "..".join(f"{scale * bound:{sign}.{digits}f}" for bound in interval)
