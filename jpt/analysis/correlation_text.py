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
    """Says how sure the means over targets are."""
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
    """Says what it costs to choose by each indicator."""
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
