"""Which run of a bank is at which step: a function of the plan, so that a stopped bank goes on.

A bank has places. Each holds runs one after the other: one that ends early frees its place for the
next, and nothing is decided while it runs.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Timeline:
    """Runs in their places."""

    places: tuple[tuple[str, ...], ...]  # names of the runs of each place, in their order
    steps: Mapping[str, int]  # how many steps each run has

    @property
    def turns(self) -> int:
        """How many steps the longest place takes."""
        return max(sum(self.steps[run] for run in place) for place in self.places)

    def at(self, turn: int) -> list[tuple[str, int] | None]:
        """Says which run each place holds and which step it does."""
        return [self._at(place, turn) for place in self.places]

    def reached(self, turn: int) -> dict[str, int]:
        """Says how many steps every run has done after a turn."""
        done = {}
        for place in self.places:
            left = turn
            for run in place:
                done[run] = max(0, min(left, self.steps[run]))
                left -= self.steps[run]
        return done

    def _at(self, place: tuple[str, ...], turn: int) -> tuple[str, int] | None:
        ends = list(accumulate(self.steps[run] for run in place))
        number = bisect.bisect_left(ends, turn)
        if number == len(place):
            return None
        before = ends[number - 1] if number else 0
        return place[number], turn - before


def pack_runs(steps: Mapping[str, int], places: int) -> list[Timeline]:
    """Shares runs out over banks whose places all take about as long as the longest run."""
    # Long runs first, each into the place with the least to do: what `places` runs of the longest
    # length take is one bank.
    names = sorted(steps, key=lambda run: -steps[run])  # stable: equal ones stay in their order
    longest = max(steps.values())
    filled: list[list[str]] = []
    loads: list[int] = []
    for run in names:
        fitting = [n for n, load in enumerate(loads) if load + steps[run] <= longest]
        if fitting:
            number = fitting[0]
            filled[number].append(run)
            loads[number] += steps[run]
        else:
            filled.append([run])
            loads.append(steps[run])
    groups = [filled[first : first + places] for first in range(0, len(filled), places)]
    return [Timeline(tuple(map(tuple, group)), dict(steps)) for group in groups]
